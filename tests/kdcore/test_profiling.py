"""Where a step's time goes: a trace that Perfetto reads, a table, and the same student."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest

from kdcore import profiling
from kdcore.reporter import Interrupted, RecordingReporter


def rows(path: Path) -> dict[str, float]:
    """The parts of a step and their milliseconds."""
    return {label.strip(): float(ms) for label, ms in re.findall(r"^(.+?) +([\d.]+) ms +[\d.]+%$", path.read_text(),
                                                                 flags=re.MULTILINE)}  # fmt: skip


def test_a_trace_and_a_table_of_each_kind_of_stage(light: Any, tiny: dict[str, Any], tmp_path: Path) -> None:
    tiny["teachers"][0]["train"]["epochs"] = tiny["stages"][0]["epochs"] = 5
    wanted, _ = light(tiny)
    assert not list((tmp_path / "out").glob("profile*"))
    found, _ = light({**tiny, "profile": True})
    assert found["digests"] == wanted["digests"]
    names = ["teacher-1", "baseline", "distill-1"]
    files = [f"profile-{name}{kind}" for name in names for kind in (".json.gz", ".txt")]
    assert sorted(path.name for path in (tmp_path / "out").glob("profile*")) == sorted(files)
    for name in names:
        trace = json.loads(gzip.decompress((tmp_path / "out" / f"profile-{name}.json.gz").read_bytes()))
        spans = [event for event in trace["traceEvents"] if event.get("ph") == "X"]
        steps = [event for event in spans if event["name"] == "step"]
        assert len(steps) == 10
        table = (tmp_path / "out" / f"profile-{name}.txt").read_text()
        assert table.startswith(f"{name}: 10 steps of ")
        assert "aten::addmm" in table
        parts = rows(tmp_path / "out" / f"profile-{name}.txt")
        losses = {"loss cross_entropy", "loss kd"} if name == "distill-1" else {"loss cross_entropy"}
        usual = {"teachers", "student, forward", "backward", "optimizer", "everything else"}
        assert set(parts) == losses | usual
        assert all(parts[part] > 0 for part in losses | {"student, forward", "backward", "optimizer"})
        whole = float(re.findall(r"steps of ([\d.]+) ms", table)[0])
        assert sum(parts.values()) == pytest.approx(whole, rel=0.05)


def test_few_steps_are_enough_and_an_attempt_without_one_says_so(
    light: Any, tiny: dict[str, Any], tmp_path: Path
) -> None:
    tiny |= {"profile": True, "baseline": False}
    tiny["stages"][0] |= {"epochs": 1, "batch_size": 100}  # two steps
    paused = RecordingReporter(request="pause", request_at=14)
    with pytest.raises(Interrupted):
        light(tiny, paused, out=tmp_path / "first")
    assert paused.checkpoints[-1].stage == "distill-1"
    assert paused.checkpoints[-1].step >= 1
    _, reporter = light(tiny, resume=paused.checkpoints[-1].path, out=tmp_path / "second")
    reason = "this attempt made too few steps of the stage"
    assert ("file_left_out", {"name": "profile-distill-1", "reason": reason}) in reporter.events
    light(tiny, out=tmp_path / "third")
    assert (tmp_path / "third" / "profile-distill-1.txt").read_text().startswith("distill-1: 1 steps")


def test_what_is_too_large_or_cannot_be_written_fails_no_job(
    light: Any, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny |= {"profile": True, "baseline": False}
    monkeypatch.setattr(profiling, "MOST_BYTES", 100)
    wanted, reporter = light(tiny)
    assert [data["name"] for name, data in reporter.events if name == "file_left_out"] == [
        "profile-teacher-1.json.gz",
        "profile-distill-1.json.gz",
    ]
    (tmp_path / "blocked").write_text("a file where the folder should be")
    found, reporter = light(tiny, out=tmp_path / "blocked", checkpoint_dir=tmp_path / "checkpoints")
    assert found["digests"] == wanted["digests"]
    assert [data["name"] for name, data in reporter.events if name == "file_left_out"] == [
        "profile-teacher-1",
        "profile-distill-1",
    ]
