"""The lifecycle of jobs in a few lines, written from its description and not from storage's code.

One method per operation: it returns what the caller is to see and changes the state. What is refused raises
`Refused` with the name of the error, and changes nothing. Calls that came at once must have an order that explains
what they saw and what they left: `explain` looks for it.
"""

import copy
import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

TERMINAL = ("succeeded", "failed", "cancelled")
CHANGES = {  # change: (from, to)
    "claimed": (("queued",), "running"),
    "requeued": (("running",), "queued"),
    "paused": (("queued", "running"), "paused"),
    "resumed": (("paused",), "queued"),
    "cancelled": (("queued", "paused", "running"), "cancelled"),
    "succeeded": (("running",), "succeeded"),
    "failed": (("running",), "failed"),
    "retried": (("failed", "cancelled"), "queued"),
}
REQUESTS = {  # request: (what it comes to, from where at once)
    "cancel": ("cancelled", ("queued", "paused")),
    "pause": ("paused", ("queued",)),
    "resume": ("resumed", ("paused",)),
    "retry": ("retried", ("failed", "cancelled")),
}
GRANTED = {"pause": "paused", "cancel": "cancelled", "drain": "requeued"}
SERVES = {"A": ("auto", "cpu"), "B": ("auto", "cpu"), "C": ("auto", "cpu", "cuda")}
READS = {"A": 1, "B": 2, "C": 2}
"""The newest version of a spec that each worker reads."""
PIECEMEAL = ("reconcile", "sweep")
"""What takes several transactions."""
MAX_FAILURES = 3
KEPT_CHECKPOINTS = 2


class Refused(Exception):  # noqa: N818 - an outcome, not an accident
    """An operation that changes nothing; its argument is the name of the error."""


@dataclass
class Job:
    """All that the model knows of a job."""

    owner: str
    digest: str
    device: str
    priority: int
    version: int
    key: str | None = None
    teacher: str | None = None
    status: str = "queued"
    request: str | None = None
    attempt: int = 0
    failures: int = 0
    worker: str | None = None
    expired: bool = False
    """Its lease ran out."""
    resting: bool = False
    """It is not claimed yet: the pause after a failure."""
    choices: dict[str, Any] | None = None
    result: dict[str, Any] | None = None
    error: str | None = None
    events: list[tuple[str, int]] = field(default_factory=list)
    """Type and attempt of each."""
    outcomes: list[str | None] = field(default_factory=list)
    """How each attempt ended."""
    points: dict[tuple[str, str, int], tuple[float, int]] = field(default_factory=dict)
    """(stage, name, step): value and attempt."""
    checkpoints: dict[int, str] = field(default_factory=dict)
    artifacts: list[str] = field(default_factory=list)

    def move(self, change: str) -> None:
        sources, target = CHANGES[change]
        assert self.status in sources, f"the model itself is wrong: {change} of a {self.status} job"
        if self.status == "running":
            self.outcomes[-1] = change
        self.status, self.request, self.worker, self.expired, self.resting = target, None, None, False, False
        self.note(change)

    def note(self, type: str) -> None:
        self.events.append((type, self.attempt))

    def copy(self) -> "Job":
        other = copy.copy(self)
        for name in ("events", "outcomes", "points", "checkpoints", "artifacts"):
            setattr(other, name, copy.copy(getattr(self, name)))
        return other


