"""What storage refuses.

StorageError
├── NotFoundError         no such thing, or another owner's
├── ConflictError         not in this status
├── KeyReusedError        an idempotency key came with another spec
├── QueueFullError        too many queued jobs
├── QuotaError            an owner's uploads take too many bytes
├── StaleAttemptError     a write of an attempt that is no longer the job's
├── SchemaError           the database's schema is not this version's
└── BlobError             an artifact's bytes are missing or are not what their digest says
"""


class StorageError(Exception):
    """Base of everything storage refuses."""


class NotFoundError(StorageError):
    """No such thing, or another owner's."""


class ConflictError(StorageError):
    """The job's status does not allow it."""


class KeyReusedError(StorageError):
    """An idempotency key came with another spec."""

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        super().__init__(f"this Idempotency-Key was used for another spec, of {job_id}")


class QueueFullError(StorageError):
    """Too many queued jobs."""


class QuotaError(StorageError):
    """An owner's uploads would take more bytes than they may."""


class StaleAttemptError(StorageError):
    """The attempt is no longer the job's: whoever holds it must stop."""


class SchemaError(StorageError):
    """The database's schema is not this version's."""


class BlobError(StorageError):
    """An artifact's bytes are missing or are not what their digest says."""
