"""A job without stages: nothing is trained, what is given is measured and exported."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from kdcore.latency import session
from kdcore.models import MLPConfig
from kdcore.plan import make_plan
from kdcore.reporter import Interrupted, RecordingReporter
from kdcore.spec import SpecError, parse_spec
from kdcore.train import run

STUDENT, TEACHER = {"type": "mlp", "hidden": [8]}, {"type": "mlp", "hidden": [32]}


def document(**changes: Any) -> dict[str, Any]:
    return {
        "data": {"type": "digits"},
        "teachers": [{"model": TEACHER, "weights": {"file": "teacher.safetensors"}}],
        "student": {"model": STUDENT, "weights": {"file": "student.safetensors"}},
        "stages": [],
        **changes,
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    for name, config in (("student", STUDENT), ("teacher", TEACHER)):
        save_file(MLPConfig.model_validate(config).build((1, 8, 8), 10).state_dict(), tmp_path / f"{name}.safetensors")
    return tmp_path


def test_what_is_given_is_measured_and_exported(folder: Path) -> None:
    reporter = RecordingReporter()
    result = run(parse_spec(document()), data_root=folder, out=folder / "out", reporter=reporter)
    assert (result["baseline"], result["gain"], result["seconds"]) == (None, None, {})
    assert 0 <= result["student"]["accuracy"] < 0.5  # nobody trained it
    assert 0 <= result["student"]["agreement"] <= 1
    assert [stage for stage, _, _ in reporter.points] == ["teacher-1"]  # as every given teacher is
    given, left = load_file(folder / "student.safetensors"), load_file(folder / "out" / "student.safetensors")
    assert given.keys() == left.keys()
    assert all(torch.equal(given[name], left[name]) for name in given)
    inputs = np.zeros((3, 1, 8, 8), np.float32)
    assert session(folder / "out" / "student.onnx").run(["logits"], {"input": inputs})[0].shape == (3, 10)


def test_without_a_teacher_and_in_int8(folder: Path) -> None:
    spec = parse_spec(document(teachers=[], export={"int8": True}))
    result = run(spec, data_root=folder, out=folder / "out", reporter=RecordingReporter())
    assert result["teacher"] is None
    assert result["int8"]["calibration_samples"] > 0
    assert "The student's accuracy is" in result["summary"]


def test_it_can_be_paused(folder: Path) -> None:
    spec, reporter = parse_spec(document()), RecordingReporter(request="pause", request_at=1)
    with pytest.raises(Interrupted):
        run(spec, data_root=folder, out=folder / "out", reporter=reporter)
    saved = reporter.checkpoints[-1]
    assert (saved.stage, saved.epoch, saved.step) == ("evaluation", 0, 0)
    (folder / "student.safetensors").unlink()  # the checkpoint has it
    result = run(spec, data_root=folder, out=folder / "out", reporter=RecordingReporter(), resume=saved.path)
    assert result["student"]["accuracy"] >= 0


def test_the_plan_has_no_steps() -> None:
    plan = make_plan(parse_spec(document()))
    assert (plan.stages, plan.total_steps, plan.training_flops) == ([], 0, 0)
    assert plan.memory.total > 0
    assert plan.warnings == []


@pytest.mark.parametrize(
    ("changes", "loc"),
    [
        ({"student": {"model": STUDENT}}, ("student", "weights")),
        ({"teachers": [{"model": TEACHER}]}, ("teachers", 0, "train")),
        ({"repeats": 2}, ("repeats",)),
        ({"student": document()["student"] | {"offset_classes": ["3"]}}, ("student", "offset_classes")),
    ],
)
def test_what_would_need_training_is_refused(changes: dict[str, Any], loc: Any) -> None:
    with pytest.raises(SpecError) as caught:
        make_plan(parse_spec(document(**changes)))
    assert [each for each, _ in caught.value.errors] == [loc]
