"""`serve` as a process of its own: several API processes, one set of figures, and a quick end."""

import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil

from tests.api.conftest import eventually, submit

CODE = "from storage.settings import Settings; from api.server import serve; serve(Settings())"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def answers(client: httpx.Client) -> bool:
    try:
        return client.get("/healthz").status_code == 200
    except httpx.TransportError:
        return False


def request_count(client: httpx.Client) -> float:
    lines = client.get("/metrics").text.splitlines()
    name = 'distillery_http_requests_total{method="GET",route="/jobs",status="200"} '
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


def start(environment: dict[str, str], output: Path) -> subprocess.Popen[bytes]:
    with output.open("wb") as log:
        return subprocess.Popen([sys.executable, "-c", CODE], env=environment, stderr=log, stdout=log)


def test_who_waits_while_the_server_stops_is_told_to_ask_again(tmp_path: Path):
    port = free_port()
    values = {"HOME": str(tmp_path), "PORT": str(port), "MIN_FREE_BYTES": "0"}
    server = start(os.environ | {f"DISTILLERY_{name}": value for name, value in values.items()}, tmp_path / "log")
    try:
        with (
            httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client,
            ThreadPoolExecutor(1) as pool,
        ):
            eventually(lambda: answers(client), 90)
            job_id = submit(client)["id"]
            waiting = pool.submit(client.get, f"/jobs/{job_id}?wait=50")
            time.sleep(2)  # it is sent; nothing shows that it has arrived
            server.send_signal(signal.SIGTERM)
            answer = waiting.result(40)
            assert (answer.status_code, answer.json()["code"]) == (503, "stopping")
            assert answer.headers["Retry-After"] == "1"
            server.wait(20)
    finally:
        server.kill()
        server.wait(10)


def test_two_processes_count_together_and_end_at_once_with_a_stream_open(tmp_path: Path):
    port = free_port()
    environment = os.environ | {
        "DISTILLERY_HOME": str(tmp_path),
        "DISTILLERY_PORT": str(port),
        "DISTILLERY_API_PROCESSES": "2",
        "DISTILLERY_MIN_FREE_BYTES": "0",
        "OMP_NUM_THREADS": "1",
    }
    server = start(environment, tmp_path / "log")
    family = []
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20, trust_env=False) as client:
            eventually(lambda: answers(client), 90)
            family = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
            for _ in range(20):  # a connection each: both processes get some
                with httpx.Client(base_url=client.base_url, trust_env=False, timeout=20) as other:
                    assert other.get("/jobs").status_code == 200
            eventually(lambda: request_count(client) == 20)
            job_id = submit(client)["id"]
            with client.stream("GET", f"/jobs/{job_id}/events", headers={"Accept": "text/event-stream"}) as response:
                lines = response.iter_lines()  # kept: httpx hangs up when an iterator is thrown away
                next(lines)
                begun = time.monotonic()
                server.send_signal(signal.SIGTERM)
                server.wait(20)
                assert time.monotonic() - begun < 10
        _, alive = psutil.wait_procs(family, timeout=10)
        assert not alive
        assert b"Traceback" not in (tmp_path / "log").read_bytes()
    finally:
        for process in family:
            if process.is_running():
                process.kill()
        server.kill()
        server.wait(10)
