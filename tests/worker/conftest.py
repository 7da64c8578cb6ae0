"""A rig around real workers: starts them as processes, submits jobs, watches, and sees that nothing is left."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import select

from distillery import embedded
from kdcore import train
from kdcore.opening import choose_here
from kdcore.plan import make_plan
from kdcore.reporter import RecordingReporter
from kdcore.spec import parse_spec, spec_digest, spec_document
from storage import actions, queries, submissions
from storage.database import Database
from storage.queue import Doorbell
from storage.settings import Settings
from storage.tables import Artifact, Event, Job

PATIENCE = 90.0  # seconds; the machine may be busy
OWNER = "tester"

# Some seconds of training, so that there is a middle to interrupt it in.
SPEC: dict[str, Any] = {
    "data": {"type": "digits"},
    "teachers": [{"model": {"type": "mlp", "hidden": [32]}, "train": {"epochs": 20}}],
    "student": {"model": {"type": "mlp", "hidden": [8]}},
    "stages": [{"epochs": 200}],
    "baseline": False,
    "checkpoint": {"every_steps": 100},
}
SOON = 5.0
"""Seconds: less than a drain, a lease or a hang takes, on a machine that is busy, too."""
ENDLESS = SPEC | {"stages": [{"epochs": 100_000}], "tuning": {"compile": "never"}}
"""A compiler would hear no request while it runs."""


class Rig:
    """Workers with these settings, and the jobs they are given."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self.settings, self.database = settings, database
        self.workers: list[subprocess.Popen[bytes]] = []
        self.seen: dict[int, psutil.Process] = {}
        self.looked = 0.0

    def start(self) -> subprocess.Popen[bytes]:
        """A worker; returns once it is idle and, where it keeps one, its spare is started."""
        settings = self.settings
        before = self.idle()
        log = (settings.home / f"worker-{len(self.workers)}.txt").open("wb")
        worker = subprocess.Popen(
            [sys.executable, "-m", "worker"], env=environment(settings), stdout=log, stderr=log, start_new_session=True
        )
        self.workers.append(worker)
        self.until(lambda: self.idle() > before and (not settings.warm_spare or self.trainings(worker)))
        return worker

    def idle(self) -> int:
        with self.database.read() as session:
            return sum(row.status == "idle" for row in queries.workers.present(session, 60))

    def submit(self, spec: dict[str, Any], then: Callable[[Any, str], None] | None = None) -> str:
        """As the API does; `then` changes the row before anyone can see it."""
        parsed = parse_spec(spec)
        with self.database.write() as session:
            job_id = submissions.submit(
                session, owner=OWNER, spec=spec_document(parsed), spec_digest=spec_digest(parsed),
                plan=make_plan(parsed).model_dump(mode="json"), max_queued=100,
            )  # fmt: skip
            if then is not None:
                then(session, job_id)
        Doorbell(self.settings).ring("auto")
        return job_id

    def ask(self, job_id: str, action: str) -> None:
        with self.database.write() as session:
            actions.request(session, job_id, OWNER, action)
        if action in ("resume", "retry"):
            Doorbell(self.settings).ring("auto")

    def job(self, job_id: str) -> Job:
        with self.database.read() as session:
            return session.get_one(Job, job_id)

    def events(self, job_id: str) -> list[Event]:
        with self.database.read() as session:
            return list(session.scalars(select(Event).where(Event.job_id == job_id).order_by(Event.id)))

    def last(self, job_id: str, type: str) -> Event:
        return [event for event in self.events(job_id) if event.type == type][-1]

    def series(self, job_id: str) -> list[queries.Series]:
        with self.database.read() as session:
            return queries.list_series(session, job_id)

    def student(self, job_id: str) -> str:
        """The student's digest."""
        with self.database.read() as session:
            return session.get_one(Artifact, (job_id, "student.safetensors")).digest

    def log(self, job_id: str, attempt: int = 1) -> str:
        return (self.settings.jobs / job_id / f"attempt-{attempt}" / "log.txt").read_text()

    def until(self, holds: Callable[[], Any], seconds: float = PATIENCE) -> Any:
        """Wait until it holds."""
        end = time.monotonic() + seconds
        while True:
            self.look_around()
            if value := holds():
                return value
            if time.monotonic() > end:
                pytest.fail(f"waited {seconds} s in vain\n{self.describe()}")
            time.sleep(0.05)

    def until_status(self, job_id: str, *statuses: str) -> Job:
        return self.until(lambda: (job := self.job(job_id)).status in statuses and job)

    def until_training(self, job_id: str) -> Job:
        """In the middle of distillation, with a checkpoint of this attempt behind."""

        def there() -> Job | None:
            job = self.job(job_id)
            saved = [e for e in self.events(job_id) if e.type == "checkpoint" and e.attempt == job.attempt]
            there = job.status == "running" and saved and saved[-1].data["stage"] == "distill-1"
            return job if there else None

        return self.until(there)

    def look_around(self) -> None:
        """Remember every process there is; not too often, for it reads all of /proc."""
        if time.monotonic() - self.looked > 0.5:
            for worker in self.workers:
                self.tree(worker)
            self.looked = time.monotonic()

    def tree(self, worker: subprocess.Popen[bytes]) -> list[psutil.Process]:
        """A worker's descendants, remembered for the check at the end."""
        try:
            found = psutil.Process(worker.pid).children(recursive=True)
        except psutil.Error:
            return []
        self.seen |= {process.pid: process for process in found if process.pid not in self.seen}
        return found

    def trainings(self, worker: subprocess.Popen[bytes]) -> list[psutil.Process]:
        """Its training processes, oldest first, the spare included."""
        return sorted(self._with(worker, "worker.training"), key=lambda process: process.create_time())

    def child(self, worker: subprocess.Popen[bytes]) -> psutil.Process:
        """Celery's child."""
        return self._with(worker, "--billiard-fork")[0]

    def _with(self, worker: subprocess.Popen[bytes], argument: str) -> list[psutil.Process]:
        found = []
        for process in self.tree(worker):
            try:
                if argument in process.cmdline():
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def nothing_left(self, seconds: float) -> None:
        """Every process that ever belonged to a worker that has ended is gone."""
        self.until(lambda: all(worker.poll() is not None for worker in self.workers), seconds)
        end = time.monotonic() + seconds
        while left := [process for process in self.seen.values() if alive(process)]:
            assert time.monotonic() < end, f"left behind: {left}"
            time.sleep(0.05)

    def stop(self, worker: subprocess.Popen[bytes]) -> float:
        """SIGTERM; the seconds until it had ended."""
        began = time.monotonic()
        worker.send_signal(signal.SIGTERM)
        self.until(lambda: worker.poll() is not None, self.settings.drain_seconds + 30)
        return time.monotonic() - began

    def describe(self) -> str:
        logs = [path.read_text()[-3000:] for path in sorted(self.settings.home.glob("worker-*.txt"))]
        with self.database.read() as session:
            jobs = [(j.id, j.status, j.attempt, j.error) for j in session.scalars(select(Job))]
            events = [(e.job_id[-4:], e.type, e.data) for e in session.scalars(select(Event).order_by(Event.at))]
        return "\n".join([*logs, *map(str, jobs), *map(str, events[-30:])])

    def close(self) -> None:
        for worker in self.workers:
            if worker.poll() is None:
                worker.terminate()
        for worker in self.workers:
            try:
                worker.wait(self.settings.drain_seconds + 20)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
        for process in self.seen.values():
            if alive(process):
                process.kill()


