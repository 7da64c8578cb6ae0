"""What was measured of the machines that workers run on, so that an API elsewhere can tell what takes how long."""

from typing import Any

from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from storage.database import insert_into, now
from storage.tables import Calibration, Worker
from storage.workers import serves

MOST = 20
"""Calibrations that are looked at: another version's may be among them."""


def store(session: Session, hostname: str, device: str, speed: dict[str, Any]) -> None:
    """Keep what was measured on a host, instead of what was known of it.

    Args:
        device: of the workers there: `cpu` or `cuda`.
        speed: as plain JSON values.
    """
    values = {"speed": speed, "measured_at": now()}
    row = insert_into(session, Calibration).values(hostname=hostname, device=device, **values)
    session.execute(row.on_conflict_do_update(index_elements=["hostname", "device"], set_=values))


def newest(session: Session, device: str, within_seconds: float) -> list[dict[str, Any]]:
    """What was measured where a job could run: first where a worker is now, and the newest first.

    Args:
        device: the job's: `auto`, `cpu` or `cuda`.
        within_seconds: how old the last heartbeat of a worker may be that is there.
    """
    hosts = [kind for kind in ("cpu", "cuda") if device in serves(kind)]
    there = exists().where(
        Worker.hostname == Calibration.hostname,
        Worker.device == Calibration.device,
        Worker.heartbeat_at >= now() - within_seconds,
    )
    query = select(Calibration.speed).where(Calibration.device.in_(hosts))
    return list(session.scalars(query.order_by(there.desc(), Calibration.measured_at.desc()).limit(MOST)))
