"""The service's benchmarks in small: their numbers mean nothing here, their checks do.

`DISTILLERY_TEST_THOROUGH=1` runs whole jobs as well.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
SECONDS = 280.0
THOROUGH = os.environ.get("DISTILLERY_TEST_THOROUGH") == "1"


def run(tmp_path: Path, script: str, *arguments: str) -> dict[str, Any]:
    """What a benchmark wrote."""
    out = tmp_path / "out.json"
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / script), *arguments, "--out", str(out)],
        env=os.environ | {"TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(out.read_text())
    assert found["command"].startswith(f"python benchmarks/{script}")
    assert {"cpu", "cores", "load_at_end"} <= set(found["machine"])
    assert found["versions"]["python"]
    assert not list(tmp_path.glob("distillery-*")), "the script left its files"
    return found


def test_imports(tmp_path: Path) -> None:
    rows = run(tmp_path, "imports.py", "--rounds", "1")["rows"]
    assert rows["import distillery"]["target"] == 0.1
    assert all(row["cpu_seconds"] > 0 for row in rows.values())


@pytest.mark.parametrize("form", ["sqlite", "postgresql"])
def test_queries(request: pytest.FixtureRequest, form: str, tmp_path: Path) -> None:
    if form == "postgresql":
        request.getfixturevalue("servers")
    found = run(tmp_path, "queries.py", "--form", form, "--jobs", "2000", "--points", "10000", "--asks", "2")
    rows = found["forms"][form]["milliseconds"]
    assert rows["1,000 points of one job"]["count"] == 2
    assert all(row["p50"] > 0 for row in rows.values())


def test_the_rate_of_the_api(tmp_path: Path) -> None:
    short = ["--rounds", "1", "--seconds", "0.3", "--clients", "2", "--crowd", "5", "--crowd-seconds", "1"]
    rows = run(tmp_path, "api_rate.py", "--form", "embedded", *short)["forms"]["embedded"]
    assert rows["empty"]["share_of_empty"] == 1
    assert all(row["per_second"] > 0 and row["crowd_ms"]["count"] > 0 for row in rows.values())


def write_mnist(root: Path) -> None:
    """MNIST's files with as few pictures as the case of the README's pair can be split into."""
    raw, drawn = root / "MNIST" / "raw", np.random.default_rng(0)
    raw.mkdir(parents=True)
    for part, count in (("train", 5_160), ("t10k", 40)):
        pictures, labels = drawn.integers(0, 256, (count, 28, 28), np.uint8), np.arange(count) % 10
        for kind, array in (("images-idx3", pictures), ("labels-idx1", labels.astype(np.uint8))):
            header = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
            (raw / f"{part}-{kind}-ubyte").write_bytes(header + array.tobytes())


def beside_others(*given: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.speed", *given],
        cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip


def test_the_loop_beside_others(tmp_path: Path) -> None:
    """And nothing of it is measured again by whoever resumes it here, nor gone on with elsewhere."""
    write_mnist(tmp_path)
    out, work = tmp_path / "out.json", tmp_path / "work"
    given = ["--data", str(tmp_path), "--work", str(work), "--out", str(out), "--case", "w1-teacher", "--rounds", "1"]
    done = beside_others(*given)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())
    assert {name: run["seconds"] > 0 for name, (run,) in found["runs"]["w1-teacher"].items()} == dict.fromkeys(
        ("tutorial", "expert", "ours", "bare products and updates"), True
    )
    assert "of the speed of its limit" in done.stdout

    resumed = beside_others(*given, "--resume")
    assert resumed.stdout == done.stdout
    assert json.loads(out.read_text()) == found
    out.write_text(json.dumps(found | {"machine": found["machine"] | {"cores": 1024}}))
    refused = beside_others(*given, "--resume")
    assert refused.returncode == 2
    assert "is of another machine" in refused.stderr


@pytest.mark.skipif(not THOROUGH, reason="DISTILLERY_TEST_THOROUGH=1 runs it")
def test_whole_jobs(tmp_path: Path) -> None:
    short = ["--rounds", "1", "--jobs", "1", "--epochs", "2"]
    found = run(tmp_path, "service.py", "--form", "embedded", *short)["forms"]["embedded"]
    assert found["same_student"]
    assert found["warm_seconds"]["median"] > 0
