"""The service under test, as processes: two APIs and three workers, or the embedded form's launcher.

Whatever dies is started again, as an init system would. Every process carries a mark in its environment, by which
what is left of it is found.
"""

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from distillery.embedded import environment
from storage.settings import Settings
from tests.faults.servers import reserve_port

ROOT = Path(__file__).parents[2]
TRAPS = Path(__file__).parent / "traps"
MARK = "FAULTS_MARK"
RESTART_SECONDS = 0.3
START_SECONDS = 300.0


@dataclass
class Member:
    """One process that is started again when it ends."""

    name: str
    arguments: list[str]
    variables: dict[str, str]
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0
    held: bool = False
    """Down on purpose: not started again."""

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process is not None and self.process.poll() is None else None


@dataclass
class Service:
    """Call `start`, then `stop`; in between everything may be killed.

    Args:
        settings: the service's.
        folder: for output and traps.
        mutation: of the house, see `traps/sitecustomize.py`.
    """

    settings: Settings
    folder: Path
    mutation: str | None = None
    mark: str = field(default_factory=lambda: secrets.token_hex(8))
    members: dict[str, Member] = field(default_factory=dict)
    urls: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.RLock()
        self._over = threading.Event()
        self._guards: list[socket.socket] = []
        self._tending = threading.Thread(target=self._tend, name="init", daemon=True)
        for part in ("armed", "sprung", "output"):
            (self.folder / part).mkdir(parents=True)
        names = ("serve",) if self.embedded else ("api-1", "api-2", "worker-1", "worker-2", "worker-3")
        for name in names:
            command, variables = name.partition("-")[0], self._variables()
            if command in ("api", "serve"):
                self._guards.append(reserve_port())
                port = self._guards[-1].getsockname()[1]
                self.urls.append(f"http://127.0.0.1:{port}")
                variables["DISTILLERY_PORT"] = str(port)
            self.members[name] = Member(name, [command], variables)

    @property
    def embedded(self) -> bool:
        return self.settings.broker is None

    def _variables(self) -> dict[str, str]:
        return environment(self.settings) | {
            MARK: self.mark,
            "FAULTS_FOLDER": str(self.folder),
            "FAULTS_MUTATION": self.mutation or "",
            "PYTHONPATH": os.pathsep.join([str(TRAPS), str(ROOT)]),
            "OMP_NUM_THREADS": "1",
            "PYTHONFAULTHANDLER": "",
        }

    def start(self) -> None:
        """Start everything; returns once every API answers and a worker is there."""
        with self._lock:
            for member in self.members.values():
                self._start(member)
        self._tending.start()
        self.until_ready()

    def until_ready(self) -> None:
        end = time.monotonic() + START_SECONDS
        for url in self.urls:
            while not self._ready(url):
                assert time.monotonic() < end, f"{url} is not ready within {START_SECONDS:g} s\n{self.tail()}"
                time.sleep(0.1)

    def _ready(self, url: str) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{url}/readyz", timeout=5, trust_env=False).status_code == 200
        return False

    def _start(self, member: Member) -> None:
        member.starts += 1
        with (self.folder / "output" / f"{member.name}.txt").open("ab") as output:
            member.process = subprocess.Popen(
                [sys.executable, "-m", "distillery", *member.arguments],
                cwd=ROOT, env=member.variables, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                process_group=0,
            )  # fmt: skip

    def _tend(self) -> None:
        while not self._over.wait(RESTART_SECONDS):
            with self._lock:
                for member in self.members.values():
                    if not member.held and not self._over.is_set() and member.pid is None:
                        self._start(member)

    @contextlib.contextmanager
    def down(self, names: Iterable[str]) -> Iterator[None]:
        """Members that are not started again meanwhile."""
        members = [self.members[name] for name in names]
        with self._lock:
            for member in members:
                member.held = True
        try:
            yield
        finally:
            with self._lock:
                for member in members:
                    member.held = False

    def kill_everything(self) -> None:
        """Every process at once, as when the machine loses its power."""
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.kill()

    def processes(self) -> list[psutil.Process]:
        """Every living process of the service."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def stop(self, seconds: float = 40.0) -> list[str]:
        """SIGTERM to all; the command lines of what had not ended by then, which is killed."""
        self._over.set()
        if self._tending.ident is not None:
            self._tending.join()
        for member in self.members.values():
            if member.process is not None and member.process.poll() is None:
                member.process.send_signal(signal.SIGTERM)
        end = time.monotonic() + seconds
        while (left := self.processes()) and time.monotonic() < end:
            self._reap()
            time.sleep(0.1)
        lines = []
        for process in left:
            with contextlib.suppress(psutil.Error):
                lines.append(" ".join(process.cmdline()))
                process.kill()
        self._reap(5.0)
        for guard in self._guards:
            guard.close()
        return lines

    def _reap(self, seconds: float = 0.0) -> None:
        for member in self.members.values():
            if member.process is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    member.process.wait(seconds)

    def tail(self, characters: int = 2000) -> str:
        """The end of what each member printed."""
        outputs = sorted((self.folder / "output").glob("*.txt"))
        return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')[-characters:]}" for path in outputs)


@dataclass(frozen=True)
class WorkerTree:
    """A worker's processes, as far as they are there now."""

    parent: psutil.Process
    child: psutil.Process | None
    training: psutil.Process | None
    """The one that trains: the oldest, as the spare is younger."""

    @property
    def all(self) -> list[psutil.Process]:
        return [process for process in (self.parent, self.child, self.training) if process is not None]


def worker_tree(pid: int) -> WorkerTree | None:
    """The processes of the worker whose parent process this is; None where it is gone."""
    try:
        parent = psutil.Process(pid)
        below = [(process, process.cmdline()) for process in parent.children(recursive=True)]
        child = next((process for process, line in below if "--billiard-fork" in line), None)
        trainings = [process for process, line in below if "worker.training" in line]
        trainings.sort(key=lambda process: process.create_time())
    except psutil.Error:
        return None
    return WorkerTree(parent, child, trainings[0] if trainings else None)
