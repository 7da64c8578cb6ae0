"""Slow, silent and greedy clients: what they hold is bounded, and everybody else is answered meanwhile."""

import contextlib
import json
import os
import resource
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import psycopg
import pytest

from api import bodies, budget, protocol
from distillery.embedded import environment
from storage import attempts, records
from storage.blobs import BlobStore
from storage.database import Database
from storage.lifecycle import Fence, add_event
from storage.settings import Settings
from tests.api.conftest import SPEC, Api, eventually, said, submit
from tests.api.test_server import answers, free_port
from tests.conftest import OpenSettings

MIB = 2**20
STREAMS, DOWNLOADS = 200, 40
EVENTS, EVENT_BYTES = 3_000, 1_000
ARTIFACT_BYTES = 24 * MIB
CODE = """
from api import protocol
from api.server import serve
from storage.settings import Settings
protocol.STALL_SECONDS = {stall}
serve(Settings())
"""


class Raw:
    """A connection whose client does only what it is told to."""

    def __init__(self, port: int, head: str = "", *, key: str | None = None) -> None:
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.settimeout(20)
        self.socket.connect(("127.0.0.1", port))
        if head:
            keyed = f"Authorization: Bearer {key}\r\n" if key else ""
            self.socket.sendall(f"{head} HTTP/1.1\r\nHost: 127.0.0.1\r\n{keyed}".encode())

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def ends(self, seconds: float) -> bytes:
        """All that comes until the server closes; fails where it does not in time."""
        self.socket.settimeout(seconds)
        data = b""
        with contextlib.suppress(ConnectionResetError):
            while more := self.socket.recv(65_536):
                data += more
        return data


def key_of(client: httpx.Client) -> str:
    return str(client.headers["authorization"].split()[1])


def test_a_connection_that_never_says_what_it_wants_is_closed(files_api: Api, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.5)
    silent, halting = Raw(files_api.port), Raw(files_api.port, "GET /healthz")
    assert (silent.ends(5), halting.ends(5)) == (b"", b"")


def test_the_head_of_a_next_request_is_not_waited_for_for_ever_either(files_api: Api, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.5)
    raw = Raw(files_api.port, "GET /healthz")
    raw.send(b"\r\n")
    assert b"200 OK" in raw.socket.recv(4096)
    time.sleep(0.7)  # idle between two requests: keep-alive's own time is longer
    raw.send(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    assert b"200 OK" in raw.socket.recv(4096)
    begun = time.monotonic()
    with contextlib.suppress(OSError):
        for _ in range(100):
            raw.send(b"X")
            time.sleep(0.1)
    assert 0.3 < time.monotonic() - begun < 5


def test_a_request_that_takes_long_to_answer_is_not_cut_off(
    files_api: Api, files_client: httpx.Client, monkeypatch: pytest.MonkeyPatch
):
    job_id = submit(files_client)["id"]
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.3)
    monkeypatch.setattr(protocol, "STALL_SECONDS", 0.3)
    with httpx.Client(base_url=files_api.url, headers=files_client.headers, trust_env=False) as client:
        assert client.get(f"/jobs/{job_id}?wait=1.5").json()["status"] == "queued"


