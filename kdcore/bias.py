"""An offset on some classes' logits, chosen on the validation split: for a student that never saw these classes."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kdcore.stages import Stage
from kdcore.state import Weights, copy_weights
from kdcore.transfer import labelled

if TYPE_CHECKING:
    from kdcore.job import Job


def best_offset(logits: Tensor, labels: Tensor, chosen: Tensor) -> float:
    """The offset, added to the chosen classes' logits, at which most samples are classified rightly.

    Exact: between two of the N offsets at which a sample's prediction moves into the chosen classes, nothing changes,
    so one offset between each pair of neighbours is tried, and none, which wins a tie.

    Args:
        logits: (N, C).
        labels: (N,) int64.
        chosen: (C,) bool, with some of both.
    """
    values = logits.double()
    ours, our_class = values.masked_fill(~chosen, -torch.inf).max(1)
    theirs, their_class = values.masked_fill(chosen, -torch.inf).max(1)
    moves_at, order = (theirs - ours).sort()  # above its own, a sample is predicted to be of a chosen class
    gained = (our_class == labels).long()[order] - (their_class == labels).long()[order]
    right = torch.cat([torch.zeros(1, dtype=torch.long), gained.cumsum(0)])  # after the first k samples moved
    apart = torch.cat([torch.tensor([True]), moves_at[1:] > moves_at[:-1], torch.tensor([True])])
    none = int((moves_at < 0).sum())
    best = int(right.masked_fill(~apart, torch.iinfo(torch.long).min).argmax())
    if right[best] <= right[none]:
        return 0.0
    edges = torch.cat([moves_at[:1] - 1, moves_at, moves_at[-1:] + 1])
    return float((edges[best] + edges[best + 1]) / 2)


def offset_weights(job: "Job", stage: Stage, best: dict[str, Any]) -> Weights:
    """The best epoch's weights; of a student whose spec asks for it, with the offset that validates best."""
    weights: Weights = best["weights"]
    named = job.spec.student.offset_classes
    if stage.role == "teacher" or not named:
        return weights
    student = job.network("student")
    student.load_state_dict(weights)
    chosen = torch.tensor([name in named for name in job.data.facts.classes])
    logits = job.predict(student.to(job.device), "validation", job.student_reader)
    known = labelled(job.validation_labels)
    best["values"]["offset"] = best_offset(logits[known], job.validation_labels[known], chosen)
    bias = student.output_bias()
    assert bias is not None, "the plan has seen that there is one"
    with torch.no_grad():
        bias[chosen.to(job.device)] += best["values"]["offset"]
    return copy_weights(student)
