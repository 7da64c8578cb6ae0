"""For whoever runs the service: alive, ready, and figures."""

import anyio.to_thread
from fastapi import APIRouter, Depends, Response
from prometheus_client import CONTENT_TYPE_LATEST

from api import telemetry
from api.auth import authenticate
from api.openapi import problems
from api.problems import NotReadyError
from api.schemas import Health, Readiness, Warned
from api.service import ServiceDep

router = APIRouter(tags=["service"])


@router.get("/healthz", summary="Whether the process is alive", responses=problems(403, 500))
async def healthz() -> Health:
    return Health(status="ok")


@router.get("/readyz", summary="Whether jobs can be taken and run", responses=problems(403, 500, 503))
async def readyz(service: ServiceDep) -> Readiness:
    """Looks at database, schema, broker and workers; `errors` names what is away. What is wrong beside that is
    listed as `warnings`: `distillery doctor` says the same, and more."""
    found = await anyio.to_thread.run_sync(service.diagnosis.findings, limiter=service.examining)
    errors = [((finding.part,), finding.message) for finding in found if finding.part is not None]
    if errors:
        detail = " ".join(message for _, message in errors)
        raise NotReadyError(detail, headers={"Retry-After": "2"}, errors=errors)
    return Readiness(status="ready", warnings=[Warned.model_validate(finding) for finding in found])


@router.get(
    "/metrics",
    summary="Figures for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **problems(401, 403, 500)},
    dependencies=[Depends(authenticate)],
)
def metrics(service: ServiceDep) -> Response:
    return Response(telemetry.exposition(service.database), media_type=CONTENT_TYPE_LATEST)
