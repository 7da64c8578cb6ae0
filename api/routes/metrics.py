"""Series, logs and checkpoints: what a job's training left."""

from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import PlainTextResponse

from api import schemas
from api.auth import OwnerDep
from api.openapi import problems
from api.service import JobIdDep, ServiceDep
from storage.errors import NotFoundError
from storage.files import is_plain
from storage.queries import get_job, list_checkpoints, list_series

NO_NUL = r"^[^\x00]*$"

router = APIRouter(prefix="/jobs/{job_id}", tags=["jobs"], responses=problems(404))


@router.get("/metrics", summary="The series of a job")
def get_metrics(
    service: ServiceDep,
    owner: OwnerDep,
    job_id: JobIdDep,
    stage: Annotated[
        str | None, Query(pattern=NO_NUL, description="Only of this stage.", examples=["distill-1"])
    ] = None,
    name: Annotated[
        str | None, Query(pattern=NO_NUL, description="Only of this name.", examples=["train/loss"])
    ] = None,
    after_step: Annotated[int | None, Query(ge=0, lt=2**63, description="Only steps above this one.")] = None,
    max_points: Annotated[
        int | None, Query(ge=1, le=1_000_000, description="At most so many per series, evenly thinned.")
    ] = None,
) -> schemas.SeriesList:
    with service.database.read() as session:
        get_job(session, job_id, owner)
        found = list_series(session, job_id, stage=stage, name=name, after_step=after_step, max_points=max_points)
    return schemas.SeriesList(data=[schemas.Series.model_validate(series) for series in found])


@router.get("/checkpoints", summary="The kept checkpoints of a job, newest first")
def get_checkpoints(service: ServiceDep, owner: OwnerDep, job_id: JobIdDep) -> schemas.CheckpointList:
    with service.database.read() as session:
        get_job(session, job_id, owner)
        found = list_checkpoints(session, job_id)
    return schemas.CheckpointList(data=[schemas.Checkpoint.model_validate(checkpoint) for checkpoint in found])


@router.get(
    "/logs",
    summary="What the training process printed",
    response_class=PlainTextResponse,
    responses={200: {"content": {"text/plain": {"example": "stage teacher-1\n"}}}},
)
def get_logs(
    service: ServiceDep,
    owner: OwnerDep,
    job_id: JobIdDep,
    attempt: Annotated[int | None, Query(ge=1, lt=2**31, description="Left out: the last one.")] = None,
) -> PlainTextResponse:
    """Its traceback included; of a long output the end. Empty before the first attempt."""
    with service.database.read() as session:
        last = get_job(session, job_id, owner).attempt
    number = last if attempt is None else attempt
    if attempt is not None and attempt > last:
        raise NotFoundError(f"{job_id} has had {last} attempts")
    path = service.settings.jobs / job_id / f"attempt-{number}" / "log.txt"
    text = _tail(path, service.settings.max_log_bytes) if is_plain(path, service.settings.jobs) else b""
    return PlainTextResponse(text.decode("utf-8", "replace"))


def _tail(path: Path, most: int) -> bytes:
    """The last bytes of a file that may be gone meanwhile."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - most))
            return file.read(most)
    except FileNotFoundError:
        return b""
