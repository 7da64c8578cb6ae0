"""Which layers are matched: what is named, what fits, and what is said where nothing does."""

import itertools
import math
import random
import time
from typing import Any, Literal

import pytest
from pydantic import ValidationError

from kdcore.losses import (
    LOSSES,
    ActivationBoundaryConfig,
    Context,
    FlowOfSolutionConfig,
    InstanceGraphConfig,
    LossError,
    MultiHeadGraphConfig,
    OverhaulConfig,
    ReviewConfig,
    Shapes,
    SingularValueConfig,
)
from kdcore.losses.pairing import Kind, LayerLossConfig, LayersLossConfig, Pairs, fitting_pairs
from kdcore.models import CNNConfig


class One(LayerLossConfig):
    type: Literal["one"] = "one"


class Several(LayersLossConfig):
    type: Literal["several"] = "several"


def maps(*sizes: int, name: str = "layer", channels: int = 8) -> dict[str, tuple[int, ...]]:
    return {f"{name}_{number}": (channels, size, size) for number, size in enumerate(sizes, start=1)}


def sequences(blocks: int, positions: int) -> dict[str, tuple[int, ...]]:
    return {f"block_{number}": (16, positions, 1) for number in range(1, blocks + 1)}


LOGITS = {"logits": (10,)}
CNN = {
    "conv_1_pre": (4, 28, 28),
    "conv_1": (4, 14, 14),
    "conv_2_pre": (8, 14, 14),
    "conv_2": (8, 7, 7),
    "hidden_1": (32,),
    **LOGITS,
}
DEEP = {
    "stem": (8, 28, 28),
    "block_1": (8, 28, 28),
    "block_2": (16, 14, 14),
    "block_3_pre": (16, 14, 14),
    "block_3": (16, 14, 14),
    "block_4": (32, 7, 7),
    "block_5_pre": (32, 7, 7),
    "block_5": (32, 7, 7),
    "pooled": (32,),
    **LOGITS,
}
MLP: Shapes = {"hidden_1": (64,), "hidden_2": (32,), **LOGITS}
LINEAR: Shapes = LOGITS


def pair(student: Shapes, teacher: Shapes, kind: Kind = "any", depth: float = 1.0, **named: Any) -> tuple[str, str]:
    return One(**named).pair(Context(student, [teacher]), kind, depth)


def pairs(student: Shapes, teacher: Shapes, kind: Kind = "any", least: int = 1, **named: Any) -> Pairs:
    return Several(**named).pairs(Context(student, [teacher]), kind, least)


# What fits.


@pytest.mark.parametrize(
    ("student", "teacher", "kind", "expected"),
    [
        # the ends of the stages, by size
        (CNN, DEEP, "map", [("conv_1", "block_3"), ("conv_2", "block_5")]),
        (DEEP, CNN, "map", [("block_3", "conv_1"), ("block_5", "conv_2")]),
        (DEEP, DEEP, "map", [("block_1", "block_1"), ("block_3", "block_3"), ("block_5", "block_5")]),
        # vectors, without the logits
        (CNN, DEEP, "vector", [("hidden_1", "pooled")]),
        (MLP, DEEP, "any", [("hidden_2", "pooled")]),
        (CNN, DEEP, "any", [("conv_1", "block_3"), ("conv_2", "block_5")]),
        # before the activation only where that is asked for
        (CNN, DEEP, "preactivation", [("conv_1_pre", "block_3_pre"), ("conv_2_pre", "block_5_pre")]),
        # one size throughout: every view is a stage, and the share of the depth alone counts
        (sequences(2, 50), sequences(6, 50), "map", [("block_1", "block_3"), ("block_2", "block_6")]),
        (sequences(4, 16), sequences(2, 65), "map", [("block_2", "block_1"), ("block_4", "block_2")]),
        # a sequence of 49 positions is as large as a map of 7x7
        (maps(28, 14, 7), sequences(3, 49), "map", [("layer_1", "block_1"), ("layer_2", "block_2"),
                                                    ("layer_3", "block_3")]),
        # the same size wins over the same share of the depth
        (maps(8, 4), maps(32, 16, 8, 4), "map", [("layer_1", "layer_3"), ("layer_2", "layer_4")]),
        (maps(32, 16), maps(32, 16, 8, 4), "map", [("layer_1", "layer_1"), ("layer_2", "layer_2")]),
    ],
)  # fmt: skip
def test_the_pairs_that_fit(student: Shapes, teacher: Shapes, kind: Kind, expected: Pairs) -> None:
    assert pairs(student, teacher, kind) == expected


