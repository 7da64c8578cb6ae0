"""The student as a thinner teacher, the largest of a budget, or with weights to begin with."""

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import save_file

from kdcore.config import SpecError
from kdcore.data import DataFacts
from kdcore.errors import TrainingError
from kdcore.initial import copies
from kdcore.ladders import LADDERS, Family, members
from kdcore.models import MODELS, ModelError
from kdcore.plan import make_plan
from kdcore.reporter import Interrupted, RecordingReporter
from kdcore.shrinking import CHANGES, shrunk
from kdcore.spec import parse_spec, spec_document

CLASSES = {each.model_fields["type"].default: each for each in MODELS}
PICTURE = DataFacts((3, 32, 32), ("a", "b"), 9, 1, 2, (0.5,) * 3, (0.2,) * 3)
TEXT = DataFacts((12,), ("a", "b"), 9, 1, 2, (0.0,), (1.0,), vocabulary=50)


def config(document: dict[str, Any]) -> Any:
    return CLASSES[document["type"]].model_validate(document)


def plan(student: dict[str, Any], teacher: dict[str, Any] | None = None, **changes: Any) -> Any:
    """The complete spec and its plan."""
    teachers = [] if teacher is None else [{"model": teacher}]
    spec = parse_spec({"data": {"type": "digits"}, "teachers": teachers, "student": student} | changes)
    assert parse_spec(spec_document(spec)) == spec
    return spec, make_plan(spec)


def refusal(student: dict[str, Any], teacher: dict[str, Any] | None = None, **changes: Any) -> list[Any]:
    with pytest.raises(SpecError) as caught:
        plan(student, teacher, **changes)
    return caught.value.errors


MLP = {"type": "mlp", "hidden": [64, 48, 32, 16], "dropout": 0.1}


@pytest.mark.parametrize(
    ("teacher", "width", "depth", "changed"),
    [
        (MLP, 0.5, 0.5, {"hidden": [32, 16]}),
        (MLP, 1.0, 0.75, {"hidden": [64, 48, 32]}),
        ({"type": "cnn", "channels": [32, 64, 128], "hidden": [9]}, 0.25, 0.67, {"channels": [8, 16], "hidden": [2]}),
        ({"type": "resnet", "depth": 20}, 1.0, 0.34, {"depth": 8}),
        ({"type": "resnet", "depth": 32, "width": 4}, 0.5, 0.5, {"depth": 20, "width": 2}),
        ({"type": "resnet", "form": "imagenet", "depth": 34}, 1.0, 0.5, {"depth": 18}),
        ({"type": "wide_resnet", "depth": 40, "width": 2}, 0.5, 0.34, {"depth": 16, "width": 1}),
        ({"type": "vgg", "depth": 16}, 1.0, 0.5, {"depth": 8}),
        ({"type": "mobilenet_v2", "width": 1.0}, 0.5, 1.0, {"width": 0.5}),
        ({"type": "shufflenet", "width": 2.0}, 0.5, 1.0, {"width": 1.0}),
        ({"type": "vit", "width": 64, "heads": 4, "layers": 6, "mlp": 100}, 0.5, 0.5,
         {"width": 32, "layers": 3, "mlp": 50}),
        ({"type": "text_transformer", "layers": 12}, 1.0, 0.5, {"layers": 6}),
        ({"type": "lstm", "layers": 2}, 0.5, 0.5, {"embedding": 32, "hidden": 64, "layers": 1}),
        ({"type": "gru"}, 0.25, 1.0, {"embedding": 16, "hidden": 32}),
        ({"type": "text_cnn"}, 0.5, 1.0, {"embedding": 32, "channels": 32}),
    ],
    ids=lambda each: each["type"] if isinstance(each, dict) and "type" in each else "",
)  # fmt: skip
def test_a_thinner_model(teacher: dict[str, Any], width: float, depth: float, changed: dict[str, Any]) -> None:
    made = shrunk(config(teacher), width, depth)
    assert made == config(teacher | changed)
    assert shrunk(config(teacher), 1.0, 1.0) == config(teacher)


def test_every_family_that_can_be_made_thinner_is_tried_and_the_others_say_so() -> None:
    assert (
        set(CHANGES)
        == set(LADDERS)
        == set(get_args(Family))
        == set(CLASSES) - {"sequential", "torchvision", "timm", "onnx", "logits", "http"}
    )


