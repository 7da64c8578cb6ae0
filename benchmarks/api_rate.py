"""What `GET /jobs/{id}` costs, beside a FastAPI route that does nothing on the same uvicorn.

    python benchmarks/api_rate.py [--form embedded|deployed] [--rounds 5] [--seconds 2] [--clients 8]
                                  [--crowd 200] [--crowd-seconds 15] [--out FILE]

One API process in each form (the deployed one at DISTILLERY_TEST_POSTGRES and DISTILLERY_TEST_REDIS, in a database of
its own), asked by this process. Two measurements, while nothing is trained: how many answers a second a few clients get
that ask again at once, of as many jobs in turn, with the CPU time that the server's process took for one; and how long
200 clients wait who each pause a second, with the part of the cores' time that a virtual machine was refused meanwhile
and the part that nobody used. Every answer is checked. The ratio is the median of the rounds' ratios.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import psutil
from about import about, end_tidily, result_path
from load import FORMS, POSTGRES, REDIS, note
from loadtest.clients import SPEC
from loadtest.rows import fill
from loadtest.service import Service, settings_of
from loadtest.tally import quantiles
from loadtest.wire import Connection

HERE = Path(__file__).parent
BEGIN_SECONDS = 30.0
COPIES = 2_000
"""More than the server remembers (`MOST` of `api/reading.py`)."""
TARGET_RATE, TARGET_P99_MS = 0.15, 100.0


class Question(NamedTuple):
    """What is asked, and what its answer must hold."""

    path: str
    says: bytes = b""
    headers: Mapping[str, str] = MappingProxyType({})


class Arm:
    """Questions of one kind, asked in turn again and again, as by clients who each follow a job of their own."""

    def __init__(self, server: psutil.Process, port: int, questions: list[Question], status: int = 200) -> None:
        self.server, self.port, self.status = server, port, status
        self._questions = itertools.cycle(questions)

    async def ask(self, connection: Connection) -> float:
        """Seconds until the answer was here.

        Raises:
            AssertionError: it is the wrong one.
        """
        path, says, headers = next(self._questions)
        begun = time.perf_counter()
        answer = await connection.ask("GET", path, headers=dict(headers))
        seconds = time.perf_counter() - begun
        if answer.status != self.status or says not in answer.body:
            raise AssertionError(f"{path}: {answer.status} {answer.body[:200]!r}")
        return seconds

    async def often(self, clients: int, seconds: float) -> dict[str, float]:
        """Answers a second, and the server's CPU time for one."""
        until, cpu, asked = time.perf_counter() + seconds, sum(self.server.cpu_times()[:2]), 0

        async def one() -> None:
            nonlocal asked
            connection = Connection("127.0.0.1", self.port)
            while time.perf_counter() < until:
                await self.ask(connection)
                asked += 1
            connection.close()

        begun = time.perf_counter()
        await asyncio.gather(*(one() for _ in range(clients)))
        took, cpu = time.perf_counter() - begun, sum(self.server.cpu_times()[:2]) - cpu
        return {"per_second": asked / took, "cpu_ms": cpu / asked * 1e3}

    async def crowd(self, clients: int, seconds: float) -> dict[str, float]:
        """Quantiles of what each of many clients waits that ask about once a second; and the cores' `shares`."""
        until, took, chance = time.perf_counter() + seconds, list[float](), random.Random(0)
        before = psutil.cpu_times()

        async def one() -> None:
            connection = Connection("127.0.0.1", self.port)
            await asyncio.sleep(chance.random())
            while time.perf_counter() < until:
                took.append(await self.ask(connection))
                await asyncio.sleep(0.5 + chance.random())
            connection.close()

        await asyncio.gather(*(one() for _ in range(clients)))
        return quantiles(took) | shares(before, psutil.cpu_times())


def shares(before: Any, after: Any) -> dict[str, float]:
    """Of the cores' time: what the machine's owner gave to others (where the system knows), and what nobody used.

    A wait that is long because of others says nothing of the service.
    """
    spent = {name: getattr(after, name) - getattr(before, name) for name in after._fields if "guest" not in name}
    total = sum(spent.values())
    return {name: round(spent.get(name, 0.0) / total, 3) for name in ("steal", "idle")}


