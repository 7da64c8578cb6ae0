"""For whoever runs the service: alive, ready, and figures."""

from collections.abc import Callable

import anyio
import anyio.to_thread
from fastapi import APIRouter, Depends, Response
from prometheus_client import CONTENT_TYPE_LATEST
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from api import telemetry
from api.auth import authenticate
from api.openapi import problems
from api.problems import NotReadyError
from api.schemas import Health
from api.service import Service, ServiceDep
from storage import schema, workers

CHECK_SECONDS = 3.0

router = APIRouter(tags=["service"])


@router.get("/healthz", summary="Whether the process is alive", responses=problems(403, 500))
async def healthz() -> Health:
    return Health(status="ok")


@router.get("/readyz", summary="Whether jobs can be taken and run", responses=problems(403, 500, 503))
async def readyz(service: ServiceDep) -> Health:
    """Asks the database, its schema, the broker, and whether a worker is there; `errors` names what is away."""
    failing: dict[str, str] = {}

    async def check(part: str, look: Callable[[Service], str | None]) -> None:
        fault: str | None = f"does not answer within {CHECK_SECONDS:g} s"
        with anyio.move_on_after(CHECK_SECONDS):
            fault = await anyio.to_thread.run_sync(look, service, abandon_on_cancel=True)
        if fault is not None:
            failing[part] = fault

    async with anyio.create_task_group() as group:
        for part, look in CHECKS.items():
            group.start_soon(check, part, look)
    if failing:
        errors = [((part,), failing[part]) for part in CHECKS if part in failing]
        detail = "; ".join(f"{loc[0]}: {fault}" for loc, fault in errors)
        raise NotReadyError(detail, headers={"Retry-After": "2"}, errors=errors)
    return Health(status="ready")


def _database(service: Service) -> str | None:
    try:
        with service.database.read() as session:
            session.execute(text("SELECT 1"))
    except SQLAlchemyError:
        return "does not answer"
    return None


def _schema(service: Service) -> str | None:
    try:
        found, needed = schema.current(service.database), schema.head()
    except SQLAlchemyError:
        return "cannot be read"
    return None if found == needed else f"is at {found or 'none'}, this version needs {needed}"


def _broker(service: Service) -> str | None:
    return None if service.doorbell.reachable() else "does not answer"


def _worker(service: Service) -> str | None:
    try:
        with service.database.read() as session:
            there = workers.present(session, service.settings.lease_seconds)
    except SQLAlchemyError:
        return "cannot be looked up"
    return None if there else "none is running"


CHECKS: dict[str, Callable[[Service], str | None]] = {
    "database": _database,
    "schema": _schema,
    "broker": _broker,
    "worker": _worker,
}


@router.get(
    "/metrics",
    summary="Figures for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **problems(401, 403, 500)},
    dependencies=[Depends(authenticate)],
)
def metrics(service: ServiceDep) -> Response:
    return Response(telemetry.exposition(service.database), media_type=CONTENT_TYPE_LATEST)
