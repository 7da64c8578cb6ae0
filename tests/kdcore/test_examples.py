"""Every example goes all the way: its spec, some steps of each stage, a pause in their midst, the rest, the files.

Data that is not there is stood in for by files of its own format (`standins`).
"""

from functools import cache, partial
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from torch.onnx._internal.exporter._registration import ONNXRegistry

from kdcore import finish
from kdcore.checkpoint import load
from kdcore.export import weights_digest
from kdcore.inputs import example_inputs
from kdcore.opening import choose_here
from kdcore.plan import make_plan
from kdcore.reporter import Interrupted, RecordingReporter, Request
from kdcore.spec import JobSpec, spec_digest
from kdcore.stages import list_stages
from kdcore.train import run
from tests.kdcore.standins import stand_in, write_data

GUIDED = ("upload-budget", "upload-onnx", "upload-resnet", "upload-unlabelled")
"""Run by their guides, with the uploads that these make: tests/e2e/test_guides.py."""
EXAMPLES = [path for path in sorted((Path(__file__).parents[2] / "examples").glob("*.yaml")) if path.stem not in GUIDED]


class StopAfterTraining(RecordingReporter):
    """Cancels the job once so many checkpoints are there: each stage ends with one."""

    def __init__(self, stages: int) -> None:
        super().__init__()
        self.wanted = stages

    def requested(self) -> Request | None:
        super().requested()
        return "cancel" if len(self.checkpoints) == self.wanted else None


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_data(root)
    return root


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """One timed call of each model, and torch's list of ONNX operators read once instead of for every export."""
    monkeypatch.setattr(finish, "measure_latency", partial(finish.measure_latency, seconds=0))
    monkeypatch.setattr(finish, "time_calls", partial(finish.time_calls, seconds=0))
    monkeypatch.setattr(ONNXRegistry, "from_torchlib", staticmethod(OPERATORS))


OPERATORS = cache(ONNXRegistry.from_torchlib)


def models(reporter: RecordingReporter, spec: JobSpec) -> dict[str, str]:
    """The digests of all that was trained, as the last checkpoint has it."""
    state = load(reporter.checkpoints[-1].path, spec_digest=spec_digest(spec))["state"]
    return {name: weights_digest(weights) for name, weights in state["models"].items()}


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_each_example_trains_resumes_to_the_same_bytes_and_exports(path: Path, data: Path, tmp_path: Path) -> None:
    spec, given = stand_in(path, data, tmp_path)
    stages, same = list_stages(spec), choose_here(spec)  # as every attempt of a job has
    whole = StopAfterTraining(len(stages))
    with pytest.raises(Interrupted):
        run(spec, reporter=whole, out=tmp_path / "whole", choices=same, **given)
    wanted = models(whole, spec) if stages else {}

    # A job without stages is paused in its evaluation, any other within its last epoch.
    paused = RecordingReporter(request="pause", request_at=max(1, whole.polls - 4))
    with pytest.raises(Interrupted):
        run(spec, reporter=paused, out=tmp_path / "out", choices=same, **given)
    saved = paused.checkpoints[-1]
    assert (saved.stage, saved.epoch) == ((stages[-1].name, 1) if stages else ("evaluation", 0))

    resumed = RecordingReporter()
    result = run(spec, reporter=resumed, out=tmp_path / "out", resume=saved.path, **given)
    if stages:
        assert models(resumed, spec) == wanted
    check_files(spec, tmp_path / "out", result)


def check_files(spec: JobSpec, out: Path, result: dict[str, Any]) -> None:
    """The result is of the student whose files these are, and they are all there."""
    expected = {"student.onnx", "student.pt2", "student.safetensors", "model.json", "README.md", "result.json"}
    expected |= {f"teacher-{n}.safetensors" for n, teacher in enumerate(spec.teachers, 1) if teacher.train is not None}
    expected |= {"baseline.safetensors"} if result["baseline"] is not None else set()
    expected |= {"student-int8.onnx"} if spec.export.int8 else set()
    names = {path.name for path in out.iterdir()} - {"checkpoints"}
    if spec.profile:
        profiles = {name for name in names if name.startswith("profile-")}
        assert len(profiles) == 2 * len({stage.role for stage in list_stages(spec)})
        names -= profiles
    assert names - {"student-raw.onnx"} == expected
    assert ("student-raw.onnx" in names) == (len(spec.data.facts().input_shape) == 3 and not result["left_out"])
    facts = spec.student.view.facts(spec.data.facts()) if spec.student.view is not None else spec.data.facts()
    runtime = onnxruntime.InferenceSession(str(out / "student.onnx"), providers=["CPUExecutionProvider"])
    logits = runtime.run(["logits"], {"input": example_inputs(facts, 3).numpy()})[0]
    assert logits.shape == (3, len(facts.classes))
    counted = sum(value.numel() for value in load_file(out / "student.safetensors").values())
    assert counted >= make_plan(spec).student.parameters == result["student"]["parameters"]
    assert torch.from_numpy(logits).isfinite().all()
