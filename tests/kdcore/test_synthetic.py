"""Made-up data: the same every time, and every task from its spec to a student that is used without this project."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from kdcore.data import Places, SyntheticConfig
from kdcore.data.base import TaskName
from kdcore.plan import make_plan
from kdcore.reporter import RecordingReporter
from kdcore.spec import SpecError, parse_spec
from kdcore.tasks import TASKS
from kdcore.train import run

LOSSES: dict[TaskName, list[dict[str, Any]]] = {
    "classification": [{"type": "cross_entropy"}, {"type": "kd"}],
    "multi_label": [{"type": "binary_cross_entropy"}, {"type": "binary_kd"}],
    "regression": [{"type": "mse"}, {"type": "logit_mse"}],
    "embedding": [{"type": "cross_entropy"}, {"type": "rkd_distance", "weight": 25}, {"type": "relative_teacher"}],
}


def document(task: TaskName) -> dict[str, Any]:
    return {
        "data": {"type": "synthetic", "task": task, "features": 6, "outputs": 3, "samples": 300},
        "teachers": [{"model": {"type": "mlp", "hidden": [32]}, "train": {"epochs": 8}}],
        "student": {"model": {"type": "mlp", "hidden": [8]}},
        "stages": [{"epochs": 8, "losses": LOSSES[task]}],
    }


def test_an_embedding_may_be_narrower_than_there_are_classes(light: Any) -> None:
    spec = document("embedding") | {"data": {"type": "digits", "task": "embedding", "train_samples": 200}}
    spec["stages"] = [{"epochs": 1, "losses": [{"type": "relative_teacher"}]}]
    narrow = {"model": {"type": "mlp", "hidden": [8], "classes": 4}}
    left, reporter = light(spec | {"student": narrow, "baseline": False})
    assert left["models"]["student"]["head.weight"].shape[0] == 4
    values = next(
        values for stage, _, values in reporter.points if stage == "distill-1" and "validation/recall_at_1" in values
    )
    assert 0 < values["validation/recall_at_1"] <= values["validation/recall_at_5"]


def test_the_same_samples_every_time_and_others_for_other_options(tmp_path: Path) -> None:
    digests = [SyntheticConfig(features=n).load(Places(tmp_path)).digest for n in (5, 5, 6)]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("outputs", [2, 7])
def test_labels_are_what_the_task_says(outputs: int, tmp_path: Path) -> None:
    def labels(task: TaskName) -> torch.Tensor:
        return SyntheticConfig(task=task, outputs=outputs).load(Places(tmp_path)).train.labels

    targets, several, classes = labels("regression"), labels("multi_label"), labels("classification")
    assert torch.equal(several, (targets > 0).float())
    assert torch.equal(classes, targets.argmax(1))
    assert targets.std(0) == pytest.approx(torch.ones(outputs), abs=0.1)


@pytest.mark.parametrize("task", LOSSES)
def test_every_task_from_its_spec_to_its_student(task: TaskName, tmp_path: Path) -> None:
    spec, out = parse_spec(document(task)), tmp_path / "out"
    result = run(spec, data_root=tmp_path, out=out, reporter=RecordingReporter(), download=False)
    found = TASKS[task]
    assert (result["task"], result["score"]) == (task, found.main)
    assert set(found.scores) <= set(result["student"])
    assert spec.select_by == found.main
    assert result["gain"]["score"] == found.compared
    data = spec.data.load(Places(tmp_path))
    runtime = onnxruntime.InferenceSession(str(out / "student.onnx"), providers=["CPUExecutionProvider"])
    outputs = torch.from_numpy(np.asarray(runtime.run(["logits"], {"input": data.test.inputs.numpy()})[0]))
    for name, score in found.scores.items():
        assert result["student"][name] == pytest.approx(score(outputs, data.test.labels), abs=1e-3)
    guess = score_of_a_guess(task, data.test.labels)
    assert found.better(found.main, result["teacher"][found.main]) > found.better(found.main, guess)
    assert json.loads((out / "model.json").read_text())["task"] == task
    assert result["summary"] in (out / "README.md").read_text()


def score_of_a_guess(task: TaskName, labels: torch.Tensor) -> float:
    """Of whoever knows nothing but how often each label is there."""
    if task == "regression":
        return float((labels - labels.mean(0)).abs().mean())
    if task == "multi_label":
        return 0.5
    return float(labels.bincount().max() / len(labels))


@pytest.mark.parametrize(
    ("task", "loss", "place", "message"),
    [
        ("regression", {"type": "kd"}, "type", "kd is for classification, the data's task is regression"),
        ("multi_label", {"type": "dkd"}, "type", "dkd is for classification"),
        ("regression", {"type": "binary_kd"}, "type", "binary_kd is for classification or multi_label"),
        ("classification", {"type": "kd", "temperature": 0}, "temperature", "at least"),
        ("multi_label", {"type": "cross_entropy"}, "type", "multi_label"),
    ],
)
def test_a_loss_for_another_task_is_refused(task: TaskName, loss: dict[str, Any], place: str, message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        make_plan(parse_spec(document(task) | {"stages": [{"losses": [loss]}]}))
    assert ("stages", 0, "losses", 0, place) in [loc for loc, _ in caught.value.errors]


def test_a_score_of_another_task_and_too_few_classes_are_refused() -> None:
    with pytest.raises(SpecError, match="accuracy is no score of a regression") as caught:
        make_plan(parse_spec(document("regression") | {"select_by": "accuracy"}))
    assert caught.value.errors[0][0] == ("select_by",)
    with pytest.raises(SpecError, match="at least 2 classes") as caught:
        make_plan(parse_spec(document("classification") | {"data": {"type": "synthetic", "outputs": 1}}))
    assert caught.value.errors[0][0] == ("data", "outputs")
