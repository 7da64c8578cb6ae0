"""A job that was interrupted, wherever and however often, ends as if it had not been."""

from pathlib import Path
from typing import Any

import pytest
import torch

from kdcore.choices import cpu_name
from kdcore.errors import TrainingError
from kdcore.opening import choose_here
from kdcore.reporter import Interrupted, RecordingReporter, Request
from kdcore.spec import parse_spec
from tests.versions import rewrite

Points = dict[tuple[str, int, str], float]


def points(*reporters: RecordingReporter) -> Points:
    """Every reported value by stage, step and name; what two runs both reported must be equal."""
    found: Points = {}
    for reporter in reporters:
        for stage, step, values in reporter.points:
            for name, value in values.items():
                assert found.setdefault((stage, step, name), value) == value, (stage, step, name)
    return found


def interrupted(light: Any, document: dict[str, Any], polls: int, request: Request = "pause", **options: Any) -> Any:
    """Run with a pause after every `polls` polls, to the end."""
    reporters: list[RecordingReporter] = []
    resume: Path | None = None
    for _ in range(1000):
        reporters.append(RecordingReporter(request, request_at=polls))
        try:
            left, _ = light(document, reporters[-1], resume=resume, **options)
        except Interrupted:
            resume = reporters[-1].checkpoints[-1].path
            torch.rand(7)  # whatever the next process has done with its generators
        else:
            return left, reporters
    raise AssertionError("never finished")


@pytest.mark.parametrize("polls", [2, 5, 11])
def test_paused_again_and_again_it_ends_in_the_same_bytes(light: Any, tiny: dict[str, Any], polls: int) -> None:
    wanted, whole = light(tiny)
    found, reporters = interrupted(light, tiny, polls)
    assert len(reporters) > 3  # with 2, an interruption before every second step and in each validation
    assert found["digests"] == wanted["digests"]
    assert found["selected"] == wanted["selected"]
    assert points(*reporters) == points(whole)


def test_several_stages_of_all_kinds(light: Any, tiny: dict[str, Any]) -> None:
    first = tiny["stages"][0]
    tiny["data"]["train_samples"] = 150
    tiny["student"]["model"] = {"type": "cnn", "channels": [4, 6], "hidden": [8], "batch_norm": True, "dropout": 0.1}
    adam = {"type": "adamw", "lr": 0.01}
    tiny["stages"] = [
        {**first, "epochs": 3, "early_stopping": {"patience": 1}},
        {
            **first,
            "optimizer": adam,
            "schedule": {"type": "step", "milestones": [1]},
            "losses": [{"type": "logit_mse"}],
        },
    ]
    wanted, whole = light(tiny)
    found, reporters = interrupted(light, tiny, 5, "drain")
    assert found["digests"] == wanted["digests"]
    assert found["selected"] == wanted["selected"]
    assert points(*reporters) == points(whole)
    assert set(wanted["selected"]) == {"teacher-1", "baseline-1", "baseline-2", "distill-1", "distill-2"}


def test_values_that_wait_on_the_device_are_read_before_a_checkpoint(
    light: Any, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values are read every 64 steps; whatever a checkpoint covers has been reported."""
    monkeypatch.setattr("kdcore.recorder.READ_SECONDS", 3600.0)
    _, whole = light(tiny)
    _, reporters = interrupted(light, tiny, 4)
    assert points(*reporters) == points(whole)


class Crash(RecordingReporter):
    """Dies, without a checkpoint, when asked for the n-th time."""

    def requested(self) -> Request | None:
        if super().requested():
            raise KeyboardInterrupt
        return None


@pytest.mark.parametrize("at", [6, 13, 24, 31])
def test_a_crash_goes_on_from_an_older_checkpoint(light: Any, tiny: dict[str, Any], at: int) -> None:
    tiny["checkpoint"]["every_steps"] = 3
    wanted, whole = light(tiny)
    crashed = Crash("cancel", request_at=at)
    with pytest.raises(KeyboardInterrupt):
        light(tiny, crashed)
    found, rest = light(tiny, resume=crashed.checkpoints[-1].path)
    assert found["digests"] == wanted["digests"]
    assert points(crashed, rest) == points(whole)


def test_at_a_stage_border_nothing_is_trained_twice(light: Any, tiny: dict[str, Any]) -> None:
    wanted, whole = light(tiny)
    assert [saved.stage for saved in whole.checkpoints][:2] == ["baseline", "distill-1"]
    found, rest = light(tiny, resume=whole.checkpoints[-1].path)
    assert rest.stages == []
    assert found["digests"] == wanted["digests"]


def test_a_point_is_never_reported_twice_in_a_run(light: Any, tiny: dict[str, Any]) -> None:
    _, whole = light(tiny)
    keys = [(stage, step, name) for stage, step, values in whole.points for name in values]
    assert len(keys) == len(set(keys))


def test_the_checkpoint_of_another_spec_is_refused(light: Any, tiny: dict[str, Any]) -> None:
    _, whole = light(tiny)
    tiny["seed"] = 1
    with pytest.raises(TrainingError, match="another spec"):
        light(tiny, resume=whole.checkpoints[-1].path)


def test_other_data_than_the_checkpoint_s_is_refused(light: Any, tiny: dict[str, Any]) -> None:
    _, whole = light(tiny)
    path = whole.checkpoints[-1].path
    rewrite(path, data_digest="sha256:other")
    with pytest.raises(TrainingError, match="data has changed"):
        light(tiny, resume=path)


def test_choices_come_from_the_checkpoint_and_changed_ones_are_told(light: Any, tiny: dict[str, Any]) -> None:
    _, whole = light(tiny)
    path = whole.checkpoints[-1].path
    _, rest = light(tiny, resume=path)
    assert "choices_changed" not in [name for name, _ in rest.events]
    assert dict(rest.events)["resumed_from_checkpoint"]["stage"] == "evaluation"
    rewrite(path, choices={"cpu": "another"})
    _, rest = light(tiny, resume=path)  # with the choices that were stored, as a worker does
    told = dict(rest.events)["choices_changed"]
    assert (told["before"]["cpu"], told["now"]["cpu"]) == ("another", cpu_name())
    _, rest = light(tiny, resume=path, choices=choose_here(parse_spec(tiny)))
    assert dict(rest.events)["choices_changed"]["before"]["cpu"] == "another"