def freeze(process: psutil.Process) -> None:
    """Stop it, and return when each of its threads stands still: one that has not had the processor since may still be
    given a lock that it waits for."""
    process.suspend()
    deadline = time.monotonic() + PATIENCE
    while any(state_of(each.id) != psutil.STATUS_STOPPED for each in process.threads()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def state_of(thread: int) -> str:
    try:
        return psutil.Process(thread).status()
    except psutil.NoSuchProcess:
        return psutil.STATUS_STOPPED  # it has ended


def alive(process: psutil.Process) -> bool:
    """Neither gone nor a zombie."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def environment(settings: Settings) -> dict[str, str]:
    """The variables that make these settings."""
    return embedded.environment(settings) | {"OMP_NUM_THREADS": "1"}


@pytest.fixture
def rig(settings: Settings, database: Database) -> Iterator[Rig]:
    """Quick settings; whatever is still running when the test ends is ended."""
    quick = settings.model_copy(
        update={"device": "cpu", "heartbeat_seconds": 0.2, "retry_backoff_seconds": 0.0, "warm_spare": False}
    )
    rig = Rig(quick, database)
    try:
        yield rig
    finally:
        rig.close()


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, RecordingReporter]:
    """What the library alone makes of SPEC: the student's digest, and all it reported."""
    folder: Path = tmp_path_factory.mktemp("undisturbed")
    spec, reporter = parse_spec(SPEC), RecordingReporter()
    train.run(
        spec, data_root=folder, out=folder / "out", reporter=reporter, choices=choose_here(spec, "cpu"), download=False
    )
    return f"sha256:{sha256((folder / 'out' / 'student.safetensors').read_bytes()).hexdigest()}", reporter
