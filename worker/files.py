"""The files that an attempt reads from the store, each compared with its digest before it is used."""

from collections.abc import Callable
from pathlib import Path

from kdcore import checkpoint
from kdcore.data.upload import UploadConfig
from kdcore.errors import TrainingError
from kdcore.spec import JobSpec, JobWeights, UploadWeights
from storage import queries, uploads
from storage.blobs import BlobStore
from storage.errors import BlobError, NotFoundError
from storage.tables import Job
from worker.ledger import Ledger

Poll = Callable[[], object]
ARTIFACTS = {"teacher": "teacher-1.safetensors", "student": "student.safetensors"}
"""Of a job: which of its files are its first teacher's weights, and its student's."""


def stored_file(ledger: Ledger, digest: str, size: int, poll: Poll) -> Path:
    """A file of the store.

    Args:
        poll: called while its bytes are compared; what it raises ends that.

    Raises:
        BlobError: it is not what it was, or cannot be read; a disk may come back.
    """
    try:
        path = BlobStore(ledger.settings.blobs).path(digest, size)
        if checkpoint.file_digest(path, poll) != digest:
            raise BlobError(f"{digest} has other bytes in the store")
    except OSError as error:
        raise BlobError(f"{digest} cannot be read from the store: {error.strerror}") from error
    return path


def teacher_files(ledger: Ledger, job: Job, spec: JobSpec, poll: Poll) -> dict[int, Path]:
    """The weights of the teachers that other jobs trained or that were uploaded, by their place in the spec."""
    return {
        index: _weights_file(ledger, job, teacher.weights, "teacher", poll)
        for index, teacher in enumerate(spec.teachers)
        if isinstance(teacher.weights, (JobWeights, UploadWeights))
    }


def student_file(ledger: Ledger, job: Job, spec: JobSpec, poll: Poll) -> Path | None:
    """The weights that the student begins with, where another job trained them or they were uploaded."""
    weights = spec.student.weights
    if not isinstance(weights, (JobWeights, UploadWeights)):
        return None
    return _weights_file(ledger, job, weights, "student", poll)


def _weights_file(ledger: Ledger, job: Job, weights: JobWeights | UploadWeights, whose: str, poll: Poll) -> Path:
    code = f"no_{whose}_weights"
    try:
        digest, size = _weights(ledger, job, weights, ARTIFACTS[whose])
    except NotFoundError as error:
        raise TrainingError(code, f"the {whose}'s weights are not there: {error}") from error
    try:
        return stored_file(ledger, digest, size, poll)
    except BlobError as error:
        raise TrainingError(code, f"the {whose}'s weights are damaged: {error}", kind="system") from error


def _weights(ledger: Ledger, job: Job, weights: JobWeights | UploadWeights, artifact_name: str) -> tuple[str, int]:
    """Digest and size of a file, which belongs to the job's owner.

    Raises:
        NotFoundError: it is gone.
    """
    with ledger.database.read() as session:
        if isinstance(weights, JobWeights):
            queries.get_job(session, weights.job, job.owner)
            artifact = queries.get_artifact(session, weights.job, artifact_name)
            return artifact.digest, artifact.size
        found = uploads.get_upload(session, "model", weights.model, job.owner)
        instead = (found.profile or {}).get("file")
        if instead is not None and found.check is not None:  # what the check made of it
            artifact = queries.get_artifact(session, found.check.id, instead)
            return artifact.digest, artifact.size
        return str(found.upload.digest), found.upload.size


def dataset_files(ledger: Ledger, job: Job, spec: JobSpec, poll: Poll) -> dict[str, Callable[[], Path]]:
    """What finds the uploaded dataset that the job reads, by its id: its bytes are compared where they are read, which
    they are not while the cache has its prepared form.

    Raises:
        TrainingError: it is gone; from what finds it, of kind system, it is damaged.
    """
    if not isinstance(spec.data, UploadConfig):
        return {}
    try:
        with ledger.database.read() as session:
            upload = uploads.get_upload(session, "dataset", spec.data.dataset, job.owner).upload
    except NotFoundError as error:
        raise TrainingError("no_dataset", f"the dataset is not there: {error}") from error

    def find() -> Path:
        try:
            return stored_file(ledger, str(upload.digest), upload.size, poll)
        except BlobError as error:
            raise TrainingError("no_dataset", f"the dataset's file is damaged: {error}", "system") from error

    return {upload.id: find}
