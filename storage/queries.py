"""What the API shows of jobs: one, a page, and what belongs to them. Read-only; owners see their own."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import Connection, Row, Text, bindparam, cast, func, select
from sqlalchemy.orm import InstrumentedAttribute, Session, aliased, defer

from storage import workers
from storage.database import now
from storage.errors import NotFoundError
from storage.lifecycle import Status
from storage.tables import IS_JOB, Artifact, Checkpoint, Event, Job, JobLabel, Metric, Worker, needed_bytes

GIB = 2**30
_OWNED = (Job.id == bindparam("id")) & (Job.owner == bindparam("owner"))
_ONE = select(Job).where(_OWNED)
"""Made once: SQLAlchemy takes longer to build this question than SQLite to answer it."""
_ONE_KEPT = _ONE.with_for_update(read=True)
_OF_IDS = Job.id.in_(bindparam("ids", expanding=True))
JSON_COLUMNS = frozenset({"choices", "error", "plan", "progress", "result", "spec"})
_SHOWN = (
    *(Job.id, Job.owner, Job.name, Job.status, Job.request, Job.stage, Job.attempt),
    *(Job.created_at, Job.updated_at, Job.started_at, Job.finished_at),
    *(cast(getattr(Job, name), Text).label(name) for name in sorted(JSON_COLUMNS)),
)
"""Nothing that changes while all that is shown stays, as a lease does."""
_ROWS = select(*_SHOWN).where(_OF_IDS)
_OTHER = aliased(Job)
_AHEAD = select(func.count()).select_from(_OTHER).where(
    _OTHER.status == Status.QUEUED,
    (_OTHER.priority > Job.priority) | ((_OTHER.priority == Job.priority) & (_OTHER.id < Job.id)),
)  # fmt: skip
_PLACES = select(
    Job.id,
    Job.device,
    Job.available_at,
    Job.spec["spec_version"].as_string().label("spec_version"),
    _AHEAD.correlate(Job).scalar_subquery().label("ahead"),
    needed_bytes("cpu").label("cpu"),
    needed_bytes("cuda").label("cuda"),
    now().label("clock"),
).where(_OF_IDS)
_WORKERS = select(Worker.__table__).where(workers.IS_PRESENT)


def get_job(session: Session, job_id: str, owner: str, *, keep: bool = False) -> Job:
    """A job of this owner.

    Args:
        keep: whether it must not be deleted before this transaction ends.

    Raises:
        NotFoundError: there is none.
    """
    job = session.scalar(_ONE_KEPT if keep else _ONE, {"id": job_id, "owner": owner})
    if job is None:
        raise NotFoundError(f"there is no job {job_id}")
    return job


def read_jobs(connection: Connection, job_ids: Iterable[str]) -> list[Row[Any]]:
    """Those of the jobs that there are, as bare rows: to be shown only, and to nobody but their `owner`.

    What is in `JSON_COLUMNS` is text still: equal rows are shown alike, and need not be read twice.
    """
    return list(connection.execute(_ROWS, {"ids": list(job_ids)}))


def page_jobs(
    session: Session,
    owner: str,
    *,
    limit: int,
    after: str | None = None,
    status: str | None = None,
    name: str | None = None,
    labels: Sequence[tuple[str, str]] = (),
) -> tuple[list[Job], bool]:
    """Jobs newest first, and whether there are more.

    Args:
        after: id of the last job of the page before.
        labels: pairs that a job must all carry.
    """
    query = select(Job).options(defer(Job.plan)).where(Job.owner == owner, IS_JOB).limit(limit + 1)
    id: InstrumentedAttribute[str] = Job.id
    for key, value in labels[:1]:  # from the labels' index: SQLite would look at every job for one that few carry
        carried = (JobLabel.job_id == Job.id) & (JobLabel.key == key) & (JobLabel.value == value)
        query, id = query.join(JobLabel, carried), JobLabel.job_id
    query = query.order_by(id.desc())
    if after is not None:
        query = query.where(id < after)
    if status is not None:
        query = query.where(Job.status == status)
    if name is not None:
        query = query.where(Job.name == name)
    for key, value in labels[1:]:
        also = aliased(JobLabel)
        query = query.where(
            select(also.job_id).where(also.job_id == Job.id, also.key == key, also.value == value).exists()
        )
    rows = list(session.scalars(query))
    return rows[:limit], len(rows) > limit


@dataclass(frozen=True)
class Wait:
    """Why a queued job waits."""

    position: int
    """Its place in the queue, from 1."""
    reason: str
    """In words."""


def explain_waits(connection: Connection, job_ids: Collection[str], silence_seconds: float) -> dict[str, Wait]:
    """Where queued jobs stand, by their ids; one that was deleted meanwhile is absent.

    Args:
        silence_seconds: after which a worker counts as gone.
    """
    if not job_ids:
        return {}
    there = connection.execute(_WORKERS, {"within_seconds": silence_seconds}).all()
    places = connection.execute(_PLACES, {"ids": list(job_ids)})
    return {place.id: Wait(place.ahead + 1, _reason(place, there)) for place in places}


def _reason(job: Row[Any], there: Sequence[Row[Any]]) -> str:
    fitting = [w for w in there if w.device == "cuda" or job.device != "cuda"]
    version = str(job.spec_version or 1)  # no number where another version of the API wrote so
    reading = [w for w in fitting if version.isdecimal() and (w.spec_version or 1) >= int(version)]

    def need(worker: Row[Any]) -> float:
        size: float = job.cuda if worker.device == "cuda" else job.cpu
        return size

    large = [w for w in reading if need(w) <= w.memory_bytes]
    if not there:
        reason = "no worker is running"
    elif not fitting:
        reason = f"no worker with {job.device}"
    elif not reading:
        reason = f"no worker reads spec version {version}; upgrade the workers"
    elif job.available_at > job.clock:
        reason = f"waiting {job.available_at - job.clock:.0f} s after a failure"
    elif all(w.status == "resting" for w in reading):
        reason = "no worker can train at the moment"
    elif all(w.status != "idle" for w in reading):
        reason = "all workers are busy" if len(reading) > 1 else "the worker is busy"
    elif large and all(w.status != "idle" for w in large):
        reason = "all workers with enough memory are busy"
    else:
        reason = "about to start"
    if reading and not large:
        most = max(reading, key=lambda w: w.memory_bytes)
        size = need(most)
        reason += f"; it may need {size / GIB:,.1f} GiB, and the largest worker has {most.memory_bytes / GIB:,.1f} GiB"
    return reason


def list_events(session: Session, job_id: str, *, after: int, limit: int) -> list[Event]:
    """Events of a job with ids above `after`, in order."""
    query = select(Event).where(Event.job_id == job_id, Event.id > after).order_by(Event.id).limit(limit)
    return list(session.scalars(query))


@dataclass(frozen=True)
class Series:
    """One series: its points as (step, value), ascending."""

    stage: str
    name: str
    points: list[tuple[int, float]]


def list_series(
    session: Session,
    job_id: str,
    *,
    stage: str | None = None,
    name: str | None = None,
    after_step: int | None = None,
    max_points: int | None = None,
) -> list[Series]:
    """The series of a job, in order of stage and name; each with at most `max_points`, evenly thinned."""
    query = select(Metric.stage, Metric.name, Metric.step, Metric.value).where(Metric.job_id == job_id)
    if stage is not None:
        query = query.where(Metric.stage == stage)
    if name is not None:
        query = query.where(Metric.name == name)
    if after_step is not None:
        query = query.where(Metric.step > after_step)
    found: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for row in session.execute(query.order_by(Metric.stage, Metric.name, Metric.step)):
        found.setdefault((row.stage, row.name), []).append((row.step, row.value))
    return [Series(key[0], key[1], thin(points, max_points)) for key, points in found.items()]


def thin(points: list[tuple[int, float]], most: int | None) -> list[tuple[int, float]]:
    """At most `most` points, evenly spaced; the first (for two or more) and the last are always among them."""
    if most is None or len(points) <= most:
        return points
    if most == 1:
        return points[-1:]
    last = len(points) - 1
    return [points[round(i * last / (most - 1))] for i in range(most)]


def list_checkpoints(session: Session, job_id: str) -> list[Checkpoint]:
    """The kept checkpoints of a job, newest first."""
    return list(session.scalars(select(Checkpoint).where(Checkpoint.job_id == job_id).order_by(Checkpoint.id.desc())))


def list_artifacts(session: Session, job_id: str) -> list[Artifact]:
    """The artifacts of a job by name."""
    return list(session.scalars(select(Artifact).where(Artifact.job_id == job_id).order_by(Artifact.name)))


def get_artifact(session: Session, job_id: str, name: str) -> Artifact:
    """One artifact.

    Raises:
        NotFoundError: the job has none of this name.
    """
    artifact = session.get(Artifact, (job_id, name))
    if artifact is None:
        raise NotFoundError(f"{job_id} has no artifact {name!r}")
    return artifact


@dataclass(frozen=True)
class Glance:
    """What watchers of a job are told of."""

    status: str
    stage: str | None
    request: str | None
    attempt: int
    version: int
    last_event: int
    progress: dict[str, Any] | None
    updated_at: float


def glance(session: Session, job_ids: Iterable[str]) -> dict[str, Glance]:
    """The current state of several jobs at once; deleted ones are absent."""
    columns = [getattr(Job, field.name) for field in fields(Glance)]
    rows = session.execute(select(Job.id, *columns).where(Job.id.in_(list(job_ids))))
    return {row.id: Glance(*row[1:]) for row in rows}


def owned(session: Session, owner: str, job_ids: Iterable[str]) -> set[str]:
    """Those of the jobs that are this owner's."""
    return set(session.scalars(select(Job.id).where(Job.id.in_(list(job_ids)), Job.owner == owner, IS_JOB)))