def test_a_body_that_trickles_is_cut_off_and_makes_no_job(
    files_api: Api, files_client: httpx.Client, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(bodies, "BODY_SECONDS", 1.0)
    raw = Raw(files_api.port, "POST /jobs", key=key_of(files_client))
    raw.send(b"Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n")
    begun = time.monotonic()
    with contextlib.suppress(OSError):
        while time.monotonic() < begun + 10:
            raw.send(b" ")
            raw.socket.settimeout(0.2)
            with contextlib.suppress(TimeoutError):
                answer = raw.socket.recv(65_536)
                break
    assert time.monotonic() - begun < 5
    assert b" 408 " in answer
    assert json.loads(answer.split(b"\r\n\r\n", 1)[1])["code"] == "body_timeout"
    assert raw.ends(5) == b""
    assert files_client.get("/jobs").json()["data"] == []
    eventually(lambda: files_api.service.bodies.held == 0)


def test_bodies_at_once_are_bounded_in_memory_and_given_back(
    files_api: Api, files_client: httpx.Client, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(files_api.service.bodies, "_most", 100_000)
    raws = [Raw(files_api.port, "POST /jobs", key=key_of(files_client)) for _ in range(9)]
    for raw in raws:
        raw.send(b"Content-Type: application/json\r\nContent-Length: 100000\r\n\r\n" + b" " * 11_000)
    eventually(lambda: files_api.service.bodies.held == 99_000)
    response = files_client.post("/jobs", content=b" " * 2_000, headers={"Content-Type": "application/json"})
    said(response, 503, "too_many_bodies")
    assert int(response.headers["retry-after"]) > 0
    for raw in raws:
        raw.socket.close()
    eventually(lambda: files_api.service.bodies.held == 0)
    submit(files_client)
    said(files_client.post("/jobs/plan", json={}), 422, "invalid_spec")
    eventually(lambda: files_api.service.bodies.held == 0)


def test_the_memory_for_bodies_fits_the_largest_one():
    assert budget.Bodies(2**30)._most >= 2**30


def slow_reader(api: Api, client: httpx.Client, size: int, head: str) -> tuple[Raw, bytes]:
    """A client that takes 4 KiB every now and then, for two seconds; and what it has got."""
    job_id = submit(client)["id"]
    api.succeed(api.claim(job_id), {"large.bin": b"x" * size})
    slow = Raw(api.port, f"GET /jobs/{job_id}/artifacts/large.bin", key=key_of(client))
    slow.send(f"{head}\r\n".encode())
    slow.socket.settimeout(5)
    end, data = time.monotonic() + 2.0, b""
    while time.monotonic() < end:
        data += slow.socket.recv(4096)
        time.sleep(0.05)
    return slow, data


def test_a_reader_that_is_slow_is_served_and_one_that_stops_is_cut_off(
    files_api: Api, files_client: httpx.Client, monkeypatch: pytest.MonkeyPatch
):
    """Slow ones were cut off, too, whose buffers had not been empty for a minute."""
    monkeypatch.setattr(protocol, "STALL_SECONDS", 0.4)
    slow, data = slow_reader(files_api, files_client, 8 * MIB, "")
    assert slow.socket.recv(4096)
    time.sleep(2.0)
    assert len(data) + len(slow.ends(5)) < MIB


def test_the_rest_of_an_answer_is_sent_to_a_slow_reader_after_the_last_write(
    files_api: Api, files_client: httpx.Client, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(protocol, "STALL_SECONDS", 0.4)
    slow, data = slow_reader(files_api, files_client, 256 * 1024, "Connection: close\r\n")
    data += slow.ends(5)
    head, body = data.split(b"\r\n\r\n", 1)
    assert b"200 OK" in head
    assert len(body) == 256 * 1024


def few_files() -> None:
    """As many open files as a system may begin with that has fewer than the server needs."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, hard))


@pytest.fixture
def served(tmp_path: Path, open_settings: OpenSettings) -> Iterator[tuple[psutil.Process, httpx.Client, Settings]]:
    """`distillery api` as a process of its own over PostgreSQL and Redis; who does not read is cut off after 20 s.

    So long, because a busy machine needs a while until all readers are there at the same time.
    """
    with open_settings("deployed", tmp_path) as opened:
        port = free_port()
        settings = opened.model_copy(update={"port": port, "min_free_bytes": 0, "poll_seconds": 0.05})
        variables = environment(opened) | {
            "DISTILLERY_PORT": str(port), "DISTILLERY_MIN_FREE_BYTES": "0", "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        with (tmp_path / "log").open("wb") as log:
            server = subprocess.Popen(
                [sys.executable, "-c", CODE.format(stall=20)], env=os.environ | variables, stderr=log, stdout=log,
                preexec_fn=few_files,
            )  # fmt: skip
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20, trust_env=False) as client:
                eventually(lambda: answers(client), 90)
                yield psutil.Process(server.pid), client, settings
        finally:
            server.terminate()
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait(10)


def with_history(settings: Settings, job_id: str) -> None:
    """A job that runs, has a long history, and a large file."""
    database = Database(settings.database)
    source = settings.home / f"source-{secrets.token_hex(4)}"
    source.write_bytes(os.urandom(MIB) * (ARTIFACT_BYTES // MIB))
    digest, size = BlobStore(settings.blobs).put(source)
    with database.write() as session:
        job = attempts.claim(session, "worker-1", ("auto", "cpu"), 600.0)
        assert job is not None
        assert job.id == job_id
        fence = Fence(job_id, job.attempt)
        for _ in range(EVENTS):
            add_event(session, fence, "note", {"text": "x" * EVENT_BYTES})
        records.publish(session, fence, [records.NewArtifact("large.bin", digest, size, "application/octet-stream")])
    database.close()


def in_transaction(settings: Settings) -> int:
    """Connections of the server that are in a transaction at this moment."""
    with psycopg.connect(settings.database, autocommit=True) as connection:
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        (row,) = connection.execute(f"{query} AND state <> 'idle'").fetchall()
    return int(row[0])


def clients(server: psutil.Process, port: int) -> int:
    """Connections that the server holds."""
    there = server.net_connections("tcp4")
    return sum(each.laddr.port == port and each.status == psutil.CONN_ESTABLISHED for each in there)


@pytest.mark.timeout(300)
def test_readers_that_do_not_read_hold_neither_memory_nor_connections_and_are_cut_off(
    served: tuple[psutil.Process, httpx.Client, Settings],
):
    server, client, settings = served
    job_id = client.post("/jobs", json=SPEC).json()["id"]
    with_history(settings, job_id)
    client.post("/jobs/plan", json=SPEC)  # torch is warm, and what it takes is there
    file = f"/jobs/{job_id}/artifacts/large.bin"
    assert len(client.get(file).content) == ARTIFACT_BYTES
    before = server.memory_info().rss

    port = settings.port
    readers = [Raw(port, f"GET /jobs/{job_id}/events") for _ in range(STREAMS)]
    for reader in readers:
        reader.send(b"Accept: text/event-stream\r\n\r\n")
    for _ in range(DOWNLOADS):
        reader = Raw(port, f"GET {file}")
        reader.send(b"\r\n")
        readers.append(reader)
    eventually(lambda: clients(server, port) >= len(readers), 60)

    busy = []
    for _ in range(20):
        assert client.get("/jobs").status_code == 200
        assert client.get(f"/jobs/{job_id}?wait=0").json()["status"] == "running"
        busy.append(in_transaction(settings))
        time.sleep(0.1)
    assert busy.count(0) >= 5, f"connections in a transaction: {busy}"
    held = server.memory_info().rss - before
    unread = STREAMS * EVENTS * EVENT_BYTES + DOWNLOADS * ARTIFACT_BYTES
    assert held < 400_000 * len(readers) < unread / 10, f"{held / MIB:.0f} MiB for {len(readers)} readers"
    assert server.num_threads() < 80
    assert len(client.get(file).content) == ARTIFACT_BYTES  # a reader that reads is served

    eventually(lambda: clients(server, port) <= 1, 60)  # all that did not read are gone
    assert server.memory_info().rss - before < 400_000 * len(readers)
    assert client.get("/jobs").status_code == 200
    for reader in readers:
        reader.socket.close()
