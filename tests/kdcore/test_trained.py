"""A teacher is trained once: the same bytes for every job that would train the same, whoever dies meanwhile."""

import fcntl
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kdcore import reuse, trained
from kdcore.__main__ import main
from kdcore.models.mlp import MLPConfig
from kdcore.reporter import Interrupted, RecordingReporter
from kdcore.uploads.cache import LOCK


@pytest.fixture
def shared(tmp_path: Path) -> dict[str, Any]:
    return {"cache": tmp_path / "cache"}


def told(reporter: RecordingReporter, event: str) -> list[dict[str, Any]]:
    return [data for name, data in reporter.events if name == event]


def reused(reporter: RecordingReporter) -> list[str]:
    return [each["teacher"] for each in told(reporter, "teacher_reused")]


def steps(reporter: RecordingReporter, stage: str = "teacher-1") -> int:
    """That were made and reported."""
    return len([step for name, step, values in reporter.points if name == stage and "train/loss" in values])


def test_the_next_job_takes_it_and_its_student_has_the_same_bytes(
    light: Any, tiny: dict[str, Any], shared: dict[str, Any]
) -> None:
    alone, _ = light(tiny)
    first, trainer = light(tiny, **shared)
    second, reporter = light(tiny, **shared)
    assert (steps(trainer), steps(reporter), reused(trainer), reused(reporter)) == (10, 0, [], ["teacher-1"])
    assert second["digests"] == first["digests"] == alone["digests"]
    chosen = dict(second["selected"]["teacher-1"])
    assert chosen.pop("trained_seconds") > 0
    assert chosen == alone["selected"]["teacher-1"]
    best = [point for point in trainer.points if point[0] == "teacher-1" and "validation/accuracy" in point[2]]
    (shown,) = [point for point in reporter.points if point[0] == "teacher-1"]
    assert shown in best
    assert reporter.stages[:2] == ["teacher-1", "baseline"]


def test_what_does_not_decide_its_bytes_may_differ(light: Any, tiny: dict[str, Any], shared: dict[str, Any]) -> None:
    light(tiny, **shared)
    tiny |= {"name": "other", "repeats": 2, "priority": 3, "labels": {"a": "b"}, "baseline": False}
    tiny["student"]["model"] = {"type": "mlp", "hidden": [5]}
    tiny["stages"][0] |= {"epochs": 1, "augment": {}, "losses": [{"type": "logit_mse"}]}
    tiny["checkpoint"] = {"every_steps": 3}
    assert reused(light(tiny, **shared)[1]) == ["teacher-1"]