@pytest.mark.parametrize(
    ("teacher", "width", "depth", "field"),
    [
        ({"type": "torchvision"}, 0.5, 1.0, "of"),
        ({"type": "sequential", "layers": [{"type": "relu"}]}, 0.5, 1.0, "of"),
        ({"type": "mlp", "hidden": []}, 0.5, 1.0, "of"),
        ({"type": "mlp"}, 1.0, 0.5, "depth"),
        ({"type": "resnet"}, 0.5, 1.0, "width"),
        ({"type": "resnet", "depth": 8}, 1.0, 0.5, "depth"),
        ({"type": "resnet", "form": "imagenet", "depth": 18}, 1.0, 0.5, "depth"),
        ({"type": "resnet", "form": "imagenet", "depth": 50}, 0.5, 1.0, "width"),
        ({"type": "vgg"}, 0.5, 1.0, "width"),
        ({"type": "vgg", "depth": 8}, 1.0, 0.5, "depth"),
        ({"type": "mobilenet_v2"}, 1.0, 0.5, "depth"),
        ({"type": "mobilenet_v2", "width": 0.1}, 0.5, 1.0, "width"),
        ({"type": "shufflenet", "version": 1}, 0.5, 1.0, "width"),
        ({"type": "shufflenet"}, 1.0, 0.5, "depth"),
        ({"type": "vit", "width": 4}, 0.5, 1.0, "width"),
        ({"type": "text_cnn"}, 1.0, 0.5, "depth"),
    ],
    ids=lambda each: each["type"] if isinstance(each, dict) else "",
)  # fmt: skip
def test_what_cannot_be_made_thinner_names_its_field(
    teacher: dict[str, Any], width: float, depth: float, field: str
) -> None:
    with pytest.raises(ModelError) as caught:
        shrunk(config(teacher), width, depth)
    assert caught.value.field == field


def test_the_complete_spec_names_the_thinner_model_and_keeps_where_it_is_from() -> None:
    spec, planned = plan({"shrink": {"width": 0.5, "depth": 0.5}}, MLP)
    assert spec.student.model == config(MLP | {"hidden": [32, 16]})
    assert spec_document(spec)["student"]["shrink"] == {"of": "teacher", "width": 0.5, "depth": 0.5}
    assert planned.student_choice.by == "shrink"
    assert planned.student_choice.parameters == planned.student.parameters
    named, _ = plan({"shrink": {"width": 0.5}, "model": {"type": "mlp", "hidden": [7]}}, MLP)
    assert named.student.model.hidden == [7]  # as a stored spec is read, whatever shrink makes by then
    assert plan({"model": {"type": "mlp"}}, MLP)[1].student_choice is None


@pytest.mark.parametrize(
    ("student", "teacher", "family", "hidden"),
    [
        ({"max_parameters": 3000}, {"type": "mlp", "activation": "tanh"}, "mlp", [32]),
        ({"max_parameters": 3000, "family": "mlp"}, {"type": "cnn"}, "mlp", [32]),
        ({"max_parameters": 3000}, None, "cnn", None),
        ({"max_parameters": 200, "view": {"type": "resize", "size": 4}, "family": "mlp"}, None, "mlp", [6]),
    ],
)
def test_a_budget_picks_the_largest_that_fits(
    student: dict[str, Any], teacher: dict[str, Any] | None, family: str, hidden: list[int] | None
) -> None:
    alone = {"stages": [{"losses": [{"type": "cross_entropy"}]}]} if teacher is None else {}
    spec, planned = plan(student, teacher, **alone)
    picked, choice = spec.student.model, planned.student_choice
    assert (choice.by, choice.family, picked.type) == ("max_parameters", family, family)
    assert choice.parameters == planned.student.parameters <= student["max_parameters"]
    assert "the largest with at most" in choice.reason
    if hidden is not None:
        assert picked.hidden[:1] == hidden
    facts = spec.data.facts() if spec.student.view is None else spec.student.view.facts(spec.data.facts())
    like = config(teacher) if teacher is not None else None
    sizes = [count for count, _ in members(picked.type, like, facts)]
    assert choice.parameters == max(size for size in sizes if size <= student["max_parameters"])
    assert getattr(picked, "activation", None) == (teacher or {}).get("activation", "relu")


def test_a_budget_too_small_for_the_teachers_family_takes_another_one() -> None:
    assert plan({"max_parameters": 9_000}, {"type": "resnet", "depth": 8})[0].student.model.type == "cnn"


@pytest.mark.parametrize("family", ["mlp", "cnn", "mobilenet_v2", "shufflenet", "vit", "lstm", "text_transformer"])
def test_a_ladder_rises(family: Family) -> None:
    found = members(family, None, TEXT if family in ("lstm", "text_transformer") else PICTURE)
    counts = [count for count, _ in found]
    assert len(found) == len(LADDERS[family])
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]


