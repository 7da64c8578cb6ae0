"""The phases, as a process full of clients lives them. Each returns what it saw, ready for JSON."""

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Coroutine
from typing import Any

from loadtest.checks import TERMINAL
from loadtest.clients import SPEC, World, follow, poll, stream, submit
from loadtest.tally import Tally

UNSERVED = {"device": "cuda"}
"""Jobs that only wait: training must not disturb what is measured."""
POSTERS = 16
SUBMIT_EVERY_SECONDS = 1.0
OPENED_AT_ONCE = 50
END_SECONDS = 60.0
LIVE_JOBS = 3


def post(host: str, port: int, seconds: float) -> dict[str, Any]:
    """As many submissions as the service takes: from one client, then from several."""
    return {name: asyncio.run(_post(World(host, port, Tally(), [], []), clients, seconds))
            for name, clients in (("post, 1 client", 1), (f"post, {POSTERS} clients", POSTERS))}  # fmt: skip


async def _post(world: World, clients: int, seconds: float) -> dict[str, Any]:
    until = time.monotonic() + seconds

    async def one(number: int) -> None:
        connection, spec = world.connection(), SPEC | UNSERVED | {"name": f"post-{number}"}
        while time.monotonic() < until:
            spec["seed"] = len(world.fresh)  # no two are the same
            job_id = await submit(world, connection, "post", spec, json.dumps(spec).encode())
            world.fresh += [job_id] if job_id is not None else []
        connection.close()

    await asyncio.gather(*(one(number) for number in range(clients)))
    if len(set(world.fresh)) != len(world.fresh):
        world.tally.wrong("two submissions gave one job")
    return world.tally.summary()


def crowd(host: str, port: int, clients: int, seconds: float, pause: float, **known: Any) -> dict[str, Any]:
    """Half of the clients poll, half of them stream, while jobs are submitted and trained."""
    return asyncio.run(_crowd(World(host, port, Tally(), **known), clients, seconds, pause))


async def _crowd(world: World, clients: int, seconds: float, pause: float) -> dict[str, Any]:
    half = clients // 2
    work: list[Coroutine[Any, Any, None]] = [_submit_often(world)]
    work += [poll(world, pause) for _ in range(half)] + [stream(world, number) for number in range(clients - half)]
    tasks = [asyncio.create_task(one) for one in work]
    done, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
    for task in done:
        world.tally.wrong(f"a client ended: {task.exception()!r}")
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    summary = world.tally.summary(pause=pause)
    summary["submitted"] = await _status_of(world)
    return summary | {"errors": world.tally.errors, "faults": world.tally.faults}


async def _submit_often(world: World) -> None:
    connection = world.connection()
    while True:
        begun = time.monotonic()
        job_id = await submit(world, connection, "post", SPEC, json.dumps(SPEC).encode())
        world.fresh += [job_id] if job_id is not None else []
        await asyncio.sleep(max(0.0, begun + SUBMIT_EVERY_SECONDS - time.monotonic()))


async def _status_of(world: World) -> dict[str, int]:
    """What became of the jobs that were submitted; those that are not trained yet are cancelled."""
    connection, found = world.connection(), Counter[str]()
    end = time.monotonic() + END_SECONDS
    while world.fresh[:1] and time.monotonic() < end:  # in a short run even the first may need a little longer
        job = (await connection.ask("GET", f"/jobs/{world.fresh[0]}?wait=5")).json()
        if job["status"] in TERMINAL:
            break
    for job_id in world.fresh:
        job = (await connection.ask("GET", f"/jobs/{job_id}")).json()
        found[job["status"]] += 1
        if job["status"] not in TERMINAL:
            await connection.ask("POST", f"/jobs/{job_id}/cancel")
    if found["failed"] or not found["succeeded"]:
        world.tally.wrong(f"training: {dict(found)}")
    connection.close()
    return dict(found)


def streams(host: str, port: int, waiting: list[str], number: int, seconds: float) -> dict[str, Any]:
    """Many open event streams at once, half of them of a job each, half of a few that are trained meanwhile."""
    return asyncio.run(_streams(World(host, port, Tally(), [], waiting), number, seconds))


async def _streams(world: World, number: int, seconds: float) -> dict[str, Any]:
    connection, body = world.connection(), json.dumps(SPEC).encode()
    for _ in range(LIVE_JOBS):
        job_id = await submit(world, connection, "post", SPEC, body)
        world.fresh += [job_id] if job_id is not None else []
    quiet = world.waiting[: number // 2]
    targets = quiet + [world.fresh[n % len(world.fresh)] for n in range(number - len(quiet))]
    opened = 0

    def count() -> None:
        nonlocal opened
        opened += 1

    begun, tasks = time.monotonic(), []
    for start in range(0, number, OPENED_AT_ONCE):  # a listening socket's queue is short
        tasks += [asyncio.create_task(follow(world, job_id, count)) for job_id in targets[start:][:OPENED_AT_ONCE]]
        while opened < len(tasks) and time.monotonic() < begun + END_SECONDS:
            await asyncio.sleep(0.01)
    opening, most = time.monotonic() - begun, sum(not task.done() for task in tasks)
    await asyncio.sleep(max(0.0, begun + seconds - time.monotonic()))
    for job_id in [*quiet, *world.fresh]:  # the end of all that is not over yet; 409 where it is
        await world.ask(connection, "cancel", f"/jobs/{job_id}/cancel", method="POST", expect=(200, 409))
    await asyncio.wait(tasks, timeout=END_SECONDS)
    ends = Counter(str(task.result()) if task.done() else "still open" for task in tasks)
    if lost := ends["None"] + ends["still open"]:
        world.tally.wrong(f"{lost} of {number} streams got no terminal event")
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return world.tally.summary(streams=number, opened_in=round(opening, 2), open_at_once=most, ends=dict(ends))


PHASES = {"post": post, "crowd": crowd, "streams": streams}

if __name__ == "__main__":  # told on standard input what to do
    told = json.load(sys.stdin)
    print(json.dumps(PHASES[told.pop("phase")](**told)))
