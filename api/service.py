"""What the routes share: settings, database, doorbell, watcher, artifacts; and the dependencies that hand them out."""

from dataclasses import dataclass, field
from typing import Annotated

from anyio import CapacityLimiter
from fastapi import Depends, Path, Request
from fastapi.dependencies.utils import get_flat_params
from fastapi.routing import APIRoute

from api.budget import Bodies
from api.problems import InvalidError
from api.reading import JobReader
from api.watch import Watcher
from kdcore.config import MAX_ERRORS
from storage.blobs import BlobStore
from storage.database import Database
from storage.diagnosis import Diagnosis
from storage.errors import NotFoundError
from storage.ids import JOB_ID
from storage.queue import Doorbell
from storage.settings import Settings

PLANS_AT_ONCE = 2
EXAMINATIONS_AT_ONCE = 4
WRITES_AT_ONCE = 8


@dataclass(frozen=True)
class Service:
    """One per API process."""

    settings: Settings
    database: Database
    doorbell: Doorbell
    watcher: Watcher
    blobs: BlobStore
    planning: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(PLANS_AT_ONCE))
    """Planning is pure computation: more threads at it would only slow every other request."""
    examining: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(EXAMINATIONS_AT_ONCE))
    """Readiness may be asked for by anyone; what waits for a part that hangs must not take the threads of others."""
    storing: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(WRITES_AT_ONCE))
    """A disk that is slow to take uploads must not take the threads of others."""
    diagnosis: Diagnosis = field(init=False)
    jobs: JobReader = field(init=False)
    bodies: Bodies = field(init=False)
    """Of specs, and of what is said of new uploads."""
    pieces: Bodies = field(default_factory=lambda: Bodies(0))
    """Of uploads that are being written: a slow disk must not keep specs away."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "jobs", JobReader(self.database, self.settings.lease_seconds))
        object.__setattr__(self, "bodies", Bodies(self.settings.max_body_bytes))
        object.__setattr__(self, "diagnosis", Diagnosis(self.settings, self.database, self.doorbell))


async def get_service(request: Request) -> Service:
    """No plain function: FastAPI would run it in a thread."""
    service: Service = request.app.state.service
    return service


async def refuse_unknown_query(request: Request) -> None:
    """A misspelt parameter must not be ignored: it would answer another question than was asked.

    Raises:
        InvalidError: names the parameters that there are.
    """
    if not request.query_params:  # of most requests: what follows is dear
        return
    route = request.scope["route"]
    params = get_flat_params(route.dependant) if isinstance(route, APIRoute) else []
    known = sorted(param.alias for param in params if param.field_info.in_.value == "query")  # type: ignore[attr-defined]
    unknown = [name for name in request.query_params if name not in known]
    if unknown:
        there = f"there are: {', '.join(known)}" if known else "there are none here"
        raise InvalidError(
            f"unknown query parameter {unknown[0]!r}; {there}",
            errors=[(("query", name), f"is unknown; {there}") for name in unknown[:MAX_ERRORS]],
        )
    for name, value in request.query_params.multi_items():
        if "\x00" in value:
            raise InvalidError(f"{name} holds a NUL character", errors=[(("query", name), "holds a NUL character")])


async def _job_id(
    job_id: Annotated[str, Path(description="A job's id.", examples=["job_01k2v9h3m4n5p6q7r8s9t0v1w2"])],
) -> str:
    if JOB_ID.fullmatch(job_id) is None:
        raise NotFoundError("there is no job of this id; ids look like job_01k2v9h3m4n5p6q7r8s9t0v1w2")
    return job_id


ServiceDep = Annotated[Service, Depends(get_service)]
JobIdDep = Annotated[str, Depends(_job_id)]