class Model:
    """What the service promises of all jobs."""

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.gone: dict[str, int] = {}
        """Deleted jobs with their last attempt."""

    def copy(self) -> "Model":
        """One whose changes are its own."""
        other = Model()
        other.jobs = {job_id: job.copy() for job_id, job in self.jobs.items()}
        other.gone = dict(self.gone)
        return other

    def running(self, fence: tuple[str, int]) -> Job:
        job = self.jobs.get(fence[0])
        if job is None or (job.status, job.attempt) != ("running", fence[1]):
            raise Refused("StaleAttemptError")
        return job

    def owned(self, job_id: str, owner: str) -> Job:
        job = self.jobs.get(job_id)
        if job is None or job.owner != owner:
            raise Refused("NotFoundError")
        return job

    def needed(self, job_id: str) -> bool:
        """Whether a job that has not ended is to learn from this one's teacher."""
        return any(job.teacher == job_id and job.status not in TERMINAL for job in self.jobs.values())

    # What users do.

    def submit(self, *, saw: Any, owner: str, key: str | None, digest: str, most: int | None, **spec: Any) -> Any:
        teacher = spec["teacher"]
        if teacher is not None and not self.owned(teacher, owner).artifacts:
            raise Refused("NotFoundError")
        for job_id, job in self.jobs.items():
            if key is not None and (job.owner, job.key) == (owner, key):
                if job.digest != digest:
                    raise Refused("KeyReusedError")
                return job_id
        if most is not None and sum(job.status == "queued" for job in self.jobs.values()) >= most:
            raise Refused("QueueFullError")
        if saw in self.jobs or saw in self.gone or not saw.startswith("job_"):
            return "the id of a new job"
        self.jobs[saw] = Job(owner=owner, digest=digest, key=key, events=[("submitted", 0)], **spec)
        return saw

    def ask(self, job_id: str, owner: str, action: str) -> None:
        job = self.owned(job_id, owner)
        change, sources = REQUESTS[action]
        if job.status == CHANGES[change][1] or job.request == action:
            return
        if job.status == "running" and action in ("cancel", "pause") and job.request != "cancel":
            job.request = action
            job.note(f"{action}_requested")
        elif job.status in sources:
            job.move(change)
            if change == "retried":
                job.failures, job.error = 0, None
        else:
            raise Refused("ConflictError")

    def remove(self, job_id: str, owner: str) -> None:
        if self.owned(job_id, owner).status not in TERMINAL or self.needed(job_id):
            raise Refused("ConflictError")
        self.gone[job_id] = self.jobs.pop(job_id).attempt

    # What workers do.

    def claim(self, *, saw: Any, worker: str, contested: set[str] | None) -> tuple[str, int] | None:
        """`contested`, where claims pass over jobs that others are at: those; without fairness between owners then."""
        busy = Counter(job.owner for job in self.jobs.values() if job.status == "running")
        waiting = {
            job_id: (-job.priority, busy[job.owner], job_id)
            for job_id, job in self.jobs.items()
            if job.status == "queued"
            and not job.resting
            and job.device in SERVES[worker]
            and job.version <= READS[worker]
        }
        best = min(waiting, key=waiting.__getitem__, default=None)
        if contested is not None:
            taken = saw[0] if isinstance(saw, tuple) else None
            worst = waiting[taken][0] if taken in waiting else math.inf
            if all(waiting[job_id][0] >= worst for job_id in waiting.keys() - contested):
                best = taken if taken in waiting else None
        if best is None:
            return None
        job = self.jobs[best]
        job.attempt += 1
        job.outcomes.append(None)
        job.move("claimed")
        job.worker = worker
        return best, job.attempt

    def heartbeat(self, fence: tuple[str, int]) -> str | None:
        job = self.running(fence)
        job.expired = False
        return job.request

    def report(self, fence: tuple[str, int], points: list[tuple[str, str, int, float]]) -> None:
        job = self.running(fence)
        job.points |= {(s, n, step): (value, job.attempt) for s, n, step, value in points if math.isfinite(value)}

    def store_choices(self, fence: tuple[str, int], choices: dict[str, Any]) -> dict[str, Any]:
        job = self.running(fence)
        if job.choices is None:
            job.choices, job.device = choices, choices["device"]
        return job.choices

    def record_checkpoint(self, fence: tuple[str, int], name: str) -> list[str]:
        job = self.running(fence)
        job.failures = 0
        if name in job.checkpoints.values():
            return []
        newest = max(job.checkpoints, default=0) + 1
        job.checkpoints[newest] = name
        job.note("checkpoint")
        return [job.checkpoints.pop(id) for id in list(job.checkpoints) if id <= newest - KEPT_CHECKPOINTS]

    def set_aside_checkpoint(self, fence: tuple[str, int], id: int) -> None:
        job = self.running(fence)
        if job.checkpoints.pop(id, None) is not None:
            job.note("checkpoint_rejected")

    def rewind(self, fence: tuple[str, int], done: dict[str, int | None]) -> None:
        job = self.running(fence)
        last = {stage: math.inf if step is None else step for stage, step in done.items()}
        job.points = {point: value for point, value in job.points.items() if point[2] <= last.get(point[0], -1)}

    def succeed(self, fence: tuple[str, int], artifacts: list[str]) -> None:
        job = self.running(fence)
        job.move("succeeded")
        job.artifacts, job.result, job.error = sorted(artifacts), {"summary": "fine"}, None

    def fail(self, fence: tuple[str, int]) -> None:
        job = self.running(fence)
        job.move("failed")
        job.error = "diverged"

    def give_up(self, fence: tuple[str, int], reason: str) -> None:
        job = self.running(fence)
        job.move(GRANTED[max(reason, job.request or reason, key=("drain", "pause", "cancel").index)])

    def release(self, fence: tuple[str, int], code: str = "crashed") -> None:
        job = self.running(fence)
        if job.request is not None:
            return job.move(GRANTED[job.request])
        job.failures += 1
        if job.failures < MAX_FAILURES:
            job.move("requeued")
            job.resting = job.failures > 1
        else:
            job.move("failed")
            job.error = code

    # What time does, and who tidies up after it. These two take several transactions: see `parts`.

    def expire_lease(self, job_id: str) -> None:
        if job_id in self.jobs and self.jobs[job_id].status == "running":
            self.jobs[job_id].expired = True

    def end_rest(self, job_id: str) -> None:
        if job_id in self.jobs:
            self.jobs[job_id].resting = False

    def take_back(self, job_id: str, *, saw: Any = None, contested: set[str] | None = None) -> list[tuple[str, int]]:
        """`contested`, where reconcilers pass over jobs that others are at: those."""
        job = self.jobs.get(job_id)
        if job is None or not job.expired:
            return []
        if job_id in (contested or ()) and (job_id, job.attempt) not in saw:
            return []
        self.release((job_id, job.attempt), "worker_lost")
        return [(job_id, job.attempt)]

    def give_away(self, kind: str, job_ids: list[str]) -> list[str]:
        """Ended jobs give up their `checkpoints`, or their `artifacts` unless another job needs them."""
        given = 0
        for job_id in job_ids:
            job = self.jobs.get(job_id)
            if job is not None and job.status in TERMINAL and not (kind == "artifacts" and self.needed(job_id)):
                given += len(getattr(job, kind))
                getattr(job, kind).clear()
        return [kind] * given

    def parts(self, name: str, args: dict[str, Any], apart: set[str]) -> list[tuple[str, dict[str, Any]]]:
        """The transactions of an operation, each a call of its own; their results are lists, to be put together.

        Args:
            apart: jobs that others are at.
        """
        ids = sorted(self.jobs)
        if name == "reconcile":
            return [("take_back", {"job_id": job_id}) for job_id in ids if self.jobs[job_id].expired]
        if name == "sweep":
            lots = [[job_id for job_id in ids if job_id not in apart], *([job_id] for job_id in ids if job_id in apart)]
            kinds = ("checkpoints", "artifacts")
            return [("give_away", {"kind": kind, "job_ids": lot}) for kind in kinds for lot in lots]
        return [(name, args)]


