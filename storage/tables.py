"""The tables. Times are seconds since 1970 by the database's clock."""

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    ColumnElement,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Text,
    func,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

Json = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
BigInt = BigInteger().with_variant(Integer, "sqlite")
JobId = String(64)


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {str: String(), float: Double(), int: Integer(), dict[str, Any]: Json}  # noqa: RUF012


def job_key() -> Mapped[str]:
    return mapped_column(JobId, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)


class Job(Base):
    """What a user submitted: spec and status; or the check of an upload, which the service submitted (`IS_JOB`)."""

    __tablename__ = "jobs"

    id: Mapped[str] = mapped_column(JobId, primary_key=True)
    owner: Mapped[str] = mapped_column(String(100))
    name: Mapped[str] = mapped_column(String(100))
    status: Mapped[str] = mapped_column(String(16))
    request: Mapped[str | None] = mapped_column(String(16))
    """A pending `cancel` or `pause` of a running job."""
    stage: Mapped[str | None] = mapped_column(String(60))
    attempt: Mapped[int] = mapped_column(default=0)
    """Number of the last attempt: the fencing token."""
    priority: Mapped[int] = mapped_column(default=0)
    device: Mapped[str] = mapped_column(String(16))
    """What it must run on; `auto` until the first attempt has chosen."""
    spec: Mapped[dict[str, Any]]
    spec_digest: Mapped[str] = mapped_column(String(80))
    plan: Mapped[dict[str, Any]]
    choices: Mapped[dict[str, Any] | None]
    """Whatever can change the student's bits, chosen by the first attempt for all."""
    progress: Mapped[dict[str, Any] | None]
    result: Mapped[dict[str, Any] | None]
    error: Mapped[dict[str, Any] | None]
    created_at: Mapped[float]
    started_at: Mapped[float | None]
    finished_at: Mapped[float | None]
    updated_at: Mapped[float]
    available_at: Mapped[float]
    """Not claimed before this time: the pause after a system failure."""
    worker_id: Mapped[str | None] = mapped_column(String(64))
    lease_expires_at: Mapped[float | None]
    stepped_at: Mapped[float | None]
    """When training last moved on: what tells a hang from work."""
    spent_seconds: Mapped[float] = mapped_column(default=0.0)
    """Time of the attempts that ended since submission or retry."""
    failures: Mapped[int] = mapped_column(default=0)
    """Consecutive system failures without a newer checkpoint."""
    rung_at: Mapped[float | None]
    rings: Mapped[int] = mapped_column(default=0)
    version: Mapped[int] = mapped_column(BigInt, default=1)
    """Grows with every visible change: the ETag."""
    last_event: Mapped[int] = mapped_column(default=0)
    """Id of the job's newest event."""

    __table_args__ = (
        Index("ix_jobs_queue", "status", "priority", "id"),
        Index("ix_jobs_owner_id", "owner", "id"),
        Index("ix_jobs_owner_name_id", "owner", "name", "id"),
        Index("ix_jobs_owner_status_id", "owner", "status", "id"),
        Index("ix_jobs_owner_name_status_id", "owner", "name", "status", "id"),
        Index("ix_jobs_finished_at", "finished_at"),
        Index("ix_jobs_times", "status", "finished_at", "started_at"),
    )


MOST_TEACHERS = 16
TEACHER_JOBS = [Job.spec[("teachers", place, "weights", "job")].as_string() for place in range(MOST_TEACHERS)]
"""Which job a job has each of its teachers from; NULL for most."""
STUDENT_JOB = Job.spec[("student", "weights", "job")].as_string()
"""Which job's student a job's student begins from; NULL for most."""
NEEDED_JOBS = [*TEACHER_JOBS, STUDENT_JOB]
LAST_CHECK = "chl"
"""Between the ids of all checks and those of all jobs."""
IS_JOB: ColumnElement[bool] = Job.id > LAST_CHECK
"""Whether a user submitted it: its id begins with `job_`. What checks an upload, `chk_…`, was submitted by nobody, and
nobody is shown it as a job. As a range, so that an index serves it, in any collation."""
SPEC_VERSION = Job.spec["spec_version"].as_integer()
"""Of a job's spec."""


class number(FunctionElement[float]):  # noqa: N801 - reads as a SQL function
    """A JSON value that is a number; NULL for every other one: casting those would end the whole query."""

    type = Double()
    inherit_cache = True


@compiles(number, "postgresql")
def _number_postgresql(element: number, compiler: SQLCompiler, **options: Any) -> str:
    value = compiler.process(element.clauses, **options)
    return f"CASE jsonb_typeof({value}) WHEN 'number' THEN CAST({value} AS DOUBLE PRECISION) END"


@compiles(number, "sqlite")
def _number_sqlite(element: number, compiler: SQLCompiler, **options: Any) -> str:
    value = compiler.process(element.clauses, **options)
    return f"CASE WHEN json_type({value}) IN ('integer', 'real') THEN json_extract({value}, '$') END"


