"""The load script in small: its numbers mean nothing here, its checks do.

`DISTILLERY_TEST_THOROUGH=1` runs it over the embedded form as well.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FORMS = ["embedded", "deployed"] if os.environ.get("DISTILLERY_TEST_THOROUGH") == "1" else ["deployed"]
SIZE = ["--jobs", "2000", "--seconds", "3", "--clients", "20", "--streams", "50"]
SHORT = ["--pause", "0.3", "--post-seconds", "0.5", "--stream-seconds", "2", "--api-processes", "1"]
SECONDS = 240.0
GROWTH_MIB = 100.0


@pytest.mark.parametrize("form", FORMS)
def test_a_small_crowd_is_served(request: pytest.FixtureRequest, form: str, tmp_path: Path) -> None:
    if form == "deployed":
        request.getfixturevalue("servers")
    out, script = tmp_path / "load.json", ROOT / "benchmarks" / "load.py"
    variables = os.environ | {"TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), "--form", form, *SIZE, *SHORT, "--out", str(out)]
    done = subprocess.run(
        command, env=variables, stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS, check=False
    )
    told = (done.stdout + done.stderr).decode()
    assert done.returncode == 0, told
    result = json.loads(out.read_text())
    assert result["errors"] == 0, told
    found = result["forms"][form]
    crowd, streams = found["crowd"]["clients"], found["streams"]["clients"]
    assert crowd["submitted"]["succeeded"] >= 1, told
    assert {"GET 200", "GET 304", "POST 201", "stream 200"} <= set(crowd["answers"]), told
    assert (streams["open_at_once"], sum(streams["ends"].values())) == (50, 50), told
    assert set(streams["ends"]) <= {"succeeded", "cancelled"}, told
    for phase in ("crowd", "streams"):
        for name, used in found[phase]["service"]["processes"].items():
            assert used["mib_most"] - used["mib_middle"] < GROWTH_MIB, (phase, name, told)
    if form == "deployed":
        assert 0 < found["crowd"]["service"]["database_connections_most"] < 100, told
    assert not list(tmp_path.glob("distillery-load-*")), "the script left its files"
