"""Jobs whose student learns from what a loss brings along, and has no teacher."""

from pathlib import Path
from typing import Any

import pytest

from kdcore.config import SpecError
from kdcore.plan import make_plan
from kdcore.reporter import RecordingReporter
from kdcore.spec import parse_spec
from kdcore.train import run

MUTUAL: dict[str, Any] = {
    "data": {"type": "digits", "train_samples": 100},
    "teachers": [],
    "student": {"model": {"type": "mlp", "hidden": [8]}},
    "stages": [
        {"epochs": 2, "losses": [{"type": "cross_entropy"}, {"type": "mutual", "peer": {"type": "mlp", "hidden": [6]}}]}
    ],
}


def test_a_job_without_a_teacher_says_what_its_student_is_worth(tmp_path: Path) -> None:
    spec = parse_spec(MUTUAL)
    plan = make_plan(spec)
    assert (plan.teachers, plan.compression, plan.warnings) == ([], None, [])
    assert [stage.name for stage in plan.stages] == ["baseline", "distill-1"]
    result = run(spec, data_root=tmp_path, out=tmp_path / "out", reporter=RecordingReporter(), download=False)
    assert (result["teacher"], result["teachers"], result["compression"], result["speedup"]) == (None, [], None, None)
    assert result["gain"]["accuracy"] == pytest.approx(result["student"]["accuracy"] - result["baseline"]["accuracy"])
    assert "agreement" not in result["student"]
    accuracy = result["student"]["accuracy"]
    assert result["summary"].startswith(f"The student's accuracy is {accuracy:.4f}, with 610 parameters; distillation")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "eacher" not in card
    assert not (tmp_path / "out" / "teacher-1.safetensors").exists()


@pytest.mark.parametrize(
    "loss",
    [
        {"type": "kd"}, {"type": "multi_teacher"}, {"type": "hint"}, {"type": "adversarial"},
        {"type": "relative_teacher"}, {"type": "instance_graph"}, {"type": "simkd"},
        {"type": "review"}, {"type": "factor_transfer"},
    ],
    ids=lambda loss: loss["type"],
)  # fmt: skip
def test_a_loss_that_needs_a_teacher_is_refused(loss: dict[str, Any]) -> None:
    spec = parse_spec({**MUTUAL, "stages": [{"losses": [{"type": "cross_entropy"}, loss]}]})
    with pytest.raises(SpecError) as caught:
        make_plan(spec)
    ((loc, message),) = caught.value.errors
    assert loc == ("stages", 0, "losses", 1, "type")
    assert "and there is none" in message


def test_leaving_the_teachers_out_is_no_job_without_them() -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec({key: value for key, value in MUTUAL.items() if key != "teachers"})
    assert caught.value.errors[0][0] == ("teachers",)
