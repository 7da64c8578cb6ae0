"""One attempt, from the job's row to its artifacts: load, choose, resume, train, publish."""

import errno
import shutil
import traceback
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from kdcore import checkpoint, train
from kdcore.choices import Choices
from kdcore.config import SpecError
from kdcore.data import DataError
from kdcore.errors import TrainingError
from kdcore.opening import choose_here
from kdcore.reporter import Interrupted
from kdcore.spec import JobSpec, JobWeights, parse_spec
from storage import attempts, queries, records
from storage.blobs import BlobStore
from storage.database import Database
from storage.errors import BlobError, NotFoundError, StaleAttemptError
from storage.lifecycle import Fence
from storage.records import NewArtifact
from storage.settings import Settings
from storage.tables import Job
from worker.identity import whose
from worker.ledger import AWAY, Ledger
from worker.places import attempt_folder
from worker.reporting import StorageReporter
from worker.resuming import find_resume
from worker.wire import Inbox

TEACHER_WEIGHTS = "teacher-1.safetensors"
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
MEDIA_TYPES = {".json": "application/json", ".md": "text/markdown; charset=utf-8"}
"""By suffix; everything else is bytes."""


def run(fence: Fence, inbox: Inbox) -> None:
    """Run the attempt and end it in the database.

    Raises:
        StaleAttemptError: it is no longer the job's.
    """
    settings = Settings()
    ledger = Ledger(Database(settings.database), settings, fence)
    try:
        _train_and_publish(ledger, inbox)
    except Interrupted as interrupted:
        ledger.give_up(interrupted.request)
    except TrainingError as error:
        end = ledger.fail if error.kind == "user" else ledger.release
        end(error.code, error.message)
    except SpecError as error:
        ledger.fail("invalid_spec", str(error))
    except DataError as error:
        ledger.fail("bad_data", str(error))
    except (StaleAttemptError, *AWAY):
        raise
    except Exception as error:
        traceback.print_exc()
        ledger.release(*_explain(error))


def _explain(error: Exception) -> tuple[str, str]:
    """Code and message of an error that nobody foresaw; the whole of it is in the log."""
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        return "disk_full", f"no space is left for the job's files: {error.filename or 'the disk is full'}"
    lines = str(error).splitlines() or [""]
    return "crashed", f"{type(error).__name__}: {lines[0][:300]}"


def _train_and_publish(ledger: Ledger, inbox: Inbox) -> None:
    settings, folder = ledger.settings, attempt_folder(ledger.settings, ledger.fence)
    job = ledger.write(lambda session: _running_job(session, ledger.fence))
    spec = parse_spec(job.spec)
    choices = _choose(ledger, job, spec)
    resume = find_resume(ledger, job, spec)
    with StorageReporter(ledger, lambda: inbox.request) as reporter:
        result = train.run(
            spec,
            data_root=settings.data,
            out=folder / "out",
            reporter=reporter,
            choices=choices,
            checkpoint_dir=folder / "checkpoints",
            resume=resume,
            teacher_weights=_teacher_weights(ledger, job, spec),
            download=settings.allow_download,
            points=settings.metric_points,
            spec_digest=job.spec_digest,
        )
    _publish(ledger, job, folder / "out", result)


def _running_job(session: Session, fence: Fence) -> Job:
    job = session.scalar(select(Job).where(fence.holds()))
    if job is None:
        raise StaleAttemptError(f"attempt {fence.attempt} of {fence.job_id} is no longer the job's")
    return job


def _choose(ledger: Ledger, job: Job, spec: JobSpec) -> Choices:
    """What the first attempt chose, or, in the first, what suits this worker."""
    stored = job.choices
    if stored is None:
        device: Any = whose().device if spec.device == "auto" else spec.device
        chosen = choose_here(spec, device).model_dump(mode="json")
        stored = ledger.write(lambda session: records.store_choices(session, ledger.fence, chosen))
    return Choices.model_validate(stored)


def _teacher_weights(ledger: Ledger, job: Job, spec: JobSpec) -> dict[int, Path]:
    """The files of the teachers that other jobs of the same owner trained, by their place in the spec."""
    return {
        index: _teacher_file(ledger, job, teacher.weights)
        for index, teacher in enumerate(spec.teachers)
        if isinstance(teacher.weights, JobWeights)
    }


def _teacher_file(ledger: Ledger, job: Job, weights: JobWeights) -> Path:
    try:
        with ledger.database.read() as session:
            queries.get_job(session, weights.job, job.owner)
            artifact = queries.get_artifact(session, weights.job, TEACHER_WEIGHTS)
    except NotFoundError as error:
        raise TrainingError("no_teacher_weights", f"the teacher's weights are not there: {error}") from error
    try:
        path = BlobStore(ledger.settings.blobs).path(artifact.digest, artifact.size)
        if checkpoint.file_digest(path) != artifact.digest:
            raise BlobError(f"{artifact.digest} has other bytes in the store")
    except (BlobError, OSError) as error:  # a disk may come back
        raise TrainingError("no_teacher_weights", f"the teacher's weights are damaged: {error}", "system") from error
    return path


def _publish(ledger: Ledger, job: Job, out: Path, result: dict[str, Any]) -> None:
    """Files first, under their digests; then rows, result and status in one transaction."""
    store = BlobStore(ledger.settings.blobs)
    artifacts: list[NewArtifact] = []

    def commit(session: Session) -> None:
        last = session.scalar(select(Job.progress).where(Job.id == job.id)) or {}
        done = {"fraction": 1.0, "eta_seconds": 0.0, "epoch": last.get("epochs"), "step": last.get("steps")}
        records.report(session, ledger.fence, progress=last | done)
        records.publish(session, ledger.fence, artifacts)
        attempts.succeed(session, ledger.fence, result)

    for last in (False, False, True):
        artifacts = [_put(store, path) for path in sorted(out.iterdir())]
        try:
            with store.keeping((artifact.digest, artifact.size) for artifact in artifacts):
                ledger.write(commit)
            break
        except BlobError:  # this process was frozen for so long that a sweep found them old
            if last:
                raise
    shutil.rmtree(out)


def _put(store: BlobStore, path: Path) -> NewArtifact:
    digest, size = store.put(path)
    return NewArtifact(path.name, digest, size, MEDIA_TYPES.get(path.suffix, "application/octet-stream"))