def test_the_pairs_are_the_cheapest_of_all_that_do_not_cross() -> None:
    """Against a search through all of them."""
    chance = random.Random(0)
    for _ in range(60):
        ours, theirs = (maps(*(chance.choice([4, 8, 16]) for _ in range(chance.randint(1, 6)))) for _ in range(2))
        found = fitting_pairs(ours, theirs, "map")
        least = min(cost(tried, ours, theirs) for tried in all_pairs(ours, theirs))
        assert cost(found, ours, theirs) == pytest.approx(least)


def ends(shapes: Shapes) -> list[str]:
    """The last view of each size, or all where there is one size only."""
    names = list(shapes)
    last = [a for a, b in itertools.pairwise(names) if shapes[a][1:] != shapes[b][1:]] + names[-1:]
    return last if len(last) > 1 else names


def all_pairs(student: Shapes, teacher: Shapes) -> list[Pairs]:
    ours, theirs = ends(student), ends(teacher)
    if len(ours) <= len(theirs):
        return [list(zip(ours, some, strict=True)) for some in itertools.combinations(theirs, len(ours))]
    return [list(zip(some, theirs, strict=True)) for some in itertools.combinations(ours, len(theirs))]


def cost(found: Pairs, student: Shapes, teacher: Shapes) -> float:
    total = 0.0
    for ours, theirs in found:
        depths = [(names.index(name) + 1) / len(names)
                  for names, name in ((ends(student), ours), (ends(teacher), theirs))]  # fmt: skip
        areas = [shape[1] * shape[2] for shape in (student[ours], teacher[theirs])]
        total += abs(depths[0] - depths[1]) + abs(math.log2(areas[0] / areas[1]))
    return total


def test_very_deep_models_are_paired_in_no_time() -> None:
    began = time.monotonic()
    found = pairs(sequences(64, 50), sequences(128, 50), "map")
    assert found == [(f"block_{number}", f"block_{2 * number}") for number in range(1, 65)]
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("depth", "expected"), [(1.0, "layer_3"), (2 / 3, "layer_2"), (0.5, "layer_2"), (1 / 3, "layer_1"), (0, "layer_1")]
)
def test_a_share_of_the_depth_picks_one_of_the_pairs(depth: float, expected: str) -> None:
    shapes = maps(32, 16, 8)
    assert pair(shapes, shapes, "map", depth) == (expected, expected)


def test_a_share_of_the_depth_is_not_pushed_up_by_rounding() -> None:
    shapes = sequences(10, 9)
    for number in range(1, 11):
        assert pair(shapes, shapes, "map", 0.1 * number) == (f"block_{number}",) * 2  # 0.1 * 3 is above 0.3


# What is named.


def test_named_layers_are_taken_as_they_are() -> None:
    named = {"student_layer": "conv_1_pre", "teacher_layer": "block_5"}
    assert pair(CNN, DEEP, "map", **named) == ("conv_1_pre", "block_5")
    assert pair(MLP, CNN, student_layer="hidden_1", teacher_layer="logits") == ("hidden_1", "logits")
    several = {"student_layers": ["conv_2", "conv_2"], "teacher_layers": ["block_1", "block_5"]}
    assert pairs(CNN, DEEP, "map", **several) == [("conv_2", "block_1"), ("conv_2", "block_5")]


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ({"student_layer": "conv_1"}, ("conv_1", "block_3")),
        ({"student_layer": "conv_2"}, ("conv_2", "block_5")),
        ({"teacher_layer": "block_4"}, ("conv_2", "block_4")),
        ({"teacher_layer": "stem"}, ("conv_1", "stem")),
        ({"student_layer": "conv_2_pre"}, ("conv_2_pre", "block_3_pre")),
        ({"student_layer": "hidden_1"}, ("hidden_1", "pooled")),
        ({"teacher_layer": "pooled"}, ("hidden_1", "pooled")),
        ({"student_layer": "logits"}, ("logits", "logits")),
    ],
)
def test_the_partner_of_one_named_layer(named: dict[str, str], expected: tuple[str, str]) -> None:
    assert pair(CNN, DEEP, "any", **named) == expected


