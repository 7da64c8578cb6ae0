"""Who is there to train."""

from fastapi import APIRouter

from api import schemas
from api.auth import OwnerDep
from api.service import ServiceDep
from storage import workers
from storage.queries import owned

router = APIRouter(tags=["service"])


@router.get("/workers", summary="The workers that are there")
def list_workers(service: ServiceDep, owner: OwnerDep) -> schemas.WorkerList:
    """Workers whose last heartbeat is recent."""
    with service.database.read() as session:
        there = workers.present(session, service.settings.lease_seconds)
        mine = owned(session, owner, [worker.job_id for worker in there if worker.job_id is not None])
    data = [schemas.Worker.model_validate(worker) for worker in there]
    for worker in data:
        if worker.job_id not in mine:
            worker.job_id = None
    return schemas.WorkerList(data=data)
