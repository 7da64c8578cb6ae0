"""A job's history as it happens: Server-Sent Events, resumed where the connection broke."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx

from distillery.errors import ApiError
from distillery.sending import TRIES, Sender

TERMINAL = frozenset({"succeeded", "failed", "cancelled"})
SILENCE_SECONDS = 60.0
"""The service says something at least every 15 seconds: after this much silence the connection is dead."""


@dataclass(frozen=True)
class Event:
    """One line of a job's history.

    Attributes:
        id: counts within the job; None for `progress`, which is not stored.
        type: `submitted`, `claimed`, `stage_started`, `progress`, `succeeded`, …
        data: as the service sent it.
    """

    id: int | None
    type: str
    data: dict[str, Any]


def parse(chunks: Iterable[bytes]) -> Iterator[Event]:
    """The events in a `text/event-stream` body; an event that was cut off is dropped, as the standard says."""
    id: str = ""
    type = "message"
    data: list[str] = []
    for line in _lines(chunks):
        if not line:
            if data:
                yield Event(int(id) if id.isdigit() else None, type, json.loads("\n".join(data)))
            id, type, data = "", "message", []
            continue
        field, _, value = line.partition(":")  # a comment is a line with an empty field
        value = value.removeprefix(" ")
        if field == "id":
            id = value
        elif field == "event":
            type = value
        elif field == "data":
            data.append(value)


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    # Not httpx's iter_lines: it also splits at U+2028 and its like, which JSON leaves inside strings.
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.removesuffix(b"\r").decode()


def follow(sender: Sender, job_id: str, after: int = 0) -> Iterator[Event]:
    """All events with ids above `after`, until the job has ended; reconnects as long as it gets anywhere.

    Raises:
        ApiError: the service refused.
        ConnectionFailed: several connections in a row brought nothing.
    """
    fruitless = 0
    while True:
        broken: Exception | None = None
        ended = False
        try:
            headers = {"Accept": "text/event-stream", "Last-Event-ID": str(after)}
            with sender.stream(f"/jobs/{job_id}/events", headers, SILENCE_SECONDS) as response:
                if response.status_code == 204:
                    return
                for event in parse(response.iter_bytes()):
                    fruitless = 0
                    ended = event.type in TERMINAL
                    after = event.id or after
                    yield event
        except httpx.TransportError as error:
            broken = error
        except ApiError as error:
            if error.status != 503:
                raise
            broken = error
        if ended and broken is None:
            return
        fruitless += 1
        if fruitless >= TRIES:
            raise sender.failed(broken or ConnectionError("the event stream keeps closing"))
        sender.pause(fruitless)
