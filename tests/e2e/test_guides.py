"""The guides on data, teachers and students of one's own, followed to the letter: first scripts, then commands."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import onnxruntime
import pyarrow.parquet
import pytest
import torchvision
from safetensors.torch import load_file

if TYPE_CHECKING:
    from tests.e2e.conftest import Running

ROOT = Path(__file__).parents[2]
ADDRESS = "http://127.0.0.1:8000"
SECONDS = 800.0
BLOCK = re.compile(r"(?:^`(?P<file>out/[\w.]+)`[^\n]*\n\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.M | re.S)

pytestmark = [pytest.mark.timeout(900), pytest.mark.parametrize("service", ["embedded"], indirect=True)]


@pytest.fixture(scope="module", autouse=True)
def _one_core() -> Iterator[None]:
    """What is started here, the service above all: two threads that wait for each other are slow beside other tests."""
    if sys.platform != "linux":
        yield
        return
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    yield
    os.sched_setaffinity(0, cores)


def follow(page: str, service: Running, folder: Path) -> tuple[str, dict[str, Any]]:
    """Do what a guide says, in a folder like the project's; what was printed, and the job as it ended."""
    (folder / "out").mkdir()
    (folder / ".venv").symlink_to(sys.prefix)
    (folder / "examples").symlink_to(ROOT / "examples")
    commands = []
    for block in BLOCK.finditer((ROOT / "docs" / "guides" / page).read_text()):
        if block["file"] is not None:
            (folder / block["file"]).write_text(block["text"])
        elif block["language"] == "bash":
            commands.append(block["text"])
    script = "\n".join(commands).replace(ADDRESS, service.url)
    variables = {"DISTILLERY_URL": service.url, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder, env=os.environ | variables, capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    with httpx.Client(base_url=service.url, timeout=40) as http:
        newest = http.get("/jobs", params={"limit": 1}).json()["data"][0]["id"]
        job = http.get(f"/jobs/{newest}").json()
    assert job["status"] == "succeeded", job["error"]
    return done.stdout, job


def upload(service: Running, many: str, name: str) -> dict[str, Any]:
    """An upload that a guide made, as the service shows it."""
    with httpx.Client(base_url=service.url, timeout=40) as http:
        (found,) = http.get(f"/{many}", params={"name": name}).json()["data"]
        shown: dict[str, Any] = http.get(f"/{many}/{found['id']}").json()
    assert (shown["status"], shown["version"]) == ("ready", 1)
    return shown


def run_onnx(path: Path, inputs: Any) -> Any:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: inputs})[0]


def test_pictures_and_a_resnet_that_is_given(service: Running, tmp_path: Path) -> None:
    printed, job = follow("pictures.md", service, tmp_path)
    teacher, out = upload(service, "models", "resnet18"), tmp_path / "out" / "fruit"
    assert teacher["parts"] == 2  # it was uploaded in parts
    result, model = job["result"], json.loads((out / "model.json").read_text())
    said = float(re.search(r"teacher: (\d\.\d+) of", printed)[1])  # type: ignore[index]
    assert result["teacher"]["accuracy"] == pytest.approx(said, abs=0.05)  # JPEG is not quite what it was drawn as
    assert result["teacher"]["parameters"] == 11_178_051
    assert result["student"]["accuracy"] > 0.6
    assert model["provenance"]["teachers"][0]["weights"] == {"model": teacher["id"]}
    student = torchvision.models.get_model("shufflenet_v2_x0_5", weights=None, num_classes=3)
    student.load_state_dict(load_file(out / "student.safetensors"))
    assert printed.splitlines()[-1] in ("lemon", "lime", "plum")


def test_texts_and_the_logits_of_a_teacher_that_is_not_there(service: Running, tmp_path: Path) -> None:
    printed, job = follow("texts.md", service, tmp_path)
    profile = upload(service, "datasets", "news")["profile"]
    table = pyarrow.parquet.read_table(tmp_path / "out" / "news.parquet").to_pylist()
    names = [each["name"] for each in profile["classes"]]
    right = np.mean([names[int(np.argmax(row["logits"]))] == row["label"] for row in table])
    result = job["result"]
    assert result["teacher"]["accuracy"] == pytest.approx(right, abs=0.12)  # of the tenth that is the test split
    assert result["teacher"]["parameters"] is None
    assert result["student"]["accuracy"] > 0.5
    assert printed.splitlines()[-1] == "sport"


def test_an_onnx_teacher_and_a_list_of_layers(service: Running, tmp_path: Path) -> None:
    _, job = follow("onnx.md", service, tmp_path)
    out = tmp_path / "out"
    digits = np.load(out / "digits.npz")
    teacher = run_onnx(out / "digits.onnx", digits["test_inputs"][..., None].astype("float32")).argmax(1)
    student = run_onnx(out / "digits" / "student.onnx", digits["test_inputs"][:, None].astype("float32") / 255).argmax(
        1
    )
    result = job["result"]
    assert result["teacher"]["accuracy"] == pytest.approx((teacher == digits["test_labels"]).mean())
    assert result["student"]["accuracy"] == pytest.approx((student == digits["test_labels"]).mean())
    assert result["student"]["agreement"] == pytest.approx((student == teacher).mean())
    assert result["student"]["accuracy"] > 0.6
    assert job["spec"]["student"]["model"]["type"] == "sequential"


def test_a_csv_without_labels(service: Running, tmp_path: Path) -> None:
    printed, job = follow("unlabelled.md", service, tmp_path)
    result = job["result"]
    assert upload(service, "datasets", "cells")["profile"]["labelled"] == {"train": 0, "validation": 0, "test": 0}
    assert (result["teacher"]["accuracy"], result["student"]["accuracy"], result["baseline"]) == (None, None, None)
    assert result["student"]["agreement"] > 0.8
    told = dict(re.findall(r"^(teacher|student): (\d\.\d+) of the 119 labelled cells$", printed, re.M))
    assert float(told["student"]) > 0.8
    assert float(told["teacher"]) > 0.8
    card = (tmp_path / "out" / "cells" / "README.md").read_text()
    data, teacher = upload(service, "datasets", "cells"), upload(service, "models", "cells")
    assert f"your own, {data['id']}, the file {data['digest']}" in card
    assert teacher["id"] in card


def test_a_student_within_a_budget(service: Running, tmp_path: Path) -> None:
    printed, job = follow("budget.md", service, tmp_path)
    student = job["result"]["student"]
    assert 2_000 < student["parameters"] <= 3_000
    assert f"'parameters': {student['parameters']}" in printed  # the plan said it
    assert student["accuracy"] > 0.5
    files = {path.name for path in (tmp_path / "out" / "signs").iterdir()}
    assert {"student.onnx", "student-raw.onnx", "student.safetensors", "model.json", "README.md"} <= files