def test_the_end_of_a_stage_gets_the_end_of_a_stage() -> None:
    """Though a block in the middle of the teacher's long second stage is at the same share of the depth."""
    teacher = maps(*[32] * 3, *[16] * 9, *[8] * 3)
    student = maps(32, 16, 8, name="conv")
    assert pair(student, teacher, "map", student_layer="conv_2") == ("conv_2", "layer_12")
    assert pairs(student, teacher, "map")[1] == ("conv_2", "layer_12")


def test_vectors_before_their_activation_find_each_other() -> None:
    student = {"hidden_1_pre": (8,), "hidden_1": (8,), **LOGITS}
    teacher = {"hidden_1_pre": (9,), "hidden_1": (9,), "hidden_2_pre": (9,), "hidden_2": (9,), **LOGITS}
    assert pair(student, teacher, "vector", student_layer="hidden_1_pre") == ("hidden_1_pre", "hidden_2_pre")
    assert pair(student, teacher, "vector", teacher_layer="hidden_1") == ("hidden_1", "hidden_1")


# What does not fit: the field, and a sentence that says what would.


@pytest.mark.parametrize(
    ("kind", "named", "field", "message"),
    [
        (
            "map",
            {"student_layer": "fc"},
            "student_layer",
            "the student has no layer 'fc'; it has 'conv_1_pre', 'conv_1'",
        ),
        ("map", {"teacher_layer": "fc"}, "teacher_layer", "the teacher has no layer 'fc'; it has 'stem', "),
        (
            "map",
            {"student_layer": "hidden_1"},
            "student_layer",
            "student's 'hidden_1' has the shape (32,) and is no map (C, H, W); such layers of it: 'conv_1', 'conv_2'",
        ),
        (
            "vector",
            {"student_layer": "hidden_1", "teacher_layer": "stem"},
            "teacher_layer",
            "the teacher's 'stem' has the shape (8, 28, 28) and is no vector (D,); such layers of it: 'pooled'",
        ),
        (
            "any",
            {"student_layer": "hidden_1", "teacher_layer": "block_1"},
            "teacher_layer",
            "the student's 'hidden_1' has the shape (32,), the teacher's 'block_1' (8, 28, 28); name two maps or two",
        ),
        (
            "preactivation",
            {"student_layer": "conv_1"},
            "student_layer",
            "is no map (C, H, W) before its activation, named …_pre; such layers of it: 'conv_1_pre', 'conv_2_pre'",
        ),
    ],
)
def test_named_layers_that_do_not_fit(kind: Kind, named: dict[str, str], field: str, message: str) -> None:
    with pytest.raises(LossError) as caught:
        pair(CNN, DEEP, kind, **named)
    assert message in str(caught.value)
    assert caught.value.field == field
    both = {"student_layer": "conv_1_pre", "teacher_layer": "block_3_pre"} | named
    with pytest.raises(LossError) as caught:  # the same of one pair among several
        pairs(CNN, DEEP, kind, **{f"{name}s": [layer] for name, layer in both.items()})
    assert message in str(caught.value)
    assert caught.value.field == f"{field}s"


@pytest.mark.parametrize(
    ("student", "teacher", "kind", "owner", "message"),
    [
        (MLP, DEEP, "map", "student", "the student has no hidden map (C, H, W); it has 'hidden_1' (64,), 'hidden_2'"),
        (CNN, MLP, "map", "teacher", "the teacher has no hidden map (C, H, W); it has 'hidden_1' (64,), "),
        (LINEAR, CNN, "any", "student", "the student has no hidden vector (D,); it has 'logits' (10,)"),
        (CNN, MLP, "preactivation", "teacher", "the teacher has no hidden map (C, H, W) before its activation, named"),
    ],
)
def test_models_where_nothing_fits(student: Shapes, teacher: Shapes, kind: Kind, owner: str, message: str) -> None:
    for find, field in ((pair, f"{owner}_layer"), (pairs, f"{owner}_layers")):
        with pytest.raises(LossError) as caught:
            find(student, teacher, kind)
        assert message in str(caught.value)
        assert caught.value.field == field


