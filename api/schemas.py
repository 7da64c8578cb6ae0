"""What the API answers, as it is documented; times are seconds inside and RFC 3339 outside."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, WithJsonSchema

from kdcore.plan import Plan
from storage.lifecycle import Status


def rfc3339(seconds: float) -> str:
    """Seconds since 1970 as `2026-01-01T00:00:00.000Z`."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


Instant = Annotated[
    float,
    PlainSerializer(rfc3339, return_type=str),
    WithJsonSchema({"type": "string", "format": "date-time", "examples": ["2026-01-01T00:00:00.000Z"]}),
]


class Answer(BaseModel):
    """Base of all answers; made of a row where the names agree."""

    model_config = ConfigDict(use_attribute_docstrings=True, from_attributes=True)


class Problem(Answer):
    """An error (RFC 9457)."""

    type: str = "about:blank"
    title: str = Field(examples=["Unprocessable Content"])
    status: int = Field(examples=[422])
    code: str = Field(examples=["invalid_spec"])
    """For programs; stable."""
    detail: str = Field(examples=["stages[0].losses[0].weight: must be at least 0, found -1"])
    """For people."""
    request_id: str | None = Field(examples=["req_01k2v9h3m4n5p6q7r8s9t0v1w2"])
    """Also in the service's log."""
    errors: list["ProblemPart"] | None = None
    """Of a bad spec or parameter: each fault with the way to it."""


class ProblemPart(Answer):
    """One fault."""

    loc: list[str | int] = Field(examples=[["stages", 0, "losses", 0, "weight"]])
    """The path from the top of the spec to the field."""
    message: str = Field(examples=["must be at least 0, found -1"])


class Progress(Answer):
    """Where training is."""

    fraction: float | None = Field(default=None, examples=[0.62])
    """Of the whole job, by estimated cost."""
    epoch: int | None = Field(default=None, examples=[3])
    epochs: int | None = Field(default=None, examples=[5])
    step: int | None = Field(default=None, examples=[5100])
    """Within the stage."""
    steps: int | None = Field(default=None, examples=[8500])
    samples_per_second: float | None = Field(default=None, examples=[81000.0])
    eta_seconds: float | None = Field(default=None, examples=[4.2])


class Measures(Answer):
    """What one model is worth on the test split."""

    model_config = ConfigDict(extra="allow")

    accuracy: float | None = Field(default=None, examples=[0.95])
    parameters: int | None = Field(default=None, examples=[16330])


class StudentMeasures(Measures):
    """What a student is worth on the test split."""

    agreement: float | None = Field(default=None, examples=[0.955])
    """Share of samples on which student and teacher predict the same class."""


class Result(Answer):
    """The headline numbers; the artifact `result.json` has all of them."""

    model_config = ConfigDict(extra="allow")

    summary: str | None = None
    teacher: Measures | None = None
    baseline: StudentMeasures | None = None
    """The same student trained on the labels alone; null where there was none."""
    student: StudentMeasures | None = None


class JobError(Answer):
    """Why a job failed."""

    model_config = ConfigDict(extra="allow")

    code: str = Field(examples=["diverged"])
    message: str
    kind: Literal["user", "system"]
    """`user`: the same job would fail again. `system`: another try may succeed."""


class Queue(Answer):
    """Why a queued job waits."""

    position: int = Field(examples=[1])
    reason: str = Field(examples=["no worker with cuda"])


class JobSummary(Answer):
    """A job as lists show it."""

    id: str = Field(examples=["job_01k2v9h3m4n5p6q7r8s9t0v1w2"])
    name: str = Field(examples=["mnist-mlp"])
    status: Status
    request: Literal["cancel", "pause"] | None = None
    """What a running job was asked to do and has not done yet."""
    stage: str | None = Field(default=None, examples=["distill-1"])
    attempt: int = Field(examples=[1])
    """How many times a worker took it up."""
    progress: Progress | None = None
    """null until training runs."""
    created_at: Instant
    updated_at: Instant
    started_at: Instant | None = None
    finished_at: Instant | None = None
    result: Result | None = None
    error: JobError | None = None
    labels: dict[str, str] = Field(examples=[{"team": "vision"}])


