"""`distillery serve` and `make demo`: they start with one command, and leave nothing behind however they end."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from distillery import Client, ConnectionFailed

if TYPE_CHECKING:
    from tests.e2e.conftest import Marked

ROOT = Path(__file__).parents[2]
ENDLESS: dict[str, Any] = {
    "name": "endless",
    "data": {"type": "digits"},
    "teachers": [{"model": {"type": "mlp", "hidden": [16]}, "train": {"epochs": 100_000}}],
    "student": {"model": {"type": "mlp", "hidden": [4]}},
    "checkpoint": {"every_seconds": 0.5},
}


def address(home: Path, marked: Marked, launcher: subprocess.Popen[bytes]) -> str:
    """What the launcher printed, once it is ready."""
    end = time.monotonic() + 120
    while (found := re.search(r"answers at (http\S+)", marked.output(launcher))) is None:
        assert launcher.poll() is None, marked.output(launcher)
        assert time.monotonic() < end, marked.output(launcher)
        time.sleep(0.05)
    return found[1]


def start(marked: Marked, home: Path) -> tuple[subprocess.Popen[bytes], str]:
    launcher = marked.start("distillery", "serve", "--home", str(home), "--port", "0")
    return launcher, address(home, marked, launcher)


def until_training(client: Client, id: str, attempt: int) -> None:
    """Running as that attempt, with progress to show; the service may be away meanwhile."""
    end = time.monotonic() + 90
    job: dict[str, Any] = {}
    while True:
        with contextlib.suppress(ConnectionFailed):
            job = client.get(id)
            if (job["status"], job["attempt"]) == ("running", attempt) and job["progress"]:
                return
        assert time.monotonic() < end, job
        time.sleep(0.05)


def test_one_home_through_a_second_launcher_a_killed_one_a_dead_child_and_ctrl_c(
    marked: Marked, tmp_path: Path
) -> None:
    launcher, url = start(marked, tmp_path)
    second = marked.start("distillery", "serve", "--home", str(tmp_path), "--port", "0")
    with Client(url) as client:
        id = client.submit(ENDLESS)["id"]
        until_training(client, id, attempt=1)
    assert second.wait(60) == 1
    assert url in marked.output(second)
    launcher.kill()
    launcher.wait(10)
    marked.assert_none_left(20)

    launcher, url = start(marked, tmp_path)  # goes on with the job
    with Client(url) as client:
        until_training(client, id, attempt=2)
        (api,) = [process for process in marked.left() if process.ppid() == launcher.pid and "api" in process.cmdline()]
        api.kill()  # it is started again, and training has not noticed
        api.wait(10)
        until_training(client, id, attempt=2)
    assert "starting it again" in marked.output(launcher)
    os.killpg(launcher.pid, signal.SIGINT)  # as a terminal does
    assert launcher.wait(90) == 0, marked.output(launcher)
    marked.assert_none_left(1)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/healthz")


def test_the_demo_ends_with_a_student_that_works_and_leaves_nothing(marked: Marked, tmp_path: Path) -> None:
    out = tmp_path / "student"
    demo = marked.start("distillery.demo", "examples/digits-mlp.yaml", "--out", str(out))
    assert demo.wait(180) == 0, marked.output(demo)
    marked.assert_none_left(0.5)
    shown = marked.output(demo)
    assert [shown.count(f"\n {row} ") for row in ("teacher", "baseline", "distilled student")] == [1, 1, 1]
    there, measured = re.findall(r"accuracy (\d\.\d{4}) \(the service measured (\d\.\d{4})\)", shown)[0]
    assert there == measured
    assert (out / "student.onnx").stat().st_size > 0
    pasted = [line.strip() for line in shown.partition("What next:")[2].splitlines() if not line.startswith("  #")]
    for command in pasted:
        if "student" in command:
            done = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60)
            assert (done.returncode, bool(done.stdout)) == (0, True), command + done.stderr


def test_an_interrupted_demo_leaves_nothing(marked: Marked) -> None:
    demo = marked.start("distillery.demo")
    end = time.monotonic() + 120
    while "stage started" not in marked.output(demo):
        assert demo.poll() is None, marked.output(demo)
        assert time.monotonic() < end, marked.output(demo)
        time.sleep(0.05)
    os.killpg(demo.pid, signal.SIGINT)
    assert demo.wait(30) == 130, marked.output(demo)
    marked.assert_none_left(0.5)
