"""What can go wrong for a user's script.

DistilleryError
├── ApiError             the service refused; has status, code, errors, request_id
├── JobFailed            the job a script waited for failed or was cancelled; has job
├── DownloadFailed       an artifact did not arrive whole
├── UploadFailed         a dataset or model cannot be used; has upload
└── ConnectionFailed     the service could not be reached, or went away too often
"""

from collections.abc import Mapping, Sequence
from typing import Any


class DistilleryError(Exception):
    """Base of everything that the client raises on its own account."""


class ApiError(DistilleryError):
    """The service refused a request.

    Attributes:
        status: the HTTP status code.
        code: a short stable name, for programs: `invalid_spec`, `not_found`, …
        errors: for a bad spec, `{"loc": [...], "message": "..."}` of each fault; `loc` leads into the spec.
        request_id: names the request in the service's log.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        errors: Sequence[Mapping[str, Any]] = (),
        request_id: str | None = None,
    ) -> None:
        self.status = status
        self.code = code
        self.message = message
        self.errors = list(errors)
        self.request_id = request_id
        faults = [f"{dotted(fault.get('loc', []))}: {fault.get('message', '')}" for fault in self.errors]
        if faults and all(fault in message for fault in faults):  # a spec's detail is all of them in one line
            message, faults = (faults[0], []) if len(faults) == 1 else (f"{len(faults)} faults", faults)
        super().__init__("\n".join([f"{message} ({status} {code})", *(f"  {fault}" for fault in faults)]))


class JobFailed(DistilleryError):  # noqa: N818 - reads as what happened
    """The job that a script waited for failed or was cancelled.

    Attributes:
        job: the job, as the service shows it.
    """

    def __init__(self, job: Mapping[str, Any]) -> None:
        self.job = dict(job)
        error = job.get("error") or {}
        why = f": {error.get('message')} ({error.get('code')})" if error else ""
        super().__init__(f"job {job.get('id')} {_PAST.get(str(job.get('status')), 'did not succeed')}{why}")


class DownloadFailed(DistilleryError):  # noqa: N818
    """An artifact did not arrive whole; what is there stays, and a new try goes on from it."""


class UploadFailed(DistilleryError):  # noqa: N818
    """A dataset or model cannot be used: its check found why.

    Attributes:
        upload: as the service shows it.
    """

    def __init__(self, upload: Mapping[str, Any]) -> None:
        self.upload = dict(upload)
        error = upload.get("error") or {}
        super().__init__(f"{upload.get('id')} cannot be used: {error.get('message')} ({error.get('code')})")


class ConnectionFailed(DistilleryError):  # noqa: N818
    """The service could not be reached, or went away too often."""


_PAST = {"failed": "failed", "cancelled": "was cancelled"}


def dotted(loc: Sequence[str | int]) -> str:
    """`["stages", 0, "losses", 1, "weight"]` as people write it: `stages[0].losses[1].weight`."""
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text or "spec"
