"""How an attempt ends well: its files, its result and the job's final status, all or nothing."""

import shutil
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from storage import attempts, records
from storage.blobs import BlobStore
from storage.errors import BlobError, StaleAttemptError
from storage.lifecycle import Fence
from storage.records import NewArtifact
from storage.tables import Job
from worker.ledger import Ledger

MEDIA_TYPES = {
    ".json": "application/json",
    ".md": "text/markdown; charset=utf-8",
    ".png": "image/png",
    ".txt": "text/plain; charset=utf-8",
    ".gz": "application/gzip",
}
"""By suffix; everything else is bytes."""


def running_job(session: Session, fence: Fence) -> Job:
    """The attempt's job.

    Raises:
        StaleAttemptError: it is no longer this attempt's.
    """
    job = session.scalar(select(Job).where(fence.holds()))
    if job is None:
        raise StaleAttemptError(f"attempt {fence.attempt} of {fence.job_id} is no longer the job's")
    return job


def publish(ledger: Ledger, job: Job, out: Path, result: dict[str, Any]) -> None:
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