IMAGES = {"type": "mlp", "hidden": [8, 8]}


@pytest.mark.parametrize(
    ("student", "loc", "message"),
    [
        ({}, ("model",), "is missing"),
        ({"shrink": {"width": 0}}, ("shrink", "width"), "above 0"),
        ({"shrink": {"width": 1.5}}, ("shrink", "width"), "at most 1"),
        ({"shrink": {"of": "student"}}, ("shrink", "of"), "must be 'teacher'"),
        ({"shrink": {"depht": 0.5}}, ("shrink", "depht"), "did you mean 'depth'"),
        ({"shrink": "half"}, ("shrink",), "must be a mapping"),
        ({"shrink": {"depth": 0.9}}, ("shrink", "depth"), "no less than the teacher has"),
        ({"max_parameters": 0}, ("max_parameters",), "at least 1"),
        ({"max_parameters": "many"}, ("max_parameters",), "whole number"),
        ({"max_parameters": 9}, ("max_parameters",), "the smallest mlp has 160"),
        ({"max_parameters": 9, "family": "mlp"}, ("max_parameters",), "another `family`"),
        ({"max_parameters": 9000, "family": "lstm"}, ("family",), "lstm reads texts"),
        ({"max_parameters": 9000, "family": "torchvision"}, ("family",), "must be 'mlp'"),
        ({"max_parameters": 9000, "view": {"type": "bag_of_words"}}, ("view", "type"), "texts"),
        ({"max_parameters": 9000, "shrink": {}}, ("max_parameters",), "give either"),
        ({"family": "mlp", "model": {"type": "mlp"}}, ("family",), "is for `max_parameters`"),
        ({"max_parameters": 99, "model": {"type": "mlp"}}, ("max_parameters",), "9,610 parameters, 99 are allowed"),
        ({"model": {"type": "mlp"}, "initialize": "from_teacher", "weights": {"file": "a.safetensors"}},
         ("initialize",), "give either"),
        ({"model": {"type": "mlp"}, "initialize": "half"}, ("initialize",), "'from_teacher'"),
        ({"model": {"type": "cnn"}, "initialize": "from_teacher"}, ("initialize",), "only like is copied to like"),
        ({"shrink": {"width": 0.5}, "initialize": "from_teacher"}, ("initialize",), "only whole layers are copied"),
        ({"model": {"type": "mlp", "hidden": [8, 8, 8]}, "initialize": "from_teacher"}, ("initialize",), "has not"),
        ({"model": {"type": "mlp"}, "weights": {"file": "../a.safetensors"}}, ("weights", "file"), "'..'"),
        ({"model": {"type": "mlp"}, "weights": {"job": "job_1"}}, ("weights", "job"), "must match"),
    ],
)  # fmt: skip
def test_bad_wishes_lead_to_their_field(student: dict[str, Any], loc: tuple[str, ...], message: str) -> None:
    [(found, said)] = refusal(student, IMAGES)
    assert found == ("student", *loc)
    assert message in said


def test_without_a_teacher_nothing_is_made_thinner_or_copied() -> None:
    alone = {"stages": [{"losses": [{"type": "cross_entropy"}]}]}
    assert refusal({"shrink": {}}, **alone)[0][0] == ("student", "shrink", "of")
    [(loc, _)] = refusal({"model": {"type": "mlp"}, "initialize": "from_teacher"}, **alone)
    assert loc == ("student", "initialize")


def test_what_else_is_wrong_is_said_and_nothing_of_a_stand_in() -> None:
    for teacher, loc in (({"type": "mlq"}, ("teachers", 0, "model", "type")),
                         ({"type": "mlp", "hidden": [0]}, ("teachers", 0, "model", "hidden", 0))):  # fmt: skip
        assert [place for place, _ in refusal({"shrink": {}}, teacher)] == [loc]
    errors = refusal({"max_parameters": 500}, MLP, data={"type": "digits", "validation": 5000})
    assert [place for place, _ in errors] == [("data", "validation")]
    assert [place for place, _ in refusal({"max_parameters": 500}, MLP, data={"type": "digit"})] == [("data", "type")]


@pytest.mark.parametrize(
    ("teacher", "depth", "pairs"),
    [
        ({"type": "vit", "layers": 6}, 0.5, {"layers.1.mix.bias": "layers.2.mix.bias", "token": "token"}),
        ({"type": "resnet", "depth": 26}, 0.5, {"stages.1.1.main.0.weight": "stages.1.2.main.0.weight"}),
        ({"type": "wide_resnet", "depth": 28}, 0.5, {"stages.2.0.shortcut.weight": "stages.2.0.shortcut.weight"}),
        ({"type": "mlp", "hidden": [8] * 6}, 0.5, {"hidden.2.bias": "hidden.4.bias", "head.bias": "head.bias"}),
    ],
)
def test_every_kth_block_is_copied(teacher: dict[str, Any], depth: float, pairs: dict[str, str]) -> None:
    large = config(teacher)
    with torch.device("meta"):
        networks = [each.build((3, 16, 16), 3) for each in (shrunk(large, 1.0, depth), large)]
    found = copies(*networks)
    assert found.keys() == networks[0].state_dict().keys()
    assert found | pairs == found


