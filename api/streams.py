"""Waiting for a job: until something changes, or as a stream of Server-Sent Events."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import anyio
from fastapi import Request
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from pydantic_core import to_json
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from api.schemas import rfc3339
from api.service import Service
from api.watch import Watch
from storage.lifecycle import TERMINAL
from storage.queries import Glance, list_events
from storage.tables import Event

EVENTS_PER_READ = 100
BYTES_PER_READ = 65_536
"""What a stream holds of its history while its client does not read; at least one event."""
RETRY_MS = 1_000
PING_SECONDS = 15.0
PROGRESS_SECONDS = 0.25


async def wait_for_change(request: Request, watch: Watch, seen: tuple[Any, ...], seconds: float) -> None:
    """Wait until status, stage or request differ from `seen`, the job is gone, or the time is over.

    Raises:
        ClientDisconnect: the client hung up meanwhile.
    """
    connected = True

    async def follow_client() -> None:
        nonlocal connected
        while (await request.receive())["type"] != "http.disconnect":
            pass
        connected = False
        group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        group.start_soon(follow_client)
        end = time.monotonic() + seconds
        while await watch.changed(end - time.monotonic()):
            now = watch.glance
            if now is None or (now.status, now.stage, now.request) != seen:
                break
        group.cancel_scope.cancel()
    if not connected:
        raise ClientDisconnect


class EventStream(StreamingResponse):
    """A stream that gives its watch back however it ends."""

    media_type = "text/event-stream"

    def __init__(self, service: Service, watch: Watch, first: Glance, after: int) -> None:
        super().__init__(
            _events(service, watch, first, after),
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no", "Vary": "Accept"},
        )
        self._watcher, self._watch = service.watcher, watch

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except asyncio.CancelledError:
            # The server ends, and cancels what is still open: no fault to be logged. The reader comes again.
            with contextlib.suppress(RuntimeError):  # of a stream that had not begun
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._watcher.close(self._watch)


async def _events(service: Service, watch: Watch, first: Glance, after: int) -> AsyncIterator[bytes]:
    """The stored events above `after`, and progress between them, until the job has ended or is gone.

    Reads the next events only once the client took the last ones, and holds no connection meanwhile.
    """
    yield format_sse_event(retry=RETRY_MS)
    glance: Glance | None = first
    shown: dict[str, Any] | None = None
    due, said = 0.0, time.monotonic()
    while glance is not None:
        while after < glance.last_event:
            events = await run_in_threadpool(_read, service, watch.job_id, after)
            if not events:
                return  # deleted
            for last, line in events:
                yield line
                after, said = last, time.monotonic()
        if glance.status in TERMINAL and after == glance.last_event:
            return
        now, fresh = time.monotonic(), glance.status == "running" and glance.progress not in (None, shown)
        if fresh and now >= due:
            shown, due, said, fresh = glance.progress, now + PROGRESS_SECONDS, now, False
            yield _progress(glance)
        elif now >= said + PING_SECONDS:  # not every change is one to tell of
            said = now
            yield KEEPALIVE_COMMENT
        if await watch.changed((due if fresh else said + PING_SECONDS) - now):
            glance = watch.glance


def _read(service: Service, job_id: str, after: int) -> list[tuple[int, bytes]]:
    """The next events, as they are sent, with their ids."""
    with service.database.read() as session:
        events = list_events(session, job_id, after=after, limit=EVENTS_PER_READ)
    lines: list[tuple[int, bytes]] = []
    size = 0
    for event in events:
        line = _stored(event)
        size += len(line)
        if lines and size > BYTES_PER_READ:
            break
        lines.append((event.id, line))
    return lines


def _stored(event: Event) -> bytes:
    data = {**event.data, "at": rfc3339(event.at), "attempt": event.attempt}
    return format_sse_event(id=str(event.id), event=event.type, data_str=_json(data))


def _progress(glance: Glance) -> bytes:
    data = {"stage": glance.stage, **(glance.progress or {}), "at": rfc3339(glance.updated_at)}
    return format_sse_event(event="progress", data_str=_json(data | {"attempt": glance.attempt}))


def _json(data: dict[str, Any]) -> str:
    return to_json(data, inf_nan_mode="null").decode()
