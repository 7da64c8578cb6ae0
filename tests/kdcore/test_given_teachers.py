"""Teachers from elsewhere: classes by name, timm's networks, and what they are worth before they teach."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from kdcore import export
from kdcore.data import DigitsConfig, Places
from kdcore.examine import constant_output
from kdcore.models import MLPConfig, ModelError, TimmConfig, mapped
from kdcore.plan import make_plan
from kdcore.reporter import Interrupted, RecordingReporter
from kdcore.spec import SpecError, TeacherConfig, parse_spec
from kdcore.teacher import load_weights

NAMES = ["x", *map(str, reversed(range(10))), "y"]


def teacher(path: Path, outputs: int, **changes: Any) -> dict[str, Any]:
    """An MLP's file, and the teacher that it is."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        save_file(MLPConfig(hidden=[16]).build((1, 8, 8), outputs).state_dict(), path / "t.safetensors")
    return {"model": {"type": "mlp", "hidden": [16]}, "weights": {"file": "t.safetensors"}, **changes}


def test_logits_are_cut_to_the_datas_classes_by_name() -> None:
    inner = MLPConfig(hidden=[4]).build((1, 8, 8), 4).eval()
    network = mapped(inner, ["d", "b", "a", "c"], ["a", "b", "c"]).eval()
    inputs = torch.rand(5, 1, 8, 8)
    views = network.views(inputs)
    torch.testing.assert_close(views["logits"], inner(inputs)[:, [2, 1, 3]])
    assert list(views) == ["hidden_1", "logits"]
    found = network.classifier()
    if found is not None:
        torch.testing.assert_close(found[1](views[found[0]]), views["logits"])
    assert mapped(inner, None, ["a"]) is inner
    assert mapped(inner, ["a", "b"], ("a", "b")) is inner


def test_a_job_learns_from_more_classes_and_resumes_to_the_same_bytes(light: Any, tiny: Any, tmp_path: Path) -> None:
    tiny["teachers"] = [teacher(tmp_path, 12, classes=NAMES)]
    assert make_plan(parse_spec(tiny)).teachers[0].layers[-1].shape == [10]
    wanted, whole = light(tiny)
    reporter = RecordingReporter(request="pause", request_at=3)  # while the teacher is examined, or soon after
    with pytest.raises(Interrupted):
        light(tiny, reporter)
    found, _ = light(tiny, resume=reporter.checkpoints[-1].path)
    assert found["digests"] == wanted["digests"]
    ((step, values),) = [(step, values) for stage, step, values in whole.points if stage == "teacher-1"]
    assert step == 0
    assert values.keys() == {f"validation/{name}" for name in ("accuracy", "top_k_accuracy", "macro_f1", "nll", "ece")}
    if values["validation/accuracy"] <= wanted_constant():
        assert [event for event, _ in whole.events].count("teacher_worse") == 1


def wanted_constant() -> float:
    """The accuracy of always saying the most frequent digit, on the validation split."""
    data = DigitsConfig(train_samples=200).load(Places(Path()))
    return (data.validation.labels == data.train.labels.bincount().argmax()).double().mean().item()


def test_a_teacher_worse_than_a_constant_is_said(light: Any, tiny: Any, tmp_path: Path) -> None:
    """Its weights are zeros but for the bias of a rare class: it always says the same, and seldom the right thing."""
    data = DigitsConfig(train_samples=200).load(Places(tmp_path))
    rare = int(data.validation.labels.bincount(minlength=10).argmin())
    network = MLPConfig(hidden=[]).build((1, 8, 8), 10)
    weights = {name: torch.zeros_like(value) for name, value in network.state_dict().items()}
    next(value for value in weights.values() if value.ndim == 1)[rare] = 1.0
    save_file(weights, tmp_path / "t.safetensors")
    tiny["teachers"] = [{"model": {"type": "mlp", "hidden": []}, "weights": {"file": "t.safetensors"}}]
    _, reporter = light(tiny)
    ((_, told),) = [event for event in reporter.events if event[0] == "teacher_worse"]
    assert (told["teacher"], told["than"], told["score"]) == ("teacher-1", "majority", "accuracy")
    assert told["other"] == pytest.approx(wanted_constant())
    assert told["value"] < told["other"]