def test_a_named_layer_without_a_partner() -> None:
    message = r"nothing on the other side is like 'conv_1' \(4, 14, 14\); it has 'hidden_1' \(64,\), .*; name a layer"
    with pytest.raises(LossError, match=message) as caught:
        pair(CNN, MLP, student_layer="conv_1")
    assert caught.value.field == "teacher_layer"
    with pytest.raises(LossError, match="is like 'block_3_pre'") as caught:
        pair(MLP, DEEP, teacher_layer="block_3_pre")
    assert caught.value.field == "student_layer"


@pytest.mark.parametrize(
    ("named", "least", "field", "message"),
    [
        ({"student_layers": ["conv_1"]}, 1, "teacher_layers", "name the layers of both sides, or of neither"),
        ({"teacher_layers": ["stem"]}, 1, "student_layers", "name the layers of both sides, or of neither"),
        (
            {"student_layers": ["conv_1", "conv_2"], "teacher_layers": ["stem"]},
            1,
            "teacher_layers",
            "2 and 1 layers are named; name as many of the teacher as of the student",
        ),
        (
            {"student_layers": ["conv_1"], "teacher_layers": ["stem"]},
            2,
            "student_layers",
            "2 pairs of layers are needed, 1 fits; name more layers of both sides, or use deeper models",
        ),
        ({}, 3, "student_layers", "3 pairs of layers are needed, 2 fit"),
    ],
)
def test_lists_that_do_not_fit(named: dict[str, list[str]], least: int, field: str, message: str) -> None:
    with pytest.raises(LossError) as caught:
        pairs(CNN, DEEP, "map", least, **named)
    assert message in str(caught.value)
    assert caught.value.field == field


IN_ORDER = {
    ReviewConfig: "",
    FlowOfSolutionConfig: "",
    SingularValueConfig: "",
    InstanceGraphConfig: "",
    MultiHeadGraphConfig: "",
    ActivationBoundaryConfig: "_pre",
    OverhaulConfig: "_pre",
}


@pytest.mark.parametrize("config", LOSSES, ids=lambda config: config.model_fields["type"].default)
def test_layers_are_named_in_order_of_depth_where_that_matters(config: Any) -> None:
    assert getattr(config, "in_order", False) == (config in IN_ORDER)
    if config not in IN_ORDER:
        return
    both = [f"conv_1{IN_ORDER[config]}", f"conv_2{IN_ORDER[config]}"]
    context = Context(CNN, [CNN], teacher_networks=[CNNConfig(channels=[4, 8], batch_norm=True).build((1, 28, 28), 10)])
    config(student_layers=both, teacher_layers=both).build(context)
    config(student_layers=both[:1] * 2, teacher_layers=both[:1] * 2).build(context)
    for side, other in (("student", "teacher"), ("teacher", "student")):
        with pytest.raises(LossError) as caught:
            config(**{f"{side}_layers": both[::-1], f"{other}_layers": both}).build(context)
        assert caught.value.field == f"{side}_layers"
        assert f"{side}'s {both[1]!r} is deeper than {both[0]!r}" in str(caught.value)
        assert f"in order of depth: {both[0]}, {both[1]}" in str(caught.value)


def test_which_teacher() -> None:
    context = Context(CNN, [MLP, DEEP])
    assert One(teacher=2).pair(context, "map") == ("conv_2", "block_5")
    assert Several(teacher=2).pairs(context, "map", 2)[-1] == ("conv_2", "block_5")
    for config in (One(teacher=3), Several(teacher=3)):
        with pytest.raises(LossError, match="there are 2 teachers, counted from 1") as caught:
            config.pair(context, "map") if isinstance(config, One) else config.pairs(context, "map")
        assert caught.value.field == "teacher"
    with pytest.raises(LossError, match="needs a teacher, and there is none") as caught:
        One().pair(Context(CNN), "map")
    assert caught.value.field == "type"


def test_lists_are_bounded_and_never_empty() -> None:
    for layers in ([], ["conv_1"] * 65):
        with pytest.raises(ValidationError):
            Several(student_layers=layers)
