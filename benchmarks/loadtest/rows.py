"""A table full of jobs: copies of one that was really trained, made inside the database."""

import random
import secrets
import time
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, Double, Integer, MetaData, String, Table, case, insert, literal, null, select
from sqlalchemy.orm import Session

from loadtest.checks import RARE, RARE_JOBS, WITH_METRICS, Teams
from storage.database import Database
from storage.ids import ALPHABET
from storage.tables import Artifact, Attempt, Checkpoint, Event, Job, JobLabel, Json, Metric

COPIES_AT_ONCE = 10_000
DAYS = 60.0
TEAMS = ("vision", "speech", "search")
ERROR = {"code": "diverged", "kind": "user", "message": "the loss is not finite at step 40 of distill-1"}

copies = Table(
    "copies",
    MetaData(),
    Column("id", String, primary_key=True),
    Column("name", String),
    Column("status", String),
    Column("created_at", Double),
    Column("number", Integer),
    Column("team", String),
    prefixes=["TEMPORARY"],
)


@dataclass(frozen=True)
class Filled:
    """What a table was filled with."""

    jobs: int
    seconds: float
    finished: list[str]
    """Some of the finished jobs, the newest with series."""
    waiting: list[str]
    """Queued jobs that no worker here can take."""
    teams: Teams
    """Of all these, and of the rare ones."""


def fill(database: Database, template: str, number: int, waiting: int) -> Filled:
    """Copy a finished job until there are `number`, of which `waiting` are queued for a device that is not there."""
    begun, rows = time.monotonic(), _rows(number, waiting)
    for start in range(0, number, COPIES_AT_ONCE):
        with database.write() as session:
            copies.create(session.connection())
            session.execute(insert(copies), rows[start : start + COPIES_AT_ONCE])
            _copy(session, template, newest=number - WITH_METRICS)
            copies.drop(session.connection())
    with database.engine.connect() as connection:  # as a server does by itself, a while after so many rows
        autocommit = connection.execution_options(isolation_level="AUTOCOMMIT")
        tidy = {"postgresql": "VACUUM ANALYZE", "sqlite": "PRAGMA wal_checkpoint(TRUNCATE)"}
        autocommit.exec_driver_sql(tidy[database.engine.dialect.name])
    finished = [row["id"] for row in rows if row["status"] != "queued"][-2_000:]
    queued = [row["id"] for row in rows if row["status"] == "queued"]
    known = {*finished, *queued}
    teams = {row["id"]: row["team"] for row in rows if row["id"] in known or row["team"] == RARE}
    return Filled(number, time.monotonic() - begun, finished, queued, teams)


def _rows(number: int, waiting: int) -> list[dict[str, Any]]:
    """Oldest first; by far most succeeded, and the queued ones are the newest but for those with series."""
    chance, now = random.Random(0), time.time()
    rows = []
    for n in range(number):
        created = now - 60 - DAYS * 86_400 * (number - n) / number
        queued = number - WITH_METRICS - waiting <= n < number - WITH_METRICS
        status = "queued" if queued else chance.choices(("succeeded", "failed", "cancelled"), (90, 7, 3))[0]
        team = RARE if n % (number // RARE_JOBS) == 0 else chance.choice(TEAMS)
        name = f"sweep-{n % 500}"
        rows.append({"id": _id_of(created), "name": name, "status": status, "created_at": created, "number": n,
                     "team": team})  # fmt: skip
    return rows


def _id_of(created: float) -> str:
    number = int(created * 1_000) << 80 | secrets.randbits(80)
    return "job_" + "".join(ALPHABET[(number >> shift) & 31] for shift in range(125, -1, -5))


def _copy(session: Session, template: str, newest: int) -> None:
    new, status = copies.c, copies.c.status
    queued = status == "queued"
    later = new.created_at - select(Job.created_at).where(Job.id == template).scalar_subquery()

    def unless_queued(column: Any) -> Any:
        return case((queued, null()), else_=column)

    _insert(session, Job, Job.id == template, {
        "id": new.id, "name": new.name, "status": status, "created_at": new.created_at,
        "updated_at": Job.updated_at + later, "available_at": Job.available_at + later,
        "started_at": unless_queued(Job.started_at + later), "finished_at": unless_queued(Job.finished_at + later),
        "device": case((queued, "cuda"), else_=Job.device), "attempt": case((queued, 0), else_=Job.attempt),
        "last_event": case((queued, 1), else_=Job.last_event), "progress": unless_queued(Job.progress),
        "choices": unless_queued(Job.choices), "result": case((status == "succeeded", Job.result), else_=null()),
        "error": case((status == "failed", literal(ERROR, Json)), else_=null()),
    })  # fmt: skip
    last = Event.type == "succeeded"
    _insert(session, Event, (Event.job_id == template) & (~queued | (Event.id == 1)), {
        "job_id": new.id, "at": Event.at + later, "type": case((last, status), else_=Event.type),
        "data": case((last & (status != "succeeded"), literal({}, Json)), else_=Event.data),
    })  # fmt: skip
    _insert(session, JobLabel, (JobLabel.job_id == template) & (JobLabel.key == "team"),
            {"job_id": new.id, "value": new.team})  # fmt: skip
    times = {name: getattr(Attempt, name) + later for name in ("started_at", "finished_at")}
    _insert(session, Attempt, (Attempt.job_id == template) & ~queued, {"job_id": new.id} | times)
    _insert(session, Artifact, (Artifact.job_id == template) & (status == "succeeded"), {"job_id": new.id})
    kept = new.created_at > time.time() - 7 * 86_400
    _insert(session, Checkpoint, (Checkpoint.job_id == template) & kept & ~queued, {"job_id": new.id})
    _insert(session, Metric, (Metric.job_id == template) & (new.number >= newest), {"job_id": new.id})


def _insert(session: Session, table: Any, which: Any, changed: dict[str, Any]) -> None:
    """Each row of the template once for every copy, with some columns changed."""
    columns = [column.name for column in table.__table__.columns]
    values = [changed.get(name, getattr(table, name)).label(name) for name in columns]
    session.execute(insert(table).from_select(columns, select(*values).select_from(table).join(copies, which)))
