"""Cross-entropy on the labels: the "hard" loss, and what every teacher and baseline is trained with."""

from typing import ClassVar, Literal

import torch.nn.functional as F  # noqa: N812 - the name everyone knows it by
from pydantic import Field
from torch import Tensor

from kdcore.losses.base import BaseLossConfig, Batch, Context, LossError, Term, full_precision, logits_width


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


class CrossEntropyConfig(BaseLossConfig):
    """Cross-entropy between the student's logits and the labels, averaged over the batch.

    The only term of plain training; in distillation it usually gets the smaller weight.
    """

    needs_teacher: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = True
    title: ClassVar[str] = "Cross-entropy on labels"
    source: ClassVar[str] = "the usual label loss; smoothing: Szegedy et al. 2016, arXiv 1512.00567, section 7"

    type: Literal["cross_entropy"] = "cross_entropy"
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target spread evenly over all classes."""
    student_layer: str = "logits"
    """The student's view that is read as logits."""

    def build(self, context: Context) -> Term:
        width = logits_width(context.student, self.student_layer, "student_layer", "student")
        if width != context.classes:
            raise LossError(
                "student_layer",
                f"the student's {self.student_layer!r} has {width} outputs, the data has {context.classes} classes;"
                " name a layer with one output per class",
            )
        return CrossEntropy(self)


class CrossEntropy(Term):
    def __init__(self, config: CrossEntropyConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, batch: Batch) -> Tensor:
        if batch.labels is None:
            raise ValueError("cross_entropy needs labels")
        return cross_entropy(batch.student[self.config.student_layer], batch.labels, self.config.label_smoothing)
