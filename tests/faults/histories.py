"""What a job's history may say.

The words of the lifecycle are written out here once more, from the design and not from the code.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

TERMINAL = {"succeeded", "failed", "cancelled"}
LIFECYCLE = {
    ("submitted", None): "queued",
    ("claimed", "queued"): "running",
    ("requeued", "running"): "queued",
    ("paused", "queued"): "paused",
    ("paused", "running"): "paused",
    ("resumed", "paused"): "queued",
    ("cancelled", "queued"): "cancelled",
    ("cancelled", "paused"): "cancelled",
    ("cancelled", "running"): "cancelled",
    ("succeeded", "running"): "succeeded",
    ("failed", "running"): "failed",
    ("retried", "failed"): "queued",
    ("retried", "cancelled"): "queued",
}
CHANGES = {change for change, _ in LIFECYCLE}
ASKED_FOR = {
    "cancel_requested": "cancel",
    "cancelled": "cancel",
    "pause_requested": "pause",
    "paused": "pause",
    "resumed": "resume",
    "retried": "retry",
}
"""What happens only because somebody asked for it."""
GRANTED = {"cancel_requested": {"cancelled"}, "pause_requested": {"paused", "cancelled"}}
LEFT_BY = {"cancel": {"cancelled", "cancel_requested"}, "pause": {"paused", "pause_requested"}, "retry": {"retried"}}
"""The events of which an acknowledged request left at least one."""
CLOCK_SECONDS = 0.05
"""Between this process' reading of the clock and the database's."""


@dataclass(frozen=True)
class Event:
    """A line of a job's history."""

    id: int
    at: float
    attempt: int
    type: str
    data: dict[str, Any]

    @property
    def position(self) -> tuple[str, int, int]:
        """Where a checkpoint was made, or gone on from."""
        return self.data["stage"], self.data["epoch"], self.data["step"]


def transitions(events: Sequence[Event], job: dict[str, Any]) -> Iterator[str]:
    """Allowed transitions only, attempts counted one by one, one final event per submission or retry."""
    if [event.id for event in events] != list(range(1, job["last_event"] + 1)):
        yield f"event ids {[event.id for event in events]} do not count up to {job['last_event']}"
    status, attempt = None, 0
    for event in events:
        if event.type == "claimed":
            attempt += 1
        if event.attempt != attempt:
            yield f"event {event.id} ({event.type}) is of attempt {event.attempt}, not {attempt}"
        if event.type in CHANGES:
            if (event.type, status) not in LIFECYCLE:
                yield f"event {event.id}: {event.type} from {status}"
            status = LIFECYCLE.get((event.type, status), status)
        elif status != "running":
            yield f"event {event.id} ({event.type}) of a {status} job"
    if status != job["status"]:
        yield f"is {job['status']}, its history says {status}"
    finals = sum(event.type in TERMINAL for event in events)
    wanted = 1 + sum(event.type == "retried" for event in events)
    if finals != wanted:
        yield f"has {finals} final events instead of {wanted}"
    if attempt != job["attempt"]:
        yield f"has attempt {job['attempt']}, its history says {attempt}"


def requests(events: Sequence[Event], asked: set[str], within: float) -> Iterator[str]:
    """Nothing happens that nobody asked for, and a request of a running attempt is granted.

    Args:
        asked: what anybody asked of the job.
        within: seconds after a request in which its attempt may still end by itself.
    """
    pending: Event | None = None
    for event in events:
        if ASKED_FOR.get(event.type) not in (None, *asked):
            yield f"event {event.id}: {event.type}, and nobody asked for it"
        if event.type in GRANTED:
            pending = event
        elif pending is not None and event.type in CHANGES:
            waited = event.at - pending.at
            if event.type in ("succeeded", "failed"):
                if waited > within:
                    yield f"event {event.id}: {event.type} {waited:.1f} s after {pending.type}"
            elif event.type not in GRANTED[pending.type]:
                yield f"event {event.id}: {event.type} in spite of {pending.type}"
            pending = None


def repetitions(events: Sequence[Event]) -> Iterator[str]:
    """An attempt tells nothing twice, though it may send a transaction again whose answer was lost."""
    told = Counter(
        (event.attempt, event.type, json.dumps(event.data, sort_keys=True))
        for event in events
        if event.type not in CHANGES and event.type != "checkpoint"
    )
    yield from (f"attempt {key[0]} told {key[1]} {times} times: {key[2]}" for key, times in told.items() if times > 1)
    positions: dict[int, list[tuple[str, int, int]]] = {}
    for event in events:
        if event.type == "checkpoint":
            positions.setdefault(event.attempt, []).append(event.position)
    for attempt, found in positions.items():
        # Who is asked to stop saves once more, perhaps at the very step at which a checkpoint was due.
        double = [position for position, times in Counter(found[:-1]).items() if times > 1]
        yield from (f"attempt {attempt} told of its checkpoint at {position} twice" for position in double)


def drain(events: Sequence[Event], attempt: int, told: float, patience: float) -> Iterator[str]:
    """An attempt that was drained saved itself where it stood.

    Args:
        told: when its worker was told to end.
        patience: seconds after which it is ended without, if it could not save itself: a hang, or no database.
    """
    mine = [event for event in events if event.attempt == attempt]
    end = next((event for event in mine if event.type in CHANGES - {"claimed"}), None)
    if end is None or end.type != "requeued" or end.data["reason"] != "drain":
        return  # it ended in another way meanwhile
    began = any(event.type == "stage_started" for event in mine)
    saved = any(event.type == "checkpoint" and event.at > told - CLOCK_SECONDS for event in mine)
    if began and not saved and end.at - told < patience:
        yield f"attempt {attempt} was drained within {end.at - told:.1f} s and without a checkpoint"


def unread(events: Sequence[Event], attempt: int) -> Iterator[str]:
    """A whole checkpoint that could not be read for a moment is the one that a later attempt goes on from."""
    rejected = {event.data["id"] for event in events if event.type == "checkpoint_rejected"}
    saved = [event for event in events if event.type == "checkpoint" and event.data["id"] not in rejected]
    before = [event.position for event in saved if event.attempt < attempt]
    for event in events:
        if event.attempt < attempt:
            continue
        if event.type == "checkpoint_rejected" and event.attempt == attempt:
            yield f"attempt {attempt} gave a checkpoint up that it could not read for a moment"
        if event.type in ("checkpoint", "checkpoint_rejected"):
            return  # from now on another one counts
        if event.type == "resumed_from_checkpoint":
            # The last checkpoint of all is noted at the last stage's end, and gone on from in the evaluation.
            if event.data["stage"] != "evaluation" and event.position not in before[-1:]:
                yield f"attempt {event.attempt} went on from {event.position}, saved was {before[-1:]}"
            return


def shown(events: Sequence[Event], shown: str, status: str) -> Iterator[str]:
    """A terminal status that a user was shown stays, unless somebody has the job retried."""
    at = max((event.id for event in events if event.type == shown), default=None)
    retried = any(event.type == "retried" and event.id > (at or 0) for event in events)
    if at is None or (shown != status and not retried):
        yield f"was {shown}, as its user was told, and is {status}"
