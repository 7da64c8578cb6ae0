"""The real API, in a thread of the test, without a worker; and a connection that can be cut."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import uvicorn
from pydantic import SecretStr

from api.app import create_app
from storage import attempts, records
from storage.blobs import BlobStore
from storage.database import Database
from storage.lifecycle import Fence
from storage.settings import Settings

KEY = "a-key-of-sixteen-characters"
BOUND_SECONDS = 20.0


@dataclass
class Api:
    """A running API and what a worker would do to its jobs."""

    url: str
    settings: Settings
    database: Database

    def claim(self, job_id: str) -> Fence:
        with self.database.write() as session:
            job = attempts.claim(session, "wrk_test", ("auto", "cpu"), 600.0)
        assert job is not None
        assert job.id == job_id
        return Fence(job.id, job.attempt)

    def succeed(self, fence: Fence, files: dict[str, bytes], folder: Path) -> None:
        """Publish these files and end the job."""
        found = []
        for name, content in files.items():
            source = folder / f"source-{name}"
            source.write_bytes(content)
            found.append(
                records.NewArtifact(name, *BlobStore(self.settings.blobs).put(source), "application/octet-stream")
            )
        with self.database.write() as session:
            records.publish(session, fence, found)
            attempts.succeed(session, fence, {"summary": "it worked"})


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    home = tmp_path / "home"
    settings = Settings(
        home=home,
        data=home / "data",
        port=0,
        api_keys={"alice": SecretStr(KEY)},
        poll_seconds=0.05,
        max_part_bytes=65_536,
    )
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(create_app(settings), log_config=None, timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        end = time.monotonic() + BOUND_SECONDS
        while not server.started:
            assert thread.is_alive(), "the API did not start"
            assert time.monotonic() < end, "the API did not start"
            time.sleep(0.02)
        database = Database(settings.database)
        yield Api(f"http://127.0.0.1:{listener.getsockname()[1]}", settings, database)
        database.close()
        server.should_exit = True
        thread.join(BOUND_SECONDS)
        assert not thread.is_alive()


@dataclass
class Wire:
    """A forwarder that cuts its first connections.

    Attributes:
        cuts: after how many bytes of the answer each of the first connections is cut; the others are whole.
        connections: how many there were.
    """

    target: tuple[str, int]
    cuts: list[int]
    connections: int = 0
    url: str = ""
    _listener: socket.socket = field(default_factory=socket.socket)

    def open(self) -> None:
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen()
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                most = self.cuts[self.connections] if self.connections < len(self.cuts) else None
                self.connections += 1
                server = socket.create_connection(self.target, BOUND_SECONDS)
                server.settimeout(None)
                threading.Thread(target=self._copy, args=(client, server, None), daemon=True).start()
                threading.Thread(target=self._copy, args=(server, client, most), daemon=True).start()

    def _copy(self, source: socket.socket, sink: socket.socket, most: int | None) -> None:
        with contextlib.suppress(OSError):
            while (most is None or most > 0) and (data := source.recv(65536 if most is None else min(most, 65536))):
                sink.sendall(data)
                most = None if most is None else most - len(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
                end.close()


@pytest.fixture
def wire(api: Api) -> Iterator[Wire]:
    """Lies between a client and the API; set `cuts` before the client connects."""
    host, port = api.url.removeprefix("http://").split(":")
    wire = Wire((host, int(port)), [])
    wire.open()
    yield wire
    wire.close()
