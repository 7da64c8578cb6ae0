"""A job that trains in a blink, and a finish that skips the exports."""

import copy
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from kdcore import train
from kdcore.job import Job
from kdcore.reporter import RecordingReporter
from kdcore.spec import JobSpec, parse_spec

TRAIN = {
    "epochs": 2,
    "batch_size": 48,
    "optimizer": {"type": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4},
    "schedule": {"type": "cosine", "warmup_epochs": 0.5},
    "augment": {"crop": 1, "flip": True, "jitter": 1},
    "gradient_clip": 1.0,
}
TINY: dict[str, Any] = {
    "name": "tiny",
    "data": {"type": "digits", "train_samples": 200},
    "teachers": [
        {"model": {"type": "mlp", "hidden": [24], "dropout": 0.3}, "train": {**TRAIN, "label_smoothing": 0.1}}
    ],
    "student": {"model": {"type": "mlp", "hidden": [8], "dropout": 0.2}},
    "stages": [
        {
            **TRAIN,
            "losses": [
                {"type": "cross_entropy", "weight": 0.3},
                {"type": "kd", "weight": 0.7, "temperature": 3.0},
            ],
        }
    ],
    "checkpoint": {"every_seconds": 3600.0},
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("highest")  # whatever a job before has chosen for this process


@pytest.fixture
def tiny() -> dict[str, Any]:
    """The document of a small job with every source of chance in it; change it at will."""
    return copy.deepcopy(TINY)


Trained = tuple[dict[str, Any], RecordingReporter]
Train = Callable[..., Trained]


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Train:
    """Runs a job without evaluation on the test set and without exports.

    `light(document, reporter=…, **options of train.run)` gives what the job left and what was reported:
    `digests` of the safetensors bytes of each model, `models`, and `selected` epochs.
    """

    def finish(job: Job, out: Path) -> dict[str, Any]:
        models = job.state.models
        digests = {name: hashlib.sha256(save(weights)).hexdigest() for name, weights in models.items()}
        return {"digests": digests, "models": models, "selected": job.state.selected}

    monkeypatch.setattr(train, "finish", finish)

    def go(document: JobSpec | dict[str, Any], reporter: RecordingReporter | None = None, **options: Any) -> Trained:
        spec = document if isinstance(document, JobSpec) else parse_spec(document)
        reporter = reporter or RecordingReporter()
        given = {"data_root": tmp_path, "out": tmp_path / "out", "download": False, **options}
        return train.run(spec, reporter=reporter, **given), reporter

    return go
