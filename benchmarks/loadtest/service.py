"""A service of its own: API, worker, database and queues that nothing else uses, gone afterwards."""

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import httpx
import psutil
import psycopg
import redis

from storage.database import Database
from storage.settings import Settings

READY_SECONDS = 90.0
END_SECONDS = 30.0
SAMPLE_SECONDS = 1.0
MIB = 2**20


@contextlib.contextmanager
def settings_of(form: str, home: Path, postgres: str, broker: str) -> Iterator[dict[str, str]]:
    """The environment of one form; what was made for it on the servers is removed in the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    values = {
        "home": str(home), "port": str(port), "allow_download": "false", "max_queued": "1000000", "sweep_seconds": "20",
    }  # fmt: skip
    if form == "embedded":
        yield values
        return
    name = f"distillery-load-{secrets.token_hex(4)}"
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    try:
        url = postgres.rsplit("/", 1)[0] + f"/{name}"
        yield values | {"database_url": url, "broker_url": broker, "queue_prefix": name}
    finally:
        with psycopg.connect(postgres, autocommit=True) as connection:
            connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
        with contextlib.closing(redis.Redis.from_url(broker)) as client:
            for queue in (name, f"{name}-cuda"):
                client.delete(queue, f"_kombu.binding.{queue}", f"_kombu.binding_permanent.{queue}")


class Service:
    """API and worker as processes; a context manager, whose end leaves none of them."""

    def __init__(self, values: dict[str, str], log: IO[bytes]) -> None:
        self._values, self._log = values, log
        self._started: dict[str, subprocess.Popen[bytes]] = {}
        self.host, self.port = "127.0.0.1", int(values["port"])
        self.settings = Settings(**values)
        self.database = Database(self.settings.database)
        self.http = httpx.Client(base_url=f"http://{self.host}:{self.port}", timeout=70, trust_env=False)

    def __enter__(self) -> "Service":
        return self

    def start(self, api_processes: int) -> None:
        self._run("migrate", 1).wait(READY_SECONDS)
        self._started = {"api": self._run("api", api_processes), "worker": self._run("worker", 1)}
        self._wait_until_ready()

    def restart_api(self, api_processes: int) -> None:
        self._end("api")
        self._started["api"] = self._run("api", api_processes)
        self._wait_until_ready()

    def _run(self, command: str, api_processes: int) -> subprocess.Popen[bytes]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("DISTILLERY_")}
        mine = {f"DISTILLERY_{name.upper()}": value for name, value in self._values.items()}
        return subprocess.Popen(
            [sys.executable, "-m", "distillery", command],
            env=kept | mine | {"DISTILLERY_API_PROCESSES": str(api_processes)},
            stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log, process_group=0,
        )  # fmt: skip

    def _wait_until_ready(self) -> None:
        end = time.monotonic() + READY_SECONDS
        while time.monotonic() < end:
            with contextlib.suppress(httpx.TransportError):
                if self.http.get("/readyz").status_code == 200:
                    return
            time.sleep(0.1)
        raise TimeoutError(f"the service was not ready within {READY_SECONDS:g} s; its log is {self._log.name}")

    def train(self, spec: dict[str, Any]) -> str:
        """Submit a job and wait for its student; its id."""
        job_id = self.http.post("/jobs", json=spec).raise_for_status().json()["id"]
        end = time.monotonic() + READY_SECONDS
        while (job := self.http.get(f"/jobs/{job_id}", params={"wait": 10}).json())["status"] != "succeeded":
            if time.monotonic() > end or job["status"] in ("failed", "cancelled"):
                raise TimeoutError(f"the first job is {job['status']}: {job['error']}")
        return str(job_id)

    def __exit__(self, *_: object) -> None:
        self.http.close()
        for name in list(self._started):
            self._end(name)
        self.database.close()

    def _end(self, name: str) -> None:
        process = self._started.pop(name)
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def processes(self) -> list[tuple[str, psutil.Process]]:
        """What runs now and stays, each with its role; not training, of which each job has a process of its own."""
        found = []
        for role, process in self._started.items():
            with contextlib.suppress(psutil.Error):
                tree = [psutil.Process(process.pid)]
                tree += [p for p in tree[0].children(recursive=True) if "resource_tracker" not in " ".join(p.cmdline())]
                found += [(role, p) for p in tree if "worker.training" not in p.cmdline()]
        return found

    def connections(self) -> int | None:
        """The database's, but this process's own; None for SQLite, which has none."""
        if self.database.engine.dialect.name != "postgresql":
            return None
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        with self.database.engine.connect() as connection:
            return int(connection.exec_driver_sql(query).scalar_one())

    def sessions(self) -> int | None:
        """Connections to the database so far; opening one costs both sides milliseconds. None for SQLite."""
        if self.database.engine.dialect.name != "postgresql":
            return None
        with self.database.engine.connect() as connection:
            query = "SELECT sessions FROM pg_stat_database WHERE datname = current_database()"
            return int(connection.exec_driver_sql(query).scalar_one())

    def wal_mib(self) -> float | None:
        """Size of SQLite's write-ahead log, which grows for as long as someone always reads; None for PostgreSQL."""
        path = self.settings.home / "distillery.db-wal"
        return round(path.stat().st_size / MIB, 1) if path.exists() else None


@dataclass
class Used:
    """What one process used, sample by sample."""

    role: str
    mib: list[float] = field(default_factory=list)
    files: list[int] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def summary(self, seconds: float) -> dict[str, float]:
        tenth = max(1, len(self.mib) // 10)
        middle, end = (sum(some) / tenth for some in (self.mib[len(self.mib) // 2 :][:tenth], self.mib[-tenth:]))
        return {
            "mib_start": round(self.mib[0], 1), "mib_middle": round(middle, 1), "mib_end": round(end, 1),
            "mib_most": round(max(self.mib), 1), "growth_in_last_half": round(end / middle - 1, 4),
            "open_files_most": max(self.files),
            "cpu_share_of_one_core": round((self.cpu[-1] - self.cpu[0]) / seconds, 3),
        }  # fmt: skip


class Sampler:
    """Looks at the service's processes once a second while the block runs."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._used: dict[int, Used] = {}
        self._samples = 0
        self._connections: list[int] = []
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)

    def __enter__(self) -> "Sampler":
        self._begun, self._sessions = time.monotonic(), self._service.sessions()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()
        self._seconds = time.monotonic() - self._begun

    def _run(self) -> None:
        while True:
            self._samples += 1
            for role, process in self._service.processes():
                with contextlib.suppress(psutil.Error):
                    used, mib = self._used.setdefault(process.pid, Used(role)), process.memory_info().rss / MIB
                    files, cpu = process.num_fds(), sum(process.cpu_times()[:2])
                    if mib > 0:  # it has none once it has ended
                        used.mib.append(mib)
                        used.files.append(files)
                        used.cpu.append(cpu)
            connections = self._service.connections()
            self._connections += [connections] if connections is not None else []
            if self._stopped.wait(SAMPLE_SECONDS):
                return

    def summary(self) -> dict[str, Any]:
        stayed = [used for used in self._used.values() if len(used.mib) > self._samples / 2]
        return {
            "processes": {f"{used.role} {n}": used.summary(self._seconds) for n, used in enumerate(stayed, start=1)},
            "database_connections_most": max(self._connections, default=None),
            "database_connections_opened": (self._service.sessions() or 0) - (self._sessions or 0),
            "write_ahead_log_mib": self._service.wal_mib(),
        }
