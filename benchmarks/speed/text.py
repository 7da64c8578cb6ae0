"""W3: a Transformer teaches an LSTM the topics of news."""

import time
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from benchmarks.speed.arms import TEACHER, Arm, Case, Place, Run, given, ours
from benchmarks.speed.peers import expert, tutorial
from kdcore.data import Places
from kdcore.evaluate import accuracy, predict
from kdcore.spec import parse_spec

W3: dict[str, Any] = {
    "data": {"type": "ag_news", "vocabulary": 8000, "length": 48, "train_samples": 4800, "validation": 1000},
    "teachers": [
        {
            "model": {"type": "text_transformer", "width": 128, "layers": 4, "dropout": 0.1},
            "train": {"epochs": 1, "batch_size": 32},
        }
    ],
    "student": {"model": {"type": "lstm", "embedding": 64, "hidden": 64}},
    "stages": [{"epochs": 1, "batch_size": 32, "optimizer": {"type": "adam", "lr": 2e-3}}],
}


def w3(loop: str) -> Arm:
    """By a tutorial's loop, over a data set of texts that are tokens already, or by an expert's."""

    def arm(place: Place) -> Run:
        spec = parse_spec(W3)
        data = spec.data.load(Places(place.data))
        shape, classes, words = data.facts.input_shape, len(data.facts.classes), data.facts.vocabulary
        teacher = spec.teachers[0].model.build(shape, classes, words)
        teacher.load_state_dict(load_file(place.work / TEACHER))
        teacher.eval().requires_grad_(False)
        student: nn.Module = spec.student.model.build(shape, classes, words)
        optimizer = torch.optim.Adam(student.parameters(), lr=2e-3)
        tokens, labels = data.train.inputs[:].long(), data.train.labels
        how: dict[str, Any] = {"epochs": 1, "batch_size": 32, "temperature": 4.0, "alpha": 0.9}
        began = time.perf_counter()
        if loop == "tutorial":
            tutorial(student, teacher, torch.utils.data.TensorDataset(tokens, labels), optimizer, **how)
        else:
            expert(student, teacher, tokens, labels, optimizer, **how)
        seconds = time.perf_counter() - began
        return Run(seconds, len(labels), accuracy(predict(student, data.test, data.scale), data.test.labels))

    return arm


TEXT_CASES: dict[str, Case] = {
    "w3-lstm": Case(
        "W3: Transformer of 4 layers → LSTM, AG News, 48 words, batch 32, a step of distillation",
        {
            "tutorial": w3("tutorial"),
            "expert": w3("expert"),
            "ours": ours(given(W3), "distill-1"),
            "ours, with the first asking": ours(given(W3), "distill-1", whole=True),
            "ours, teacher every step": ours(given(W3, keep_targets=False), "distill-1"),
        },
        W3,
    ),
}
