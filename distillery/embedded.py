"""The embedded service: API and one worker as children of this process; everything ends with it."""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import httpx

from distillery.child import Child
from distillery.home import Lock, ServeError, empty_broker, find_port, url_of

if TYPE_CHECKING:
    from storage.settings import Settings

START_SECONDS = 90.0
STOP_SECONDS = 5.0
POLL_SECONDS = 0.1


class Embedded:
    """The whole service in processes of its own.

    Args:
        settings: `home`, `host`, `port` (0: a free one) and all others; the children get the same.
        output: where the children's output goes; this process's own where left out.

    Attributes:
        url: where it answers.
        over: set when it was asked to end or has given up.
        broken: why it has given up.
    """

    def __init__(self, settings: "Settings", output: IO[bytes] | None = None) -> None:
        self._settings, self._output = settings, output
        self._children: list[Child] = []
        self._tending: threading.Thread | None = None
        self._lock: Lock | None = None
        self._leash: tuple[int, int] | None = None
        self.over = threading.Event()
        self.broken: str | None = None
        self.url = ""

    def start(self) -> None:
        """Start everything and wait until it is ready.

        Raises:
            ServeError: it cannot run, or `over` was set meanwhile.
        """
        settings = self._settings
        self._lock = Lock(settings.home)
        port = find_port(settings.host, settings.port)
        self.url = url_of(settings.host, port)
        empty_broker(settings)
        prepare_schema(settings)
        self._leash = os.pipe()
        os.set_blocking(self._leash[0], True)
        options = {
            "env": environment(settings) | {"DISTILLERY_PORT": str(port)},
            "pass_fds": (self._leash[0], self._lock.descriptor),
            "stdout": self._output,
            "stderr": self._output,
        }
        leash = f"{self._leash[0]}:{settings.drain_seconds + STOP_SECONDS}"
        for name in ("api", "worker"):
            command = [sys.executable, "-m", "distillery", name, "--leash", leash]
            self._children.append(Child(name, command, options))
        self._tending = threading.Thread(target=self._tend, name="launcher", daemon=True)
        self._tending.start()
        self._wait_until_ready()
        self._lock.write(self.url)

    def _wait_until_ready(self) -> None:
        end = time.monotonic() + START_SECONDS
        last = "no answer"
        with httpx.Client(trust_env=False, timeout=5.0) as http:
            while time.monotonic() < end:
                try:
                    answer = http.get(f"{self.url}/readyz")
                    if answer.status_code == 200:
                        return
                    last = answer.text
                except httpx.TransportError:
                    pass
                if self.over.wait(POLL_SECONDS):
                    raise ServeError(self.broken or "stopped while starting")
        raise ServeError(f"the service was not ready within {START_SECONDS:g} s: {last}")

    def _tend(self) -> None:
        while not self.over.wait(POLL_SECONDS):
            for child in self._children:
                self.broken = self.broken or child.tend()
            if self.broken is not None:
                self.over.set()

    def stop(self) -> None:
        """End everything: training writes a checkpoint if it can; bounded, and nothing stays behind."""
        self.over.set()
        if self._tending is not None:
            self._tending.join()
        for child in self._children:
            child.signal(signal.SIGTERM)
        deadline = time.monotonic() + self._settings.drain_seconds + STOP_SECONDS
        for child in self._children:
            child.end(deadline)
        self._children.clear()
        for descriptor in self._leash or ():
            os.close(descriptor)
        if self._lock is not None:
            self._lock.release()
        self._leash = self._lock = None

    def kill(self) -> None:
        """End everything at once; `stop` is still needed."""
        for child in self._children:
            child.signal(signal.SIGKILL)


def prepare_schema(settings: "Settings") -> None:
    """Bring the embedded database to this version; a database server's schema is only checked.

    Raises:
        SchemaError: it is another version's.
    """
    from storage import schema
    from storage.database import Database

    database = Database(settings.database)
    try:
        if settings.database_url is None and schema.current(database) is not None:
            schema.migrate(database)
        schema.ensure(database)
    finally:
        database.close()


def environment(settings: "Settings") -> dict[str, str]:
    """This process's environment, with exactly these settings in it."""
    values = {name: value for name, value in os.environ.items() if not name.startswith("DISTILLERY_")}
    for name in settings.model_fields_set:
        value = getattr(settings, name)
        if value is not None:
            plain = _plain(value)
            values[f"DISTILLERY_{name.upper()}"] = plain if isinstance(plain, str) else json.dumps(plain)
    return values


def _plain(value: Any) -> Any:
    """What JSON takes, secrets as they are."""
    if hasattr(value, "model_fields_set"):
        value = {name: getattr(value, name) for name in value.model_fields_set}
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if hasattr(value, "get_secret_value"):
        return value.get_secret_value()
    return str(value) if isinstance(value, Path) else value
