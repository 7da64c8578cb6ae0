"""What the clients do, each in a task of its own; all of them check what they get."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from loadtest.checks import FILTERS, PAGE, PARTS, TERMINAL, WITH_METRICS, Teams, counts
from loadtest.tally import Tally
from loadtest.wire import Answer, Connection, parse_event

WAIT_SECONDS = 2.0
SPEC: dict[str, Any] = {
    "name": "load",
    "data": {"type": "digits"},
    "teachers": [{"model": {"type": "mlp", "hidden": [64]}, "train": {"epochs": 2}}],
    "student": {"model": {"type": "mlp", "hidden": [8]}},
    "stages": [{"epochs": 2, "batch_size": 32, "optimizer": {"type": "adam", "lr": 1e-2}}],
    "baseline": False,
    "labels": {"team": "vision"},
}


@dataclass
class World:
    """Where the service is, and which jobs its clients may ask for."""

    host: str
    port: int
    tally: Tally
    finished: list[str]
    waiting: list[str]
    """Queued, and nobody here can take them."""
    teams: Teams = field(default_factory=dict)
    """Of all these, and of the rare ones."""
    fresh: list[str] = field(default_factory=list)
    """Submitted by these clients, newest last."""
    chance: random.Random = field(default_factory=lambda: random.Random(0))

    def connection(self) -> Connection:
        return Connection(self.host, self.port)

    async def ask(self, connection: Connection, kind: str, path: str, *, method: str = "GET", expect: tuple[int, ...],
                  **options: Any) -> Answer | None:  # fmt: skip
        """One request, counted; None where it failed or was answered with anything but what was expected."""
        begun = time.perf_counter()
        try:
            answer = await connection.ask(method, path, **options)
        except (OSError, TimeoutError, EOFError, ValueError) as error:
            self.tally.wrong(f"{kind}: {type(error).__name__}: {error}")
            return None
        late = time.perf_counter() - begun - (WAIT_SECONDS if "wait=" in path else 0.0)
        if late >= 0:  # a wait that something ended earlier says nothing of speed
            self.tally.took(kind, late)
        self.tally.answers[f"{method} {answer.status}"] += 1
        if answer.status not in expect:
            self.tally.wrong(f"{kind}: {method} {path} gave {answer.status}: {answer.body[:200]!r}")
            return None
        return answer


async def submit(world: World, connection: Connection, kind: str, spec: dict[str, Any], body: bytes) -> str | None:
    """Post a job; its id."""
    answer = await world.ask(connection, kind, "/jobs", method="POST", body=body, expect=(201,))
    if answer is None:
        return None
    job = answer.json()
    if job["name"] != spec["name"] or job["status"] not in ("queued", "running"):
        world.tally.wrong(f"{kind}: the job is {job['name']} and {job['status']}")
    return str(job["id"])


async def show(world: World, connection: Connection) -> None:
    """A finished job: whole, and then 304."""
    job_id = world.chance.choice(world.finished)
    first = await world.ask(connection, "job", f"/jobs/{job_id}", expect=(200,))
    if first is not None:
        if first.json()["id"] != job_id or first.json()["status"] not in TERMINAL:
            world.tally.wrong(f"job: {first.body[:200]!r} for {job_id}")
        tag = {"If-None-Match": first.headers["etag"]}
        await world.ask(connection, "job, unchanged", f"/jobs/{job_id}", headers=tag, expect=(304,))


async def show_queued(world: World, connection: Connection) -> None:
    job_id = world.chance.choice(world.waiting)
    answer = await world.ask(connection, "job, queued", f"/jobs/{job_id}", expect=(200,))
    if answer is not None and answer.json()["queue"]["position"] < 1:
        world.tally.wrong(f"job, queued: {answer.body[:200]!r}")


async def wait(world: World, connection: Connection) -> None:
    """For a job that may change, or for one that will not: then only the delay beyond the time is counted."""
    job_id = world.chance.choice(world.fresh[-5:] or world.waiting)
    answer = await world.ask(connection, "job, after wait", f"/jobs/{job_id}?wait={WAIT_SECONDS:g}", expect=(200,))
    expected = {"queued", "running", "succeeded"} if world.fresh else {"queued"}
    if answer is not None and (answer.json()["id"] != job_id or answer.json()["status"] not in expected):
        world.tally.wrong(f"job, after wait: {answer.body[:200]!r} for {job_id}")


async def browse(world: World, connection: Connection) -> None:
    """A list of jobs and the page that follows."""
    question, least, holds = world.chance.choice(FILTERS)
    path, seen = f"/jobs?limit={PAGE}{question}", []
    for _ in range(2):
        answer = await world.ask(connection, f"list{question.replace('&', ' ')}", path, expect=(200,))
        if answer is None:
            return
        page = answer.json()
        seen += [job["id"] for job in page["data"]]
        if seen != sorted(set(seen), reverse=True) or not all(holds(job, world.teams) for job in page["data"]):
            world.tally.wrong(f"list{question}: out of order, twice or not asked for: {seen}")
        if not page["has_more"]:
            break
        path = f"/jobs?limit={PAGE}{question}&after={page['next']}"
    if len(seen) < least:
        world.tally.wrong(f"list{question}: {len(seen)} jobs, not {least}")


async def look_closer(world: World, connection: Connection) -> None:
    """What belongs to a finished job."""
    job_id = world.chance.choice(world.finished[-WITH_METRICS:])
    part, holds = world.chance.choice(list(PARTS.items()))
    answer = await world.ask(connection, part.partition("?")[0], f"/jobs/{job_id}/{part}", expect=(200,))
    if answer is not None and not holds(answer.json()["data"]):
        world.tally.wrong(f"{part} of {job_id}: {answer.body[:200]!r}")


async def monitor(world: World, connection: Connection) -> None:
    """What a monitoring system asks for."""
    answer = await world.ask(connection, "prometheus", "/metrics", expect=(200,))
    if answer is not None and not counts(answer.body, len(world.waiting)):
        world.tally.wrong(f"prometheus: {len(world.waiting)} jobs wait, and it says {answer.body[:500]!r}")
    answer = await world.ask(connection, "workers", "/workers", expect=(200,))
    if answer is not None:
        statuses = {worker["status"] for worker in answer.json()["data"]}
        if not statuses or statuses - {"idle", "busy"}:
            world.tally.wrong(f"workers: {answer.body[:200]!r}")


HABITS: dict[Callable[[World, Connection], Awaitable[None]], int] = {
    show: 30, show_queued: 10, wait: 20, browse: 25, look_closer: 14, monitor: 1,
}  # fmt: skip
"""What a poller does, and how often of a hundred times."""


async def poll(world: World, pause: float) -> None:
    """A script that asks, waits, and asks again."""
    connection = world.connection()
    await asyncio.sleep(world.chance.random() * pause)
    while True:
        (habit,) = world.chance.choices(list(HABITS), list(HABITS.values()))
        await habit(world, connection)
        await asyncio.sleep(pause * (0.5 + world.chance.random()))


async def follow(world: World, job_id: str, opened: Callable[[], None] = lambda: None) -> str | None:
    """Stream a job's history from its beginning to its end; the terminal event's type, None where there was none."""
    last, begun = 0, time.time()
    path, headers = f"/jobs/{job_id}/events", {"Accept": "text/event-stream"}
    try:
        async with world.connection().stream(path, headers) as (status, chunks), aclosing(chunks):
            world.tally.answers[f"stream {status}"] += 1
            if status != 200:
                world.tally.wrong(f"stream: {status}")
                return None
            opened()
            terminal = None
            async for chunk in chunks:
                event = parse_event(chunk)
                if event is None or event.id is None:
                    continue
                if event.id != last + 1 or terminal is not None:
                    world.tally.wrong(f"stream: event {event.id} of {job_id} came after {last}, {terminal}")
                last, terminal = event.id, event.type if event.type in TERMINAL else None
                at = datetime.fromisoformat(event.data["at"]).timestamp()
                if at > begun:
                    world.tally.took("event, from its time to its client", time.time() - at)
            return terminal
    except (OSError, EOFError, ValueError) as error:
        world.tally.wrong(f"stream: {type(error).__name__}: {error}")
        return None


async def stream(world: World, number: int) -> None:
    """One stream after another; every tenth client listens to a job that says nothing."""
    while True:
        live = world.fresh[-1:] if number % 2 else []
        job_id = world.chance.choice(world.waiting if number % 10 == 0 else live or world.finished)
        if await follow(world, job_id) is None:
            world.tally.wrong(f"stream: that of {job_id} ended without a terminal event")
        await asyncio.sleep(0.5 + world.chance.random())
