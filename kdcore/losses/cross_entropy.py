"""Cross-entropy on the labels: the "hard" loss, and what every teacher and baseline is trained with."""

from collections.abc import Callable
from typing import ClassVar, Literal

import torch.nn.functional as F  # noqa: N812 - the name everyone knows it by
from pydantic import Field
from torch import Tensor

from kdcore.losses.base import Batch, Context, Term, full_precision
from kdcore.losses.labelled import LabelLossConfig, check_labels


def cross_entropy(student_logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy in nats.

    Args:
        student_logits: (B, C).
        labels: (B,) int64 class indices.
        label_smoothing: share of the target spread evenly over all C classes (Szegedy et al. 2016).

    Returns:
        A scalar; float32 for half-precision logits.
    """
    return F.cross_entropy(full_precision(student_logits), labels, label_smoothing=label_smoothing)


def seen_cross_entropy(student_logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """`cross_entropy` of the samples whose label is not negative; 0, with a gradient of 0, where there is none."""
    seen = labels >= 0
    logits = full_precision(student_logits)
    each = F.cross_entropy(logits, labels.clamp(min=0), reduction="none", label_smoothing=label_smoothing)
    return (each * seen).sum() / seen.sum().clamp(min=1)


class CrossEntropyConfig(LabelLossConfig):
    """Cross-entropy between the student's logits and the labels, averaged over the batch.

    The only term of plain training; in distillation it usually gets the smaller weight.
    """

    title: ClassVar[str] = "Cross-entropy on labels"
    source: ClassVar[str] = "the usual label loss; smoothing: Szegedy et al. 2016, arXiv 1512.00567, section 7"

    skips_unlabelled: ClassVar[bool] = True

    type: Literal["cross_entropy"] = "cross_entropy"
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target spread evenly over all classes."""

    def build(self, context: Context) -> Term:
        check_labels(context, self.student_layer, "classification", "embedding")
        return CrossEntropy(self, seen_cross_entropy if context.partly_labelled else cross_entropy)


class CrossEntropy(Term):
    def __init__(self, config: CrossEntropyConfig, function: Callable[[Tensor, Tensor, float], Tensor]) -> None:
        super().__init__()
        self.config, self.function = config, function

    def forward(self, batch: Batch) -> Tensor:
        return self.function(*self.config.outputs(batch), self.config.label_smoothing)