def test_a_constant_is_the_majority_or_the_mean() -> None:
    data = DigitsConfig().load(Places(Path()))
    constant = constant_output("classification", data.train)
    assert constant is not None
    assert constant.argmax() == data.train.labels.bincount().argmax()
    assert constant_output("embedding", data.train) is None


def plan_errors(document: dict[str, Any]) -> list[tuple[tuple[str | int, ...], str]]:
    with pytest.raises(SpecError) as caught:
        make_plan(parse_spec(document))
    return caught.value.errors


@pytest.mark.parametrize(
    ("changes", "loc", "message"),
    [
        ({"classes": NAMES[:5]}, ("classes",), "the data's '0', '1', '2', '3', '4', '5' are not among"),
        ({"classes": [*NAMES, "x"]}, ("classes",), "'x' is there twice"),
        ({"classes": NAMES, "weights": None}, ("classes",), "is trained here learns the data's classes"),
        ({"classes": NAMES, "model": {"type": "mlp", "classes": 10}}, ("model", "classes"), "`classes` has 12"),
    ],
)
def test_classes_that_do_not_fit(tiny: Any, tmp_path: Path, changes: Any, loc: Any, message: str) -> None:
    tiny["teachers"] = [teacher(tmp_path, 12, **changes)]
    ((found, said),) = plan_errors(tiny)
    assert found == ("teachers", 0, *loc)
    assert message in said


@pytest.mark.parametrize("weights", [{"model": "mdl_" + "0" * 26}, {"job": "job_" + "0" * 26}])
def test_weights_by_their_id(light: Any, tiny: Any, tmp_path: Path, weights: dict[str, str]) -> None:
    given = teacher(tmp_path, 10, weights=weights)
    assert TeacherConfig.model_validate(given).is_given
    found, _ = light(tiny | {"teachers": [given]}, teacher_weights={0: tmp_path / "t.safetensors"})
    assert "student" in found["digests"]
    with pytest.raises(ValueError, match="weights"):
        TeacherConfig.model_validate(given | {"weights": {"model": "mdl_short"}})


def test_timm_loads_its_own_names_and_gives_views(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    original = timm.create_model("resnet10t", pretrained=False, num_classes=5)
    torch.save(original.state_dict(), tmp_path / "w.pt")
    network = TimmConfig(name="resnet10t").build((3, 32, 32), 5)
    network.load_state_dict(load_weights(tmp_path / "w.pt", network))
    inputs = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(network.eval()(inputs), original.eval()(inputs))
    views = network.views(inputs)
    assert {"layer1", "layer4", "pooled", "logits"} <= views.keys()
    found = network.classifier()
    assert found is not None
    torch.testing.assert_close(found[1](views[found[0]]), views["logits"])
    export.save_weights(tmp_path / "student.safetensors", network.state_dict())
    from safetensors.torch import load_file

    assert load_file(tmp_path / "student.safetensors").keys() == original.state_dict().keys()


def test_timms_networks_of_one_size_take_the_datas() -> None:
    pytest.importorskip("timm")
    with torch.device("meta"):
        network = TimmConfig(name="vit_tiny_patch16_224").build((1, 32, 32), 5).eval()
        views = network.views(torch.empty(2, 1, 32, 32))
    assert views["logits"].shape == (2, 5)
    assert views["pooled"].shape == (2, 192)
    with torch.device("meta"):  # its logits are the mean of two heads
        assert TimmConfig(name="deit_tiny_distilled_patch16_224").build((3, 32, 32), 5).classifier() is None
    with pytest.raises(ModelError, match="timm has no network 'resnet18x'; resnet18"):
        TimmConfig(name="resnet18x").build((3, 32, 32), 5)


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tiny: Any) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    ((loc, said),) = plan_errors(tiny | {"student": {"model": {"type": "timm"}}})
    assert loc == ("student", "model", "type")
    assert "distillery[timm]" in said


@pytest.mark.parametrize("name", ["hf-hub:timm/resnet18", "hf_hub:a/b", "local-dir:/tmp", "../x"])
def test_a_name_cannot_ask_a_hub(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        TimmConfig(name=name)


def test_nothing_of_a_mapped_teacher_is_trained(tmp_path: Path) -> None:
    network = mapped(MLPConfig(hidden=[4]).build((1, 8, 8), 3), ["c", "b", "a"], ["a", "b", "c"])
    assert isinstance(network, nn.Module)
    assert network.output_bias() is None