def needed_bytes(device: str) -> ColumnElement[float]:
    """What a job needs of the memory of a worker with this device: an estimate from above.

    0 where its plan does not say: another version of the API may have written it.
    """
    total, copies = (func.coalesce(number(Job.plan["memory", name]), 0.0) for name in ("total", "copies"))
    return total - copies if device == "cuda" else total  # beside a GPU the copies lie in the host's memory


class JobLabel(Base):
    """The labels of jobs, for filtering."""

    __tablename__ = "job_labels"

    job_id: Mapped[str] = job_key()
    key: Mapped[str] = mapped_column(String(63), primary_key=True)
    value: Mapped[str] = mapped_column(String(255))

    __table_args__ = (Index("ix_job_labels_key_value", "key", "value", "job_id"),)


class IdempotencyKey(Base):
    """Keys that submissions carried; a key lives as long as its job."""

    __tablename__ = "idempotency_keys"

    owner: Mapped[str] = mapped_column(String(100), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    job_id: Mapped[str] = mapped_column(JobId, ForeignKey("jobs.id", ondelete="CASCADE"), index=True)
    spec_digest: Mapped[str] = mapped_column(String(80))


class Attempt(Base):
    """One execution of a job by a worker."""

    __tablename__ = "attempts"

    job_id: Mapped[str] = job_key()
    number: Mapped[int] = mapped_column(primary_key=True)
    worker_id: Mapped[str] = mapped_column(String(64))
    started_at: Mapped[float]
    finished_at: Mapped[float | None]
    outcome: Mapped[str | None] = mapped_column(String(32))


class Event(Base):
    """A timestamped line of a job's history; ids count from 1 within the job."""

    __tablename__ = "events"

    job_id: Mapped[str] = job_key()
    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[float]
    attempt: Mapped[int]
    type: Mapped[str] = mapped_column(String(40))
    data: Mapped[dict[str, Any]]


class Metric(Base):
    """One value of one series at one step."""

    __tablename__ = "metrics"

    job_id: Mapped[str] = job_key()
    stage: Mapped[str] = mapped_column(String(60), primary_key=True)
    name: Mapped[str] = mapped_column(String(120), primary_key=True)
    step: Mapped[int] = mapped_column(BigInt, primary_key=True)
    attempt: Mapped[int]
    value: Mapped[float]

    __table_args__ = ({"sqlite_with_rowid": False},)


class Checkpoint(Base):
    """A complete checkpoint file; `path` is relative to the service's home."""

    __tablename__ = "checkpoints"

    job_id: Mapped[str] = job_key()
    id: Mapped[int] = mapped_column(primary_key=True)
    attempt: Mapped[int]
    stage: Mapped[str] = mapped_column(String(60))
    epoch: Mapped[int]
    step: Mapped[int] = mapped_column(BigInt)
    path: Mapped[str] = mapped_column(Text)
    digest: Mapped[str] = mapped_column(String(80))
    size: Mapped[int] = mapped_column(BigInt)
    created_at: Mapped[float]


class Artifact(Base):
    """A published immutable file of a job; its bytes lie in the store under their digest."""

    __tablename__ = "artifacts"

    job_id: Mapped[str] = job_key()
    name: Mapped[str] = mapped_column(String(200), primary_key=True)
    digest: Mapped[str] = mapped_column(String(80), index=True)
    size: Mapped[int] = mapped_column(BigInt)
    media_type: Mapped[str] = mapped_column(String(100))
    created_at: Mapped[float]


class Worker(Base):
    """A worker process and what it does."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    hostname: Mapped[str] = mapped_column(String(255))
    pid: Mapped[int]
    device: Mapped[str] = mapped_column(String(16))
    device_name: Mapped[str] = mapped_column(String(200))
    memory_bytes: Mapped[int] = mapped_column(BigInt)
    version: Mapped[str] = mapped_column(String(40))
    status: Mapped[str] = mapped_column(String(16))
    """`idle`, `busy`, `resting` or `draining`."""
    job_id: Mapped[str | None] = mapped_column(JobId)
    started_at: Mapped[float]
    heartbeat_at: Mapped[float]
    clock_offset: Mapped[float | None]
    """Seconds that its machine's clock is ahead of the database's."""
    spec_version: Mapped[int | None]
    """Newest version of a spec that it reads."""


class Calibration(Base):
    """What was measured of a machine that runs workers."""

    __tablename__ = "calibrations"

    hostname: Mapped[str] = mapped_column(String(255), primary_key=True)
    device: Mapped[str] = mapped_column(String(16), primary_key=True)
    """Of its workers."""
    speed: Mapped[dict[str, Any]]
    """How fast it runs exported models; the library that measured it reads it."""
    measured_at: Mapped[float]
