"""Passwords and keys are in no output and no answer, whatever is wrong and however much is logged."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.conftest import POSTGRES

DATABASE, BROKER, KEY, WRONG = "database-s3cret", "broker-s3cret", "api-key-s3cret-0123", "another-s3cret-0123"
SPEC = {"data": {"type": "digits"}, "teachers": [{"model": {"type": "mlp"}}], "student": {"model": {"type": "mlp"}}}
SECONDS = 90.0


@pytest.fixture
def nobody() -> Iterator[int]:
    """A port that refuses."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # never listening
        yield bound.getsockname()[1]


@contextmanager
def command(name: str, home: Path, **settings: str) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[], str]]]:
    """`distillery <name>`, saying all it can; ended with the block."""
    given = {"HOME": str(home), "LOG_LEVEL": "debug", "DEVICE": "cpu", "WARM_SPARE": "false", "DRAIN_SECONDS": "1"}
    variables = {f"DISTILLERY_{key}": value for key, value in (given | settings).items()}
    path = home / f"{name}.txt"
    with path.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "distillery", name],
            env=os.environ | variables | {"OMP_NUM_THREADS": "1"}, stdout=output, stderr=output,
        )  # fmt: skip
    try:
        yield process, lambda: path.read_text(errors="replace")
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def until(output: Callable[[], str], words: str) -> None:
    end = time.monotonic() + SECONDS
    while re.search(words, output()) is None:
        assert time.monotonic() < end, output()
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("name", "fault"),
    [("migrate", "refused"), ("api", "refused"), ("worker", "refused"), ("doctor", "refused"), ("api", "not there")],
)
def test_a_database_that_cannot_be_reached(name: str, fault: str, tmp_path: Path, nobody: int, servers: None) -> None:
    refused = f"postgresql://alice:{DATABASE}@127.0.0.1:{nobody}/db"
    url = refused if fault == "refused" else re.sub(r"//(.*?)@(.*)/.*", rf"//\1:{DATABASE}@\2/none_such", POSTGRES)
    with command(name, tmp_path, DATABASE_URL=url) as (process, output):
        assert process.wait(SECONDS) == 1, output()
    assert "database does not" in output()
    assert DATABASE not in output()


@pytest.mark.parametrize("name", ["api", "doctor", "worker"])
def test_a_broker_that_cannot_be_reached(name: str, tmp_path: Path, nobody: int) -> None:
    url = f"redis://bob:{BROKER}@127.0.0.1:{nobody}/0"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with command(name, tmp_path, BROKER_URL=url, PORT=str(port)) as (process, output):
        if name == "doctor":
            process.wait(SECONDS)
        elif name == "worker":
            until(output, "(?i)cannot connect|refused")
        else:
            until(output, "Uvicorn running")
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as client:
                answers = [client.post("/jobs", json=SPEC), client.get("/readyz"), client.get("/metrics")]
            assert [answer.status_code for answer in answers] == [201, 503, 200]
            assert not [answer.text for answer in answers if BROKER in answer.text]
    assert BROKER not in output()
    assert output()


def test_keys_that_come_and_keys_that_are_there(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    keys = f'{{"alice": "{KEY}"}}'
    with command("api", tmp_path, API_KEYS=keys, PORT=str(port)) as (_, output):
        until(output, "Uvicorn running")
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as client:
            for key in (KEY, WRONG, f"{KEY}\xff"):
                headers = {"Authorization": f"Bearer {key}".encode("latin-1"), "Cookie": f"a={WRONG}"}
                sent = [client.get("/jobs", headers=headers), client.post("/jobs", json=SPEC, headers=headers),
                        client.post("/jobs", content=b"{", headers=headers), client.get("/nothing", headers=headers),
                        client.get(f"/jobs?key={WRONG}", headers=headers)]  # fmt: skip
                for answer in sent:
                    assert KEY not in answer.text + str(answer.headers)
                    assert WRONG not in answer.text + str(answer.headers)
            assert KEY not in client.get("/openapi.json").text
        with socket.create_connection(("127.0.0.1", port), timeout=10) as broken:
            broken.sendall(f"GET /jobs HTTP/1.1\r\nAuthorization: Bearer {WRONG}\r\n\x00: x\r\n\r\n".encode())
            assert WRONG.encode() not in broken.recv(4096)
    assert "unauthorized" in output() or "401" in output()
    assert KEY not in output()
    assert WRONG not in output()
