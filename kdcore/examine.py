"""Teachers that are given, not trained here: what they are worth is measured before they teach."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kdcore.data import Split
from kdcore.data.base import TaskName
from kdcore.errors import TrainingError
from kdcore.job import Job
from kdcore.state import all_finite, teacher_name
from kdcore.transfer import labelled


def constant_output(task: TaskName, train: Split) -> Tensor | None:
    """(C,) what a model that looks at no sample would say: of a classification the majority of the training labels,
    of several labels the majority of each, of a regression their mean; None where there is no such thing."""
    labels = train.labels.cpu()
    labels = labels[labelled(labels)]
    if task == "embedding" or not len(labels):
        return None
    if task == "classification":
        return torch.bincount(labels).float()
    return labels.mean(0) - (0.5 if task == "multi_label" else 0.0)


def examine_teachers(job: Job) -> None:
    """Measure each given teacher on the validation split, once per job, and say so where it is no better than a
    constant. No generator is touched.

    Raises:
        TrainingError: `bad_teacher_weights`: what it says is not finite.
    """
    for index, teacher in enumerate(job.spec.teachers):
        name = teacher_name(index)
        if not teacher.is_given or name in job.state.selected:
            continue
        logits = job.teacher_validation_logits(index)
        if not all_finite([logits]):
            message = f"{name} says NaN or infinity about the validation split; give it other weights or another view"
            raise TrainingError("bad_teacher_weights", message)
        values = job.validation_scores(logits)
        job.reporter.metrics(name, 0, {f"validation/{metric}": value for metric, value in values.items()})
        constant = constant_output(job.task.name, job.data.train)
        if values and constant is not None:
            said = _padded(constant, logits.shape[1]).expand(len(logits), -1)
            values["constant"] = job.validation_scores(said)[job.task.main]
            if not _is_better(job, values[job.task.main], values["constant"]):
                tell(job, _told(job, name, "majority", values[job.task.main], values["constant"]))
        job.state.selected[name] = values


def tell(job: Job, worse: Mapping[str, Any]) -> None:
    """A line of history: a given teacher is worse than what it should be better than."""
    job.reporter.event("teacher_worse", worse)


def _padded(constant: Tensor, classes: int) -> Tensor:
    return torch.nn.functional.pad(constant, (0, classes - len(constant)))


def _is_better(job: Job, value: float, than: float) -> bool:
    return job.task.better(job.task.main, value) > job.task.better(job.task.main, than)


def _told(job: Job, name: str, than: str, value: float, other: float) -> dict[str, Any]:
    return {"teacher": name, "than": than, "score": job.task.main, "value": value, "other": other}


def worse_teachers(job: Job, measured: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Where a given teacher was no better than a constant on the validation split, or is worse than the baseline or
    the student on the test split.

    Args:
        measured: the result's numbers of `teacher-1` and so on, `student` and, where there is one, `baseline`.
    """
    main, found = job.task.main, []
    for index, teacher in enumerate(job.spec.teachers):
        name = teacher_name(index)
        if not teacher.is_given:
            continue
        seen = job.state.selected.get(name, {})
        if "constant" in seen and not _is_better(job, seen[main], seen["constant"]):
            found.append(_told(job, name, "majority", seen[main], seen["constant"]))
        for other in ("baseline", "student"):
            known = other in measured and measured[name][main] is not None  # else no test sample has a label
            if known and _is_better(job, measured[other][main], measured[name][main]):
                found.append(_told(job, name, other, measured[name][main], measured[other][main]))
    return found


OTHERS = {
    "majority": "a majority vote, or the mean of the labels, on the validation split",
    "baseline": "the student trained without it, on the test split",
    "student": "its own student, on the test split",
}


def sentence(worse: Mapping[str, Any]) -> str:
    """One of `worse_teachers` for the result's warnings."""
    return (
        f"{worse['teacher']} was given and is no better than {OTHERS[worse['than']]}: {worse['score']}"
        f" {worse['value']:.4f} against {worse['other']:.4f}; look at its `view` and `classes`, or give a better one"
    )
