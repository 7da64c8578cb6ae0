"""model.json: what is needed to use the student, and where it comes from."""

import platform
from typing import Any

import torch

import kdcore
from kdcore.data import DataFacts
from kdcore.export import weights_digest
from kdcore.inputs import view_shapes
from kdcore.job import Job
from kdcore.raw import reads_pictures
from kdcore.spec import spec_document
from kdcore.state import teacher_name
from kdcore.transfer import labelled

DESCRIBED = ("shrink", "max_parameters", "max_latency_ms", "weights", "initialize")
"""Of the spec's student: what its model and its first weights are from."""


def model_document(job: Job) -> dict[str, Any]:
    """The content of model.json: what is needed to use the student, and where it comes from."""
    facts, spec = job.student_reader.facts, spec_document(job.spec)
    architecture = {**spec["student"]["model"], "classes": spec["student"]["model"]["classes"] or len(facts.classes)}
    return {
        "format_version": 1,
        "name": job.spec.name,
        "architecture": architecture,
        "classes": list(facts.classes),
        "task": facts.task,
        "input": {"shape": list(facts.input_shape), "layout": layout(facts), "view": spec["student"]["view"]},
        "preprocessing": preprocessing(job, facts),
        "pixels": {"channels": job.data.facts.input_shape[0]} if reads_pictures(job.data.facts) else None,
        "views": {name: list(shape) for name, shape in view_shapes(job.finished("student"), facts).items()},
        "provenance": {
            "spec_digest": job.spec_digest,
            "data": {name: value for name, value in spec["data"].items() if name != "profile"},
            "data_source": job.spec.data.origin,
            "data_digest": job.data.digest,
            "samples": samples(job),
            "teachers": spec["teachers"],
            "teacher_digests": teacher_digests(job),
            "teachers_reused": [name for name in job.state.selected if "trained_seconds" in job.state.selected[name]],
            "licences": "unknown",
            "student": {name: spec["student"][name] for name in DESCRIBED},
            "stages": spec["stages"],
            "seed": job.spec.seed,
            "versions": {"kdcore": kdcore.__version__, "torch": torch.__version__, "python": platform.python_version()},
            "choices": job.choices.model_dump(mode="json"),
        },
    }


def layout(facts: DataFacts) -> str:
    """The dimensions of a batch: N samples, C channels, H rows, W columns, T places, F features."""
    if facts.vocabulary is not None:
        return "NT"
    return {3: "NCHW", 2: "NTF", 1: "NF"}[len(facts.input_shape)]


def preprocessing(job: Job, facts: DataFacts) -> dict[str, Any]:
    """How a sample becomes what the student's files read: scaled to [0, 1], or cut into tokens."""
    if facts.vocabulary is not None:
        return {"tokenizer": job.data.tokenizer, "vocabulary": facts.vocabulary}
    return {"scale": job.data.scale, "range": [0, 1], "mean": list(facts.mean), "std": list(facts.std)}


def samples(job: Job) -> dict[str, Any]:
    """How many there are in each split, how many of the training samples the student learnt on, and, of a
    classification, how many of each class are in the training split."""
    data = job.data
    counts: dict[str, Any] = {name: len(getattr(data, name)) for name in ("train", "validation", "test")}
    counts["transfer"] = len(job.learnt())
    labels = data.train.labels.cpu()
    if data.facts.task == "classification":
        each = torch.bincount(labels[labelled(labels)], minlength=len(data.facts.classes)).tolist()
        counts["train_classes"] = dict(zip(data.facts.classes, each, strict=True))
    return counts


def teacher_digests(job: Job) -> list[str | None]:
    """Of each teacher's weights as a safetensors file of this project: of `teacher-1.safetensors`, for one."""
    names = [teacher_name(index) for index in range(len(job.spec.teachers))]
    return [weights_digest(job.state.models[name]) if job.state.models.get(name) else None for name in names]