def training(**changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda document: document["teachers"][0]["train"].update(changes)


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "seed": lambda document: document.update(seed=1),
    "select_by": lambda document: document.update(select_by="nll"),
    "precision": lambda document: document.update(precision="bf16"),
    "data": lambda document: document["data"].update(train_samples=199),
    "validation": lambda document: document["data"].update(validation=100),
    "model": lambda document: document["teachers"][0]["model"].update(hidden=[20]),
    "view": lambda document: document["teachers"][0].update(view={"type": "resize", "size": 7}),
    "epochs": training(epochs=1),
    "batch_size": training(batch_size=40),
    "augment": training(augment={"crop": 1}),
    "losses": training(losses=[{"type": "mse"}], label_smoothing=0.0),
    "place": lambda document: document["teachers"].insert(
        0, {"model": {"type": "mlp", "hidden": [4]}, "train": {"epochs": 1}}
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_recipe_is_trained(light: Any, tiny: dict[str, Any], shared: dict[str, Any], change: str) -> None:
    light(tiny, **shared)
    CHANGES[change](tiny)
    assert reused(light(tiny, **shared)[1]) == []


def test_another_machine_or_release_trains_it(
    light: Any, tiny: dict[str, Any], shared: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    light(tiny, **shared)
    monkeypatch.setattr(reuse, "cpu_name", lambda: "another processor")
    assert reused(light(tiny, **shared)[1]) == []
    monkeypatch.setattr("kdcore.__version__", "99.0")
    assert reused(light(tiny, **shared)[1]) == []
    monkeypatch.setattr(MLPConfig, "__module__", "somebody.elses")  # whose code may change under the same name
    light(tiny, **shared)
    assert reused(light(tiny, **shared)[1]) == []


@pytest.mark.parametrize("changes", [{"reuse_teachers": False}, None])
def test_only_where_it_is_wanted_and_there_is_a_cache(
    light: Any, tiny: dict[str, Any], shared: dict[str, Any], changes: Mapping[str, Any] | None
) -> None:
    light(tiny, **shared)
    _, reporter = light(tiny | changes, **shared) if changes is not None else light(tiny)
    assert (reused(reporter), steps(reporter)) == ([], 10)


def test_a_teacher_that_was_taught_depends_on_who_taught_it(
    light: Any, tiny: dict[str, Any], shared: dict[str, Any]
) -> None:
    taught = {**tiny["teachers"][0]["train"], "losses": [{"type": "kd"}], "augment": {}}
    tiny["teachers"].append({"model": {"type": "mlp", "hidden": [12]}, "train": taught})
    first, _ = light(tiny, **shared)
    second, reporter = light(tiny, **shared)
    assert reused(reporter) == ["teacher-1", "teacher-2"]
    assert second["digests"] == first["digests"]
    assert reused(light({**tiny, "keep_targets": False}, **shared)[1]) == ["teacher-1"]
    tiny["teachers"][0]["train"]["epochs"] = 3
    assert reused(light(tiny, **shared)[1]) == []


def test_a_damaged_one_is_trained_again(light: Any, tiny: dict[str, Any], shared: dict[str, Any]) -> None:
    wanted, _ = light(tiny, **shared)
    (folder,) = [path for path in shared["cache"].glob("teacher-*") if path.is_dir()]
    path = folder / trained.WEIGHTS
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    found, reporter = light(tiny, **shared)
    assert (reused(reporter), found["digests"]) == ([], wanted["digests"])
    assert reused(light(tiny, **shared)[1]) == ["teacher-1"]


class Emptying(RecordingReporter):
    """Takes the cache away while the teacher is trained."""

    def __init__(self, cache: Path) -> None:
        super().__init__()
        self.cache = cache

    def metrics(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        shutil.rmtree(self.cache, ignore_errors=True)
        super().metrics(stage, step, values)


def test_a_cache_that_goes_away_fails_no_job(
    light: Any, tiny: dict[str, Any], shared: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trained, "BEAT_SECONDS", 0.0)
    wanted, _ = light(tiny)
    found, reporter = light(tiny, Emptying(shared["cache"]), **shared)
    assert found["digests"] == wanted["digests"]
    assert told(reporter, "not_cached")[0]["what"] == "teacher-1"
    shared["cache"].write_text("a file where the folder should be")
    found, reporter = light(tiny, **shared)
    assert found["digests"] == wanted["digests"]
    assert told(reporter, "not_cached")


def test_an_attempt_that_resumes_goes_on_and_leaves_it_for_others(
    light: Any, tiny: dict[str, Any], shared: dict[str, Any], tmp_path: Path
) -> None:
    wanted, _ = light(tiny)
    paused = RecordingReporter(request="pause", request_at=4)
    with pytest.raises(Interrupted):
        light(tiny, paused, **shared)
    assert [path.name for path in shared["cache"].iterdir() if path.is_dir()] == []
    saved = paused.checkpoints[-1].path
    found, reporter = light(tiny, resume=saved, checkpoint_dir=tmp_path / "second", **shared)
    assert 0 < steps(reporter) < 10
    assert found["digests"] == wanted["digests"]
    # Now somebody has trained it: whoever was interrupted in its midst takes that over.
    found, reporter = light(tiny, resume=saved, checkpoint_dir=tmp_path / "third", **shared)
    assert (steps(reporter), reused(reporter)) == (0, ["teacher-1"])
    assert found["digests"] == wanted["digests"]


@contextmanager
def held(cache: Path) -> Iterator[None]:
    """Every teacher's lock, as by somebody who trains it and makes no step."""
    locks = [path.open("ab") for path in cache.glob(f"teacher-*{LOCK}")]
    assert locks
    for lock in locks:
        fcntl.flock(lock, fcntl.LOCK_EX)
    yield
    for lock in locks:
        lock.close()


def test_waiting_ends_where_nobody_makes_a_step(
    light: Any, tiny: dict[str, Any], shared: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trained, "SILENT_SECONDS", 0.5)
    wanted, _ = light(tiny, **shared)
    with held(shared["cache"]):
        found, reporter = light(tiny, **shared)
        paused = RecordingReporter(request="pause", request_at=6)
        with pytest.raises(Interrupted):  # waiting, or training: it is asked all the same
            light(tiny, paused, **shared)
        monkeypatch.setattr(trained, "SILENT_SECONDS", 3600.0)
        resumed, _ = light(tiny, resume=paused.checkpoints[-1].path, **shared)
    assert told(reporter, "teacher_awaited") == [{"teacher": "teacher-1"}]
    assert "no step for 0.5 s" in told(reporter, "not_cached")[0]["reason"]
    assert steps(reporter) == 10
    assert found["digests"] == resumed["digests"] == wanted["digests"]


TRAINER = """
import sys, time
from pathlib import Path
from kdcore import train
from kdcore.reporter import RecordingReporter
from kdcore.spec import parse_spec

root = Path(sys.argv[2])

class Slow(RecordingReporter):
    def requested(self):
        if self.stages and self.polls == 5:
            (root / "training").touch()
            end = time.monotonic() + 200
            while not (root / "go").exists() and time.monotonic() < end:
                time.sleep(0.05)
        return super().requested()

train.run(parse_spec(sys.argv[1]), data_root=root, out=root / "other", cache=root / "cache", reporter=Slow())
"""


class Meddling(RecordingReporter):
    """Does something once the job waits for another."""

    def __init__(self, do: Callable[[], object]) -> None:
        super().__init__()
        self.do = do

    def event(self, type: str, data: Mapping[str, Any]) -> None:
        super().event(type, data)
        if type == "teacher_awaited":
            self.do()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("how", ["finishes", "is_killed"])
def test_jobs_that_want_it_wait_for_the_one_that_trains_it(
    light: Any, tiny: dict[str, Any], shared: dict[str, Any], tmp_path: Path, how: str
) -> None:
    wanted, _ = light(tiny)
    arguments = [sys.executable, "-c", TRAINER, json.dumps(tiny), str(tmp_path)]
    with subprocess.Popen(arguments) as other:
        while not (tmp_path / "training").exists():
            assert other.poll() is None
        act = {"finishes": (tmp_path / "go").touch, "is_killed": other.kill}[how]
        found, reporter = light(tiny, Meddling(act), **shared)
        assert other.wait(300) == (0 if how == "finishes" else -signal.SIGKILL)
    assert reused(reporter) == (["teacher-1"] if how == "finishes" else [])
    assert found["digests"] == wanted["digests"]
    assert not list(shared["cache"].glob("*.part"))


@pytest.fixture
def _keep_ctrl_c() -> Iterator[None]:
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("_keep_ctrl_c")
def test_the_result_says_where_it_is_from(tiny: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(json.dumps(tiny))
    given = ["--data", str(tmp_path), "--no-download", "--cache", str(tmp_path / "cache")]
    for name in ("first", "second"):
        assert main([str(tmp_path / "job.yaml"), "--out", str(tmp_path / name), *given]) == 0
    first, second = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("first", "second"))
    model = json.loads((tmp_path / "second" / "model.json").read_text())["provenance"]
    spent = first["seconds"]["teacher-1"]
    assert first["reused"] == {}
    assert second["reused"] == {"teacher-1": {"digest": model["teacher_digests"][0], "trained_seconds": spent}}
    assert model["teachers_reused"] == ["teacher-1"]
    assert 0 < second["seconds"]["teacher-1"] != spent
    assert second["teacher"]["accuracy"] == first["teacher"]["accuracy"]
    assert second["gain"] == first["gain"]
    for file in ("student.safetensors", "teacher-1.safetensors"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()
    assert "trained for this job" in (tmp_path / "first" / "README.md").read_text()
    assert "trained for an earlier job" in (tmp_path / "second" / "README.md").read_text()
