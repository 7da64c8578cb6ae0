"""How much reporting to storage slows the training loop down.

    python benchmarks/metrics_overhead.py [--rounds 9] [--epochs 24] [--postgres URL] [--out FILE]

The same distillation stage runs again and again: reporting to nobody (twice, which shows the noise) and to
storage as a worker does, in turn. Measured from the loop's first step to its last: wall-clock time, and the whole
process's CPU time, the writing thread included, which busy neighbours disturb less and which is what the loop would
lose where no second core is free. The student is tiny and the teacher small, so that a step takes less than a
millisecond of a free core. With up to 24 epochs every step is reported, the worst case; with more they are thinned.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from pydantic import SecretStr

from kdcore import train
from kdcore.choices import Choices, cpu_name
from kdcore.reporter import Interrupted, Progress, Reporter, Request, SavedCheckpoint
from kdcore.spec import JobSpec, parse_spec, spec_digest, spec_document
from storage import attempts, schema, workers
from storage.database import Database
from storage.lifecycle import Fence
from storage.settings import Settings
from storage.submissions import submit
from worker.ledger import Ledger
from worker.reporting import StorageReporter

STAGE = "distill-1"
TEACHER = {"type": "mlp", "hidden": [256, 256]}
SPEC: dict[str, Any] = {
    "data": {"type": "digits"},
    "teachers": [{"model": TEACHER, "weights": {"file": "teacher.safetensors"}}],
    "student": {"model": {"type": "mlp", "hidden": [20, 20]}},
    "baseline": False,
}


class Silent:
    """Reports to nobody."""

    def stage(self, name: str) -> None: ...
    def metrics(self, stage: str, step: int, values: Mapping[str, float]) -> None: ...
    def progress(self, progress: Progress) -> None: ...
    def event(self, type: str, data: Mapping[str, Any]) -> None: ...
    def checkpoint(self, saved: SavedCheckpoint) -> None: ...
    def requested(self) -> Request | None:
        return None


class Timed:
    """Hands everything on, and notes when the loop asked first and last within the stage that counts."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self.metrics, self.progress = reporter.metrics, reporter.progress
        self.event = reporter.event
        self._counts = False
        self._first: tuple[float, float] | None = None
        self._last = (0.0, 0.0)
        self._steps = 0

    def stage(self, name: str) -> None:
        self._counts = name == STAGE
        self._reporter.stage(name)

    def checkpoint(self, saved: SavedCheckpoint) -> None:
        self._reporter.checkpoint(saved)
        if self._counts:
            raise Interrupted("cancel")  # the stage is over; what would follow is evaluation and export

    def requested(self) -> Request | None:
        if self._counts:
            self._last = (time.perf_counter(), time.process_time())
            self._first = self._first or self._last
            self._steps += 1
        return self._reporter.requested()

    def per_step(self) -> tuple[float, float]:
        """Seconds of wall-clock and of CPU time."""
        assert self._first is not None
        wall, cpu = (last - first for last, first in zip(self._last, self._first, strict=True))
        return wall / (self._steps - 1), cpu / (self._steps - 1)


def train_teacher(root: Path) -> None:
    """Leaves `teacher.safetensors` in `root`."""
    student = {"model": {"type": "mlp", "hidden": [8]}}
    document = SPEC | {"teachers": [{"model": TEACHER, "train": {"epochs": 10}}], "student": student}
    spec = parse_spec(document | {"stages": [{"epochs": 1}]})
    train.run(spec, data_root=root, out=root / "teacher", reporter=Silent(), choices=choices())
    (root / "teacher" / "teacher-1.safetensors").rename(root / "teacher.safetensors")


POINTS = Settings().metric_points


def choices() -> Choices:
    return Choices(
        device="cpu", threads=1, precision="float32", deterministic=True, torch=torch.__version__, cpu=cpu_name()
    )


def run_once(
    spec: JobSpec, root: Path, number: int, reporter: AbstractContextManager[Reporter], out: Path
) -> tuple[float, float]:
    """Seconds per step of one run, of wall-clock and of CPU time."""
    with reporter as inner:
        timed = Timed(inner)
        with suppress(Interrupted):
            train.run(spec, data_root=root, out=out / f"run-{number}", reporter=timed, choices=choices(), points=POINTS)
    return timed.per_step()


def storage_reporter(settings: Settings, spec: JobSpec) -> Callable[[], AbstractContextManager[Reporter]]:
    """Makes reporters, each for a new job that was submitted and claimed."""
    database = Database(settings.database)
    schema.ensure(database)
    card = workers.WorkerCard("wrk_benchmark", platform.node(), os.getpid(), "cpu", cpu_name(), 0, "0", 1)

    def make() -> AbstractContextManager[Reporter]:
        with database.write() as session:
            submit(
                session, owner="local", spec=spec_document(spec), spec_digest=spec_digest(spec), plan={},
                idempotency_key=None, max_queued=10_000,
            )  # fmt: skip
        with database.write() as session:
            job = attempts.claim(session, card.id, card.serves, 3600.0)
            assert job is not None
            fence = Fence(job.id, job.attempt)
        return StorageReporter(Ledger(database, settings, fence), lambda: None)

    return make


def measure(rounds: int, epochs: int, postgres: str | None, work: Path) -> dict[str, Any]:
    spec = parse_spec(SPEC | {"stages": [{"epochs": epochs, "batch_size": 32}]})
    train_teacher(work)
    home = work / "home"
    arms: dict[str, Callable[[], AbstractContextManager[Reporter]]] = {
        "silent": lambda: nullcontext(Silent()),
        "silent again": lambda: nullcontext(Silent()),
        "sqlite": storage_reporter(Settings(home=home, data=work), spec),
    }
    if postgres is not None:
        arms["postgresql"] = storage_reporter(Settings(home=home, data=work, database_url=SecretStr(postgres)), spec)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in arms}
    for number in range(rounds + 1):
        for name, make in arms.items():
            taken = run_once(spec, work, number, make(), home / name)
            if number > 0:  # the first round warms up
                seconds[name].append(taken)
    return {
        "wall": summary({name: [wall for wall, _ in values] for name, values in seconds.items()}),
        "cpu": summary({name: [cpu for _, cpu in values] for name, values in seconds.items()}),
        "rounds": rounds,
        "epochs": epochs,
        "machine": {"cpu": cpu_name(), "cores": os.cpu_count(), "load_at_end": os.getloadavg()[0]},
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }


def summary(seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Medians, and medians of the ratios to the silent run of the same round."""
    silent = seconds["silent"]
    ratios = {name: [value / base for value, base in zip(values, silent, strict=True)]
              for name, values in seconds.items() if name != "silent"}  # fmt: skip
    return {
        "seconds_per_step": {name: statistics.median(values) for name, values in seconds.items()},
        "more_than_silent": {name: statistics.median(values) - 1 for name, values in ratios.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="How much reporting to storage slows the training loop down.")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--epochs", type=int, default=24, help="41 steps each")
    parser.add_argument("--postgres", help="URL of an empty database to measure as well")
    parser.add_argument("--out", type=Path, help="write the result here as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(options.rounds, options.epochs, options.postgres, Path(folder))
    text = json.dumps(result, indent=2) + "\n"
    print(text, end="")
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
