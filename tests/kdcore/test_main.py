"""`python -m kdcore`: its exit codes and what it prints."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kdcore import __main__ as command
from kdcore.errors import TrainingError
from kdcore.reporter import Interrupted


@pytest.fixture
def spec(tiny: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(json.dumps(tiny))
    return path


@pytest.fixture(autouse=True)
def _keep_ctrl_c() -> Any:
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def call(*arguments: object) -> int:
    return command.main([str(argument) for argument in arguments])


def test_a_job_ends_in_a_table_and_zero(spec: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = subprocess.run(
        [sys.executable, "-m", "kdcore", spec, "--out", out, "--no-download", "--device", "cpu"],
        capture_output=True, text=True, timeout=120, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    lines = found.stdout.splitlines()
    assert lines[0].split() == ["accuracy", "agreement", "parameters", "size", "latency", "p50"]
    assert [re.split(r"  +", line)[0] for line in lines[1:4]] == ["teacher", "student alone", "student distilled"]
    result = json.loads((out / "result.json").read_text())
    assert f"{result['student']['accuracy']:.4f}" in lines[3]
    assert result["summary"] in found.stdout
    assert "stage distill-1" in found.stderr


def test_a_bad_spec_is_two_and_names_the_field(
    tiny: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "job.yaml"
    tiny["stages"][0]["losses"][1]["type"] = "kdd"
    path.write_text(json.dumps(tiny))
    assert call(path, "--out", tmp_path) == 2
    assert "stages[0].losses[1].type: " in capsys.readouterr().err
    tiny["stages"][0]["losses"][1]["type"] = "kd"
    tiny["stages"][0]["batch_size"] = 100_000  # only the plan can see this
    path.write_text(json.dumps(tiny))
    assert call(path, "--out", tmp_path) == 2
    assert "stages[0].batch_size: " in capsys.readouterr().err


def test_a_file_that_is_no_spec_is_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "job.yaml"
    assert call(path, "--out", tmp_path) == 2
    path.write_text("a: [1")
    assert call(path, "--out", tmp_path) == 2
    assert str(path) in capsys.readouterr().err


def test_a_failed_job_is_one_and_says_how_to_mend_it(
    tiny: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(json.dumps({**tiny, "data": {"type": "mnist"}}))
    assert call(path, "--out", tmp_path / "out", "--data", tmp_path, "--no-download") == 1
    assert "failed (bad_data)" in capsys.readouterr().err


def test_ctrl_c_pauses_and_resume_goes_on(tmp_path: Path, light: Any, tiny: dict[str, Any]) -> None:
    interrupting = command.TerminalReporter()
    interrupting.interrupt()
    assert interrupting.requested() == "pause"
    with pytest.raises(Interrupted):
        light(tiny, interrupting)
    assert interrupting.last is not None
    wanted, _ = light(tiny, out=tmp_path / "whole")
    found, _ = light(tiny, resume=interrupting.last)
    assert found["digests"] == wanted["digests"]


def test_an_interrupted_job_says_how_to_go_on(
    spec: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def paused(*_: Any, reporter: command.TerminalReporter, **__: Any) -> None:
        reporter.last = Path("checkpoint-007.pt")
        raise Interrupted("pause")

    monkeypatch.setattr(command, "run", paused)
    assert call(spec, "--out", tmp_path) == 130
    assert "--resume checkpoint-007.pt" in capsys.readouterr().err


def test_no_cuda_is_one(spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert call(spec, "--out", tmp_path, "--device", "cuda") == 1


def test_a_training_error_keeps_its_code() -> None:
    error = TrainingError("diverged", "text")
    assert (error.code, error.message, error.kind, str(error)) == ("diverged", "text", "user", "text")