SLOW = {"epochs": 1, "batch_size": 64, "optimizer": {"type": "sgd", "lr": 1e-12}}


def from_teacher(tiny: dict[str, Any]) -> dict[str, Any]:
    tiny["teachers"][0]["model"] = {"type": "mlp", "hidden": [12, 12, 12, 12]}
    return tiny | {"student": {"shrink": {"depth": 0.5}, "initialize": "from_teacher"}}


def test_student_and_baseline_begin_with_the_teachers_layers(light: Any, tiny: dict[str, Any]) -> None:
    models = light(from_teacher(tiny) | {"stages": [SLOW], "repeats": 2})[0]["models"]
    for name in ("student", "baseline", "student-2", "baseline-2"):
        for mine, theirs in (("hidden.0", "hidden.0"), ("hidden.1", "hidden.2"), ("head", "head")):
            torch.testing.assert_close(models[name][f"{mine}.weight"], models["teacher-1"][f"{theirs}.weight"])


def test_a_student_from_its_teacher_resumes_to_the_same_bytes(light: Any, tiny: dict[str, Any]) -> None:
    document = from_teacher(tiny)
    wanted, whole = light(document)
    for at in (3, whole.polls - 3):  # while the teacher trains, and within the student's last epoch
        reporter = RecordingReporter(request="pause", request_at=at)
        with pytest.raises(Interrupted):
            light(document, reporter)
        assert light(document, resume=reporter.checkpoints[-1].path)[0]["digests"] == wanted["digests"]


def warm(tiny: dict[str, Any]) -> dict[str, Any]:
    return tiny | {"student": {"model": {"type": "mlp", "hidden": [8]}, "weights": {"file": "s.safetensors"}}}


def test_student_and_baseline_begin_with_given_weights(light: Any, tiny: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(3)
    given = config({"type": "mlp", "hidden": [8]}).build((1, 8, 8), 10).state_dict()
    save_file(given, tmp_path / "s.safetensors")
    still = light(warm(tiny) | {"stages": [SLOW]})[0]["models"]
    for name in ("student", "baseline"):
        torch.testing.assert_close(still[name], dict(given))
    wanted, whole = light(warm(tiny))
    assert not torch.equal(wanted["models"]["student"]["head.bias"], given["head.bias"])
    reporter = RecordingReporter(request="pause", request_at=whole.polls // 2)
    with pytest.raises(Interrupted):
        light(warm(tiny), reporter)
    (tmp_path / "s.safetensors").unlink()  # the checkpoint has it
    assert light(warm(tiny), resume=reporter.checkpoints[-1].path)[0]["digests"] == wanted["digests"]


@pytest.mark.parametrize(
    ("made", "code", "message"),
    [
        (None, "no_student_weights", "the student's weights are not there"),
        ({"type": "mlp", "hidden": [9]}, "bad_student_weights", "the model's is [8, 64]"),
        (b"no weights", "bad_student_weights", "cannot be the student's weights"),
    ],
)
def test_weights_that_are_not_the_students(
    light: Any, tiny: dict[str, Any], tmp_path: Path, made: Any, code: str, message: str
) -> None:
    if isinstance(made, bytes):
        (tmp_path / "s.safetensors").write_bytes(made)
    elif made is not None:
        save_file(config(made).build((1, 8, 8), 10).state_dict(), tmp_path / "s.safetensors")
    with pytest.raises(TrainingError) as caught:
        light(warm(tiny))
    assert (caught.value.code, caught.value.kind) == (code, "user")
    assert message in caught.value.message


def test_weights_of_another_job_need_their_file(light: Any, tiny: dict[str, Any], tmp_path: Path) -> None:
    document = warm(tiny)
    document["student"]["weights"] = {"job": "job_" + "0" * 26}
    with pytest.raises(TrainingError, match="the student's weights are another job's"):
        light(document)
    path = tmp_path / "elsewhere.safetensors"
    save_file(config({"type": "mlp", "hidden": [8]}).build((1, 8, 8), 10).state_dict(), path)
    assert light(document, student_weights=path)[0]["models"]["student"]
