"""The service as its users start it, in both forms; whatever is started here carries a mark and is found by it."""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from distillery.embedded import environment
from distillery.home import LOCK
from storage.settings import Settings

ROOT = Path(__file__).parents[2]
MARK = "E2E_TEST_MARK"
BOUND_SECONDS = 120.0
END_SECONDS = 30.0


def eventually(what: Callable[[], Any], seconds: float, why: str) -> Any:
    """The first true value of `what`; fails after that many seconds."""
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, f"{why} within {seconds:g} s"
        time.sleep(0.05)
    return found


@pytest.fixture(scope="session", autouse=True)
def _hear_ctrl_c() -> None:
    """Tests that a shell started in the background ignore Ctrl-C, and what they start would inherit that."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass
class Marked:
    """Processes started by one fixture or test, with all their descendants."""

    folder: Path
    mark: str = field(default_factory=lambda: secrets.token_hex(8))
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, *arguments: str, variables: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        """`python -m …` in the repository, in a process group of its own, all its output in a file."""
        output = self._output(len(self.started)).open("wb")  # not a pipe: nobody reads it meanwhile
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            cwd=ROOT,
            env=(os.environ if variables is None else variables) | {MARK: self.mark, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            process_group=0,
        )
        output.close()
        self.started.append(process)
        return process

    def _output(self, number: int) -> Path:
        return self.folder / f"output-{number}.txt"

    def output(self, process: subprocess.Popen[bytes]) -> str:
        """What a process has printed so far."""
        return self._output(self.started.index(process)).read_text(errors="replace")

    def left(self) -> list[psutil.Process]:
        """Those that still run; the dead that nobody reaped do not count."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def assert_none_left(self, seconds: float) -> None:
        """Every process ended; what did not is named, and killed so that the next test is not disturbed."""
        end = time.monotonic() + seconds
        while (left := self.left()) and time.monotonic() < end:
            time.sleep(0.1)
        names = [" ".join(process.cmdline()) for process in left if process.is_running()]
        for process in left:
            process.kill()
        assert not names, f"still there after {seconds:g} s: {names}"


@pytest.fixture
def marked(tmp_path: Path) -> Iterator[Marked]:
    marked = Marked(tmp_path)
    yield marked
    _end(marked)


def _end(marked: Marked) -> None:
    for process in marked.started:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    try:
        marked.assert_none_left(END_SECONDS)
    finally:
        for process in marked.started:
            process.wait(10)


@dataclass(frozen=True)
class Running:
    """A service that is ready."""

    form: str
    url: str
    settings: Settings


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def address_of(home: Path, marked: Marked, launcher: subprocess.Popen[bytes]) -> str:
    """Where `distillery serve` answers, once it does."""

    def found() -> str | None:
        assert launcher.poll() is None, marked.output(launcher)
        try:
            return json.loads((home / LOCK).read_text())["url"]
        except (FileNotFoundError, ValueError):
            return None

    return str(eventually(found, BOUND_SECONDS, "`distillery serve` is ready"))


def start_embedded(marked: Marked, settings: Settings) -> str:
    launcher = marked.start("distillery", "serve", "--port", "0", variables=environment(settings))
    return address_of(settings.home, marked, launcher)


def start_deployed(marked: Marked, settings: Settings) -> str:
    port = free_port()
    variables = environment(settings) | {"DISTILLERY_PORT": str(port)}
    migration = marked.start("distillery", "migrate", variables=variables)
    assert migration.wait(60) == 0, marked.output(migration)
    for command in ("api", "worker"):
        marked.start("distillery", command, variables=variables)
    url = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        for process in marked.started:
            assert process.poll() in (None, 0), marked.output(process)
        try:
            return httpx.get(f"{url}/readyz", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    eventually(ready, BOUND_SECONDS, "API and worker are ready")
    return url


@pytest.fixture(scope="module", params=["embedded", "deployed"])
def service(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, open_settings: Any
) -> Iterator[Running]:
    """The service in one form, for all tests of a module; nothing of it may be left afterwards."""
    with open_settings(request.param, tmp_path_factory.mktemp(request.param)) as settings:
        marked = Marked(tmp_path_factory.mktemp("output"))
        try:
            start = start_embedded if request.param == "embedded" else start_deployed
            yield Running(request.param, start(marked, settings), settings)
        finally:
            _end(marked)
        if request.param == "embedded":
            assert marked.started[0].returncode == 0, marked.output(marked.started[0])  # after SIGTERM


@pytest.fixture
def http(service: Running) -> Iterator[httpx.Client]:
    """What a script without our client uses."""
    with httpx.Client(base_url=service.url, timeout=40) as http:
        yield http
