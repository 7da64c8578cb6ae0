"""Terms on logits and labels: each is its function on the layers and settings of its config, or says what is wrong."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from kdcore.config import SpecError
from kdcore.losses import (
    BaseLossConfig,
    Batch,
    BinaryCrossEntropyConfig,
    BinaryKDConfig,
    Context,
    CrossEntropyConfig,
    DISTConfig,
    DKDConfig,
    HardDistillationConfig,
    JSDConfig,
    KDConfig,
    LossError,
    MSEConfig,
    MultiTeacherConfig,
    NKDConfig,
    binary_cross_entropy,
    binary_kd,
    dist,
    dkd,
    hard_distillation,
    jsd,
    kd,
    mse,
    multi_teacher,
    nkd,
)
from kdcore.losses.multi_teacher import draw
from kdcore.plan import make_plan
from kdcore.reporter import Interrupted, RecordingReporter
from kdcore.spec import parse_spec

LABELS = torch.tensor([0, 1, 2, 0, 1])
SHAPES = {"hidden_1": (3,), "wide": (6,), "conv_1": (4, 2, 2), "logits": (3,)}
PLAIN = Context(SHAPES, [SHAPES, SHAPES], classes=3)


def views(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(5, *shape, generator=generator) for name, shape in SHAPES.items()}


STUDENT, FIRST, SECOND, THIRD = (views(seed) for seed in range(4))
HERE = Batch(STUDENT, [FIRST, SECOND], LABELS, torch.arange(5), torch.zeros(5, 1), epoch=1.0)
S, T, T2 = STUDENT["logits"], FIRST["logits"], SECOND["logits"]
ONE_HOT = torch.nn.functional.one_hot(LABELS, 3).float()


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (HardDistillationConfig(), hard_distillation(S, T)),
        (BinaryKDConfig(), binary_kd(S, T)),
        (JSDConfig(), jsd(S, T)),
        (DKDConfig(), dkd(S, T, LABELS)),
        (DISTConfig(), dist(S, T)),
        (NKDConfig(), nkd(S, T, LABELS)),
        (MSEConfig(), mse(S, ONE_HOT)),
        (BinaryCrossEntropyConfig(), binary_cross_entropy(S, ONE_HOT)),
        (MultiTeacherConfig(), multi_teacher(S, [T, T2])),
    ],
    ids=lambda value: value.type if isinstance(value, BaseLossConfig) else "",
)
def test_term_is_its_function_with_the_same_defaults(config: BaseLossConfig, expected: Tensor) -> None:
    assert config.build(PLAIN)(HERE) == expected


LAYERS = {"student_layer": "hidden_1", "teacher_layer": "wide"}
H, W = STUDENT["hidden_1"], FIRST["wide"][:, :3]
NARROW = replace(PLAIN, teachers=[{"wide": (3,)}, {"wide": (3,)}])
HOT = {"temperature_schedule": {"type": "per_epoch", "factors": [1.0, 2.0]}}


@pytest.mark.parametrize(
    ("config", "options", "expected"),
    [
        (HardDistillationConfig, {}, hard_distillation(H, W)),
        (BinaryKDConfig, {"temperature": 3.0, **HOT}, binary_kd(H, W, 6.0)),
        (JSDConfig, {"beta": 0.2, "temperature": 3.0, **HOT}, jsd(H, W, 0.2, 6.0)),
        (DKDConfig, {"alpha": 2.0, "beta": 0.5, "temperature": 3.0, **HOT}, dkd(H, W, LABELS, 2.0, 0.5, 6.0)),
        (DISTConfig, {"beta": 2.0, "gamma": 0.5, "temperature": 3.0, **HOT}, dist(H, W, 2.0, 0.5, 6.0)),
        (NKDConfig, {"gamma": 0.5, "temperature": 3.0, **HOT}, nkd(H, W, LABELS, 0.5, 6.0)),
    ],
)
def test_terms_use_their_settings(config: type[BaseLossConfig], options: dict[str, Any], expected: Tensor) -> None:
    """The second teacher, the named layers, and a temperature that is doubled in the second epoch."""
    batch = replace(HERE, teachers=[{}, {"wide": W}])
    term = config.model_validate({**LAYERS, "teacher": 2, **options}).build(NARROW)
    assert term(batch) == expected


def test_mse_and_binary_cross_entropy_read_labels_of_every_kind() -> None:
    # Numbers and several classes as they are; one class as a row; one number for one output, whatever its shape.
    numbers = torch.randn(5, 3, dtype=torch.float64)
    regression = replace(PLAIN, task="regression")
    assert MSEConfig().build(regression)(replace(HERE, labels=numbers)) == mse(S, numbers)
    several = torch.tensor([[1.0, 0.0, 1.0]]).expand(5, 3)
    multi = replace(PLAIN, task="multi_label")
    expected = binary_cross_entropy(S, several)
    assert BinaryCrossEntropyConfig().build(multi)(replace(HERE, labels=several)) == expected
    assert BinaryCrossEntropyConfig().build(multi)(replace(HERE, labels=several.long())) == expected
    single = MSEConfig().build(Context({"logits": (1,)}, classes=1, task="regression"))
    outputs, targets = torch.randn(5, 1), torch.randn(5, 1)
    wanted = (outputs - targets).square().mean()  # of (5, 1) and (5,) it would be the mean of a 5 x 5 table
    for labels in (targets, targets[:, 0]):
        assert single(replace(HERE, student={"logits": outputs}, labels=labels)) == wanted
    with pytest.raises(ValueError, match="differ in shape"):
        MSEConfig().build(regression)(replace(HERE, labels=numbers[:, :2]))


@pytest.mark.parametrize("loss", [HardDistillationConfig, BinaryKDConfig, JSDConfig, DKDConfig, DISTConfig, NKDConfig])
def test_what_cannot_be_built_on_logits(loss: Any) -> None:
    cases = [
        (loss(student_layer="fc"), "student_layer", "no layer 'fc'; it has 'hidden_1'"),
        (loss(teacher_layer="fc"), "teacher_layer", "the teacher has no layer 'fc'"),
        (loss(student_layer="conv_1"), "student_layer", "logits are a vector"),
        (loss(teacher_layer="wide"), "teacher_layer", "has 3 classes, the teacher's 'wide' has 6"),
        (loss(teacher=3), "teacher", "there are 2 teachers, counted from 1"),
    ]
    for config, field, message in cases:
        with pytest.raises(LossError, match=message) as caught:
            config.build(PLAIN)
        assert caught.value.field == field


LABELLED: list[Any] = [
    CrossEntropyConfig(),
    MSEConfig(),
    BinaryCrossEntropyConfig(),
    DKDConfig(),
    NKDConfig(),
    MultiTeacherConfig(weighting="confidence"),
]


@pytest.mark.parametrize("config", LABELLED, ids=lambda config: config.type)
def test_losses_on_labels_need_one_output_per_class_and_labels(config: BaseLossConfig) -> None:
    with pytest.raises(LossError, match="'logits' has 3 outputs, the data has 10 classes") as caught:
        config.build(replace(PLAIN, classes=10))
    assert caught.value.field == "student_layer"
    with pytest.raises(ValueError, match="needs labels"):
        config.build(PLAIN)(replace(HERE, labels=None))


@pytest.mark.parametrize(
    ("config", "task", "readable"),
    [
        (CrossEntropyConfig(), "multi_label", "classification or embedding"),
        (MSEConfig(), "embedding", "regression or multi_label or classification"),
        (BinaryCrossEntropyConfig(), "regression", "multi_label or classification"),
        (DKDConfig(), "multi_label", "classification"),
        (NKDConfig(), "regression", "classification"),
        (MultiTeacherConfig(weighting="confidence"), "multi_label", "classification"),
    ],
)
def test_labels_of_another_task_are_refused(config: BaseLossConfig, task: Any, readable: str) -> None:
    with pytest.raises(LossError, match=f"reads the labels of {readable}, the data's are {task}") as caught:
        config.build(replace(PLAIN, task=task))
    assert caught.value.field == "type"


# Several teachers.

ALL_THREE = replace(PLAIN, teachers=[SHAPES, SHAPES, SHAPES])
MANY = replace(HERE, teachers=[FIRST, SECOND, THIRD])
LOGITS = [each["logits"] for each in (FIRST, SECOND, THIRD)]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, multi_teacher(S, LOGITS)),
        ({"teachers": [3, 1]}, multi_teacher(S, [LOGITS[2], LOGITS[0]])),
        (
            {"teachers": [3, 1], "weighting": "weights", "weights": [1.0, 3.0], "temperature": 2.0, **HOT},
            0.25 * kd(S, LOGITS[2], 4.0) + 0.75 * kd(S, LOGITS[0], 4.0),
        ),
        ({"weighting": "mean_probabilities"}, multi_teacher(S, LOGITS, weighting="mean_probabilities")),
        ({"weighting": "confidence"}, multi_teacher(S, LOGITS, LABELS, "confidence")),
        (
            {"student_layer": "wide", "teacher_layer": "wide"},
            multi_teacher(STUDENT["wide"], [each["wide"] for each in (FIRST, SECOND, THIRD)]),
        ),
    ],
)
def test_multi_teacher_term(options: dict[str, Any], expected: Tensor) -> None:
    term = MultiTeacherConfig.model_validate(options).build(ALL_THREE)
    torch.testing.assert_close(term(MANY), expected, rtol=1e-6, atol=0)


def test_it_reads_the_teachers_it_names_or_all_and_tells_what_each_says() -> None:
    assert MultiTeacherConfig().reads(3) == {0, 1, 2}
    config = MultiTeacherConfig(teachers=[1, 3], temperature=2.0)
    assert config.reads(16) == {0, 2}
    term = config.build(ALL_THREE)
    assert term.metrics() == {}
    value = term(replace(MANY, student={"logits": S.clone().requires_grad_()}, teachers=[FIRST, {}, THIRD]))
    assert value.requires_grad
    told = term.metrics()
    assert told == {"teacher-1": kd(S, LOGITS[0], 2.0), "teacher-3": kd(S, LOGITS[2], 2.0)}
    assert not any(each.requires_grad for each in told.values())
    assert term.state_dict() == {}


def test_one_per_batch_draws_by_the_time_and_the_samples_alone() -> None:
    values = torch.stack([kd(S, each) for each in LOGITS])
    term = MultiTeacherConfig(weighting="one_per_batch").build(ALL_THREE)
    before = torch.get_rng_state()
    epochs = [step / 40 for step in range(600)]
    drawn = [int((values - term(replace(MANY, epoch=epoch))).abs().argmin()) for epoch in epochs]
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    again = MultiTeacherConfig(weighting="one_per_batch").build(ALL_THREE)
    for epoch, place in zip(epochs, drawn, strict=True):
        assert again(replace(MANY, epoch=epoch)).item() == pytest.approx(values[place].item(), rel=1e-6)
    counts = Counter(drawn)
    # 600 draws of three: 200 each, with a standard deviation of 11.5; four of them either way.
    assert all(154 < counts[place] < 246 for place in range(3)), counts
    pairs = Counter(pairwise(drawn))
    assert all(35 < pairs[a, b] < 99 for a in range(3) for b in range(3)), pairs  # 67, standard deviation 7.7


def test_the_draw_differs_between_orders_of_the_samples() -> None:
    """Two seeds shuffle differently; at one time they draw alike in a third of the batches only."""
    orders = [torch.randperm(1000, generator=torch.Generator().manual_seed(seed))[:32] for seed in range(301)]
    drawn = [int(draw(replace(MANY, indices=order), 3)) for order in orders]
    alike = sum(a == b for a, b in pairwise(drawn))
    assert 67 < alike < 133, alike  # 100, standard deviation 8.2


@pytest.mark.parametrize(
    ("options", "context", "field", "message"),
    [
        ({}, Context(SHAPES, []), "type", "needs two teachers or more, and there is none"),
        ({}, Context(SHAPES, [SHAPES]), "teachers", "takes two different teachers or more; kd takes one"),
        ({"teachers": [2]}, ALL_THREE, "teachers", "two different teachers"),
        ({"teachers": []}, ALL_THREE, "teachers", "two different teachers"),
        ({"teachers": [2, 1, 2]}, ALL_THREE, "teachers", "two different teachers"),
        ({"teachers": [1, 4]}, ALL_THREE, "teachers", "there are 3 teachers, counted from 1"),
        ({"weights": [1.0, 1.0, 1.0]}, ALL_THREE, "weights", "not for 'mean_logits'; leave them out"),
        ({"weighting": "weights"}, ALL_THREE, "weights", "0 weights are given; give one for each of the 3 teachers"),
        ({"weighting": "weights", "weights": [1.0, 1.0]}, ALL_THREE, "weights", "2 weights are given"),
        ({"weighting": "weights", "weights": [0.0, 0.0, 0.0]}, ALL_THREE, "weights", "one of them above 0"),
        ({"student_layer": "fc"}, ALL_THREE, "student_layer", "the student has no layer 'fc'"),
        ({"teacher_layer": "fc"}, ALL_THREE, "teacher_layer", "the teacher-1 has no layer 'fc'"),
        (
            {},
            replace(ALL_THREE, teachers=[SHAPES, {"logits": (4,)}]),
            "teacher_layer",
            "'logits' has 3 classes, the 'logits' of teacher-2 has 4",
        ),
    ],
)
def test_what_several_teachers_cannot_be(options: dict[str, Any], context: Context, field: str, message: str) -> None:
    with pytest.raises(LossError, match=message) as caught:
        MultiTeacherConfig.model_validate(options).build(context)
    assert caught.value.field == field


# In a job.


def in_a_job(tiny: dict[str, Any]) -> dict[str, Any]:
    """Two teachers, a third that learns from both, and a student that learns from one of the three at a time."""
    first = tiny["teachers"][0]
    third = {**first["train"], "epochs": 1, "losses": [{"type": "cross_entropy"}, {"type": "multi_teacher"}]}
    losses = [
        {"type": "cross_entropy"},
        {"type": "multi_teacher", "weighting": "one_per_batch"},
        {"type": "dkd", "weight": 0.1},
    ]
    stages = [{**tiny["stages"][0], "losses": losses}]
    teachers = [first, first, {**first, "train": third}]
    return {**tiny, "teachers": teachers, "baseline": False, "stages": stages}


def test_an_interrupted_job_draws_the_same_teachers(light: Any, tiny: dict[str, Any]) -> None:
    document = in_a_job(tiny)
    wanted, whole = light(document)
    resume = None
    for _ in range(100):
        reporter = RecordingReporter("pause", request_at=7)
        try:
            found, _ = light(document, reporter, resume=resume)
            break
        except Interrupted:
            resume = reporter.checkpoints[-1].path
            torch.rand(7)
    assert resume is not None
    assert found["digests"] == wanted["digests"]
    last = [values for stage, _, values in whole.points if stage == "distill-1" and "train/loss" in values]
    for values in last:
        each = [values[f"train/2/teacher-{number}"] for number in (1, 2, 3)]
        assert values["train/multi_teacher"] == pytest.approx(
            min(each, key=lambda v: abs(v - values["train/multi_teacher"]))
        )
    taught = [values for stage, _, values in whole.points if stage == "teacher-3" and "train/loss" in values]
    assert all("train/2/teacher-2" in values and "train/2/teacher-3" not in values for values in taught)
    # The weight of dkd grows from 0 over 20 epochs.
    weights = [values["train/dkd/weighted"] / values["train/dkd"] for values in last]
    assert weights == pytest.approx([0.1 * step / len(last) * 2 / 20 for step in range(len(last))], rel=1e-5)


def test_the_plan_refuses_one_teacher_with_its_place(tiny: dict[str, Any]) -> None:
    tiny["stages"][0]["losses"].append({"type": "multi_teacher"})
    with pytest.raises(SpecError, match=r"stages\[0\]\.losses\[2\]\.teachers: this loss takes two different teachers"):
        make_plan(parse_spec(tiny))
    document = in_a_job(tiny)
    make_plan(parse_spec(document))
    document["teachers"] = document["teachers"][1:]  # the taught teacher has only one before it
    with pytest.raises(SpecError, match=r"teachers\[1\]\.train\.losses\[1\]\.teachers: this loss takes two"):
        make_plan(parse_spec(document))


def test_kd_is_what_one_teacher_out_of_several_gives() -> None:
    assert KDConfig(teacher=2).build(ALL_THREE)(MANY) == kd(S, T2)