class Call(NamedTuple):
    """One operation with its arguments, and what came of it."""

    name: str
    args: dict[str, Any]
    saw: Any = None

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{name}={value!r}' for name, value in self.args.items())}) -> {self.saw!r}"


def answer(model: Model, call: Call, contested: set[str] | None = None) -> Any:
    """What the model answers to a call."""
    if call.name in PIECEMEAL:
        parts = model.parts(call.name, call.args, set())
        return sorted(one for name, args in parts for one in getattr(model, name)(**args))
    more = {"saw": call.saw} if call.name in ("submit", "claim", "take_back") else {}
    more |= {"contested": contested} if call.name in ("claim", "take_back") else {}
    try:
        return getattr(model, call.name)(**call.args, **more)
    except Refused as refused:
        return str(refused)


def explain(model: Model, made: list[Call], found: dict[str, Job], *, passes_over: bool) -> Model | None:
    """The model after an order of the calls in which each sees what it saw, and which ends in what was found.

    Args:
        passes_over: whether claims and reconcilers pass over jobs that others are at.
    """
    busy = [touched(model, [other for other in made if other is not call]) for call in made]

    def search(model: Model, waiting: list[tuple[int, list[Call], list[Any]]]) -> Model | None:
        if not waiting:
            return model if model.jobs == found else None
        for one in waiting:
            index, parts, got = one
            branch, rest = model.copy(), [other for other in waiting if other is not one]
            seen = answer(branch, parts[0], busy[index] if passes_over else None)
            if made[index].name in PIECEMEAL:
                seen = sorted(got + seen)
                if len(parts) > 1:  # what it saw is compared once all of it is done
                    rest, seen = [*rest, (index, parts[1:], seen)], made[index].saw
            after = search(branch, rest) if seen == made[index].saw else None
            if after is not None:
                return after
        return None

    queues: list[tuple[int, list[Call], list[Any]]] = []
    for index, call in enumerate(made):
        parts = [Call(*part, call.saw) for part in model.parts(call.name, call.args, busy[index])]
        if call.saw and not parts:
            return None
        queues += [(index, parts, [])] if parts else []
    return search(model, queues)


def touched(model: Model, others: list[Call]) -> set[str]:
    """The jobs whose rows other calls may have held."""
    ids = {call.args["job_id"] for call in others if "job_id" in call.args}
    ids |= {call.args["fence"][0] for call in others if "fence" in call.args}
    ids |= {call.args["teacher"] for call in others if call.args.get("teacher")}
    for call in others:
        if call.name == "claim":  # a claim looks at jobs that turn out too new for its worker
            ids |= {job_id for job_id, job in model.jobs.items() if job.version > READS[call.args["worker"]]}
            ids |= {call.saw[0]} if isinstance(call.saw, tuple) else set()
    return ids | (set(model.jobs) if any(call.name == "reconcile" for call in others) else set())