class Job(JobSummary):
    """A job."""

    queue: Queue | None = None
    """Of a queued job: why it waits."""
    choices: dict[str, Any] | None = None
    """What the first attempt chose for all: device, threads, precision, …"""
    plan: dict[str, Any]
    """What was computed at submission; see `POST /jobs/plan`."""
    spec: dict[str, Any]
    """Complete: every default is filled in."""


class JobPage(Answer):
    """Jobs, newest first."""

    data: list[JobSummary]
    has_more: bool
    next: str | None
    """The `after` of the next page; null on the last one."""


class PlanAnswer(Plan):
    """What a job would be."""

    spec: dict[str, Any]
    """Complete: every default is filled in."""


class Event(Answer):
    """A line of a job's history."""

    id: int = Field(examples=[4])
    """Counts from 1 within the job."""
    at: Instant
    attempt: int = Field(examples=[1])
    type: str = Field(examples=["stage_started"])
    data: dict[str, Any] = Field(examples=[{"stage": "teacher-1"}])


class EventPage(Answer):
    """Events in order."""

    data: list[Event]
    has_more: bool
    next: int | None
    """The `after` of the next page; null on the last one."""


class Series(Answer):
    """One series of a stage."""

    stage: str = Field(examples=["distill-1"])
    name: str = Field(examples=["train/loss"])
    points: list[tuple[int, float]] = Field(examples=[[[10, 2.1], [20, 1.7]]])
    """Pairs of step and value."""


class SeriesList(Answer):
    """The series of a job, by stage and name."""

    data: list[Series]


class Checkpoint(Answer):
    """A training state that a next attempt can go on from."""

    id: int
    attempt: int
    stage: str = Field(examples=["distill-1"])
    epoch: int
    step: int
    size: int
    """In bytes."""
    digest: str = Field(examples=["sha256:9f86d081884c7d65…"])
    created_at: Instant


class CheckpointList(Answer):
    """The kept checkpoints, newest first."""

    data: list[Checkpoint]


class Artifact(Answer):
    """A published file."""

    name: str = Field(examples=["student.onnx"])
    size: int
    """In bytes."""
    digest: str = Field(examples=["sha256:9f86d081884c7d65…"])
    media_type: str = Field(examples=["application/octet-stream"])
    created_at: Instant
    url: str = Field(examples=["/jobs/job_01k2v9h3m4n5p6q7r8s9t0v1w2/artifacts/student.onnx"])


class ArtifactList(Answer):
    """The files of a job, by name."""

    data: list[Artifact]


class Worker(Answer):
    """A worker that is there."""

    id: str
    hostname: str
    device: str = Field(examples=["cpu"])
    device_name: str
    memory_bytes: int
    """Of that device."""
    version: str
    status: str = Field(examples=["idle"])
    """`idle`, `busy`, `draining`, or `resting`: it failed itself, and claims nothing until it can train again."""
    job_id: str | None
    """What it trains, where that is yours."""
    started_at: Instant
    heartbeat_at: Instant


class WorkerList(Answer):
    """Workers, longest there first."""

    data: list[Worker]


class CatalogEntry(Answer):
    """Something that a spec may name."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(examples=["kd"])
    title: str
    source: str
    """Where it was published."""
    doc: str
    json_schema: dict[str, Any] = Field(alias="schema")
    """JSON Schema of its part of a spec."""


class CatalogList(Answer):
    """All of one kind."""

    data: list[CatalogEntry]


class Health(Answer):
    """The process is alive."""

    status: Literal["ok"]


class Warned(Answer):
    """Something that is wrong with the deployment and does not keep jobs from being taken."""

    code: str = Field(examples=["disk_low"])
    message: str = Field(description="What it is, and how to mend it.")


class Readiness(Answer):
    """Jobs can be taken and run."""

    status: Literal["ready"]
    warnings: list[Warned]