@contextlib.contextmanager
def empty_route() -> Iterator[Arm]:
    """A server of its own, with one route that does nothing."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-m", "loadtest.empty", str(port)], cwd=HERE)
    try:
        arm, end = Arm(psutil.Process(server.pid), port, [Question("/empty", b"{}")]), time.monotonic() + BEGIN_SECONDS
        while True:
            try:
                asyncio.run(arm.ask(Connection("127.0.0.1", port)))
                break
            except OSError:
                if time.monotonic() > end or server.poll() is not None:
                    raise
            time.sleep(0.1)
        yield arm
    finally:
        server.terminate()
        server.wait()


def arms_of(service: Service, jobs: int) -> dict[str, Arm]:
    """So many finished jobs, one of them for everybody, all of them for who has them already, as many that wait for a
    device that is not there, and so many that none is asked about again before the server has forgotten it."""
    (server,) = [process for role, process in service.processes() if role == "api"]
    finished = [service.train(SPEC | {"baseline": True}) for _ in range(jobs)]
    waiting = [service.http.post("/jobs", json=SPEC | {"device": "cuda"}) for _ in range(jobs)]
    queued = [answer.raise_for_status().json()["id"] for answer in waiting]
    tags = {each: service.http.get(f"/jobs/{each}").headers["ETag"] for each in finished}
    unchanged = [Question(f"/jobs/{each}", headers={"If-None-Match": tag}) for each, tag in tags.items()]

    def shown(ids: list[str]) -> Arm:
        return Arm(server, service.port, [Question(f"/jobs/{each}", f'"id":"{each}"'.encode()) for each in ids])

    seldom = fill(service.database, finished[0], COPIES, waiting=0).finished
    return {
        "job": shown(finished),
        "job, asked about seldom": shown(seldom),
        "job, the same for all": shown(finished[:1]),
        "job, unchanged": Arm(server, service.port, unchanged, status=304),
        "job, queued": shown(queued),
    }


async def measure(arms: dict[str, Arm], options: argparse.Namespace) -> dict[str, Any]:
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in arms}
    for number in range(options.rounds + 1):
        for name, arm in arms.items():
            found = await arm.often(options.clients, options.seconds)
            if number > 0:  # the first round warms up
                rounds[name].append(found)
    rows: dict[str, Any] = {}
    for name, found in rounds.items():
        shares = [mine["per_second"] / none["per_second"] for mine, none in zip(found, rounds["empty"], strict=True)]
        rows[name] = {
            "per_second": round(statistics.median(each["per_second"] for each in found), 1),
            "share_of_empty": round(statistics.median(shares), 4),
            "server_cpu_ms": round(statistics.median(each["cpu_ms"] for each in found), 4),
            "crowd_ms": await arms[name].crowd(options.crowd, options.crowd_seconds),
        }
    return rows


def show(form: str, rows: dict[str, Any]) -> None:
    print(f"\n{form:24}{'a second':>10}{'share':>8}{'CPU ms':>9}   the crowd's p50 · p99 · longest, ms   stolen · idle")
    for name, row in rows.items():
        crowd = row["crowd_ms"]
        waits = " · ".join(f"{crowd[each]:.1f}" for each in ("p50", "p99", "max"))
        print(f"{name:24}{row['per_second']:10.0f}{row['share_of_empty']:8.1%}{row['server_cpu_ms']:9.3f}"
              f"   {waits:35}   {crowd['steal']:.0%} · {crowd['idle']:.0%}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--form", choices=sorted(FORMS), help="only this one")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each arm in each round")
    parser.add_argument("--clients", type=int, default=8, help="who ask again at once, each about another job")
    parser.add_argument("--crowd", type=int, default=200, help="clients that pause")
    parser.add_argument("--crowd-seconds", type=float, default=15.0)
    parser.add_argument("--out", type=Path, default=result_path("api_rate"))
    options, forms = parser.parse_args(), {}
    end_tidily()
    options.out = options.out.absolute()
    for form in [options.form] if options.form else list(FORMS):
        note(f"{form}: starting it")
        with (
            tempfile.TemporaryDirectory(prefix="distillery-rate-") as folder,
            (Path(folder) / "log.txt").open("wb") as log,
            settings_of(form, Path(folder) / "home", POSTGRES, REDIS) as values,
            Service(values, log) as service,
            empty_route() as empty,
        ):
            service.start(1)
            forms[form] = asyncio.run(measure({"empty": empty} | arms_of(service, options.clients), options))
        show(form, forms[form])
    command = " ".join(["python", "benchmarks/api_rate.py", *sys.argv[1:]])
    told = about(command, "fastapi", "psycopg", "pydantic", "sqlalchemy", "uvicorn")
    told |= {"targets": {"share_of_empty": TARGET_RATE, "crowd_p99_ms": TARGET_P99_MS}, "forms": forms}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
