"""The embedded service's folder: one launcher at a time, and an address where it can be reached."""

import fcntl
import json
import os
import shutil
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from distillery.errors import DistilleryError

if TYPE_CHECKING:
    from storage.settings import Settings

LOCK = "serve.json"


class ServeError(DistilleryError):
    """The embedded service cannot run; the message says why."""


class Lock:
    """Holds a home for as long as its descriptor is open, in this process or in a child that inherited it."""

    def __init__(self, home: Path) -> None:
        """Take the home.

        Raises:
            ServeError: another launcher, or what it left running, has it.
        """
        home.mkdir(parents=True, exist_ok=True)
        self.descriptor = os.open(home / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            found = os.read(self.descriptor, 4096).decode(errors="replace").strip()
            os.close(self.descriptor)
            raise ServeError(f"another `distillery serve` uses {home}: {found or 'it is starting'}") from None
        self.write(None)

    def write(self, url: str | None) -> None:
        """Say whose the home is, and where the service answers once it does."""
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, json.dumps({"pid": os.getpid(), "url": url}).encode(), 0)

    def release(self) -> None:
        os.ftruncate(self.descriptor, 0)
        os.close(self.descriptor)


def empty_broker(settings: "Settings") -> None:
    """Drop what an earlier run left in the embedded broker: the reconciler rings again for queued jobs."""
    if settings.broker is None:
        shutil.rmtree(settings.broker_folder, ignore_errors=True)


def find_port(host: str, port: int) -> int:
    """The port, or a free one for 0.

    Raises:
        ServeError: something else listens there, or the host is none of this machine's.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return int(probe.getsockname()[1])
    except OSError as error:
        raise ServeError(f"cannot listen on {host}, port {port}: {error.strerror}; --port 0 picks a free one") from None


def url_of(host: str, port: int) -> str:
    """Where this machine reaches a service bound to `host`."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"
