"""API processes killed while an upload arrives: what was answered is there, what was not is sent again."""

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from storage import uploads
from storage.database import Database
from storage.ids import is_check
from storage.retention import sweep
from storage.settings import Settings
from storage.tables import Job
from tests.api.conftest import eventually
from tests.api.test_server import answers, free_port, start
from tests.api.test_uploads import CONTENT, PART, begin, content_digest, part, put


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def environment(tmp_path: Path, port: int) -> dict[str, str]:
    values = {"HOME": str(tmp_path), "PORT": str(port), "MIN_FREE_BYTES": "0", "MAX_PART_BYTES": str(PART)}
    return os.environ | {f"DISTILLERY_{name}": value for name, value in values.items()}


@pytest.fixture
def client(port: int) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
        yield client


def test_an_upload_survives_killed_servers(
    tmp_path: Path, port: int, environment: dict[str, str], client: httpx.Client
):
    server = run(environment, tmp_path / "log-1", client)
    upload = begin(client)
    assert put(client, upload, 2, part(upload, 2)).status_code == 200
    folder = tmp_path / "uploads" / upload["id"]
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(half_a_part(upload))
        eventually(lambda: accepted(server.pid, connection), 20)
        kill(server)

    server = run(environment, tmp_path / "log-2", client)
    assert client.get(f"/datasets/{upload['id']}").json()["missing"] == [1, 3]
    for number in (1, 3):
        assert put(client, upload, number, part(upload, number)).status_code == 200
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(f"POST /datasets/{upload['id']}/complete HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        kill(server)  # before or after the commit: nobody was told

    server = run(environment, tmp_path / "log-3", client)
    try:
        shown = client.get(f"/datasets/{upload['id']}").json()
        assert (shown["status"], shown["missing"]) in (("uploading", []), ("checking", []))
        assert client.post(f"/datasets/{upload['id']}/complete").json()["status"] == "checking"
        settings = Settings(home=tmp_path, sweep_grace_seconds=0.0)
        database = Database(settings.database)
        sweep(database, settings)
        with database.read() as session:
            assert [is_check(job.id) for job in session.query(Job)] == [True]  # one check, however often it was asked
            parts = [tmp_path / each.path for each in uploads.list_parts(session, upload["id"])]
        database.close()
        assert sorted(folder.iterdir()) == sorted(parts)
        assert b"".join(each.read_bytes() for each in parts) == CONTENT
    finally:
        kill(server)


def run(environment: dict[str, str], log: Path, client: httpx.Client) -> subprocess.Popen[bytes]:
    server = start(environment, log)
    eventually(lambda: answers(client), 90)
    return server


def kill(server: subprocess.Popen[bytes]) -> None:
    server.send_signal(signal.SIGKILL)
    server.wait(20)


def half_a_part(upload: dict) -> bytes:
    data = part(upload, 1)
    head = [f"PUT /datasets/{upload['id']}/parts/1 HTTP/1.1", "Host: localhost", f"Content-Length: {len(data)}"]
    head += [f"{name}: {value}" for name, value in content_digest(data).items()]
    return "\r\n".join([*head, "", ""]).encode() + data[: PART // 2]


def accepted(pid: int, connection: socket.socket) -> bool:
    """Whether the server has taken the connection."""
    sent = connection.getsockname()[1]
    return any(each.raddr and each.raddr.port == sent for each in psutil.Process(pid).net_connections())
