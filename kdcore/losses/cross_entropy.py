"""Cross-entropy on the labels: the "hard" loss, and what every teacher and baseline is trained with."""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone knows it by
from pydantic import Field
from torch import Tensor

from kdcore.losses.base import Batch, Context, Term, full_precision
from kdcore.losses.labelled import ClassWeights, LabelLossConfig, check_labels, class_weights


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


def seen_cross_entropy(
    student_logits: Tensor, labels: Tensor, label_smoothing: float = 0.0, class_weights: Tensor | None = None
) -> Tensor:
    """`cross_entropy` of the samples whose label is not negative; 0, with a gradient of 0, where there is none.

    Args:
        class_weights: (C,); each sample counts as much as its label's class, and the sum of that divides.
    """
    logits, known = full_precision(student_logits), labels.clamp(min=0)
    weights = class_weights.to(logits.dtype) if class_weights is not None else None
    each = F.cross_entropy(logits, known, weights, reduction="none", label_smoothing=label_smoothing)
    counts = (labels >= 0).to(logits.dtype)
    if weights is None:
        return (each * counts).sum() / counts.sum().clamp(min=1)
    return (each * counts).sum() / (weights[known] * counts).sum().clamp(min=torch.finfo(logits.dtype).tiny)


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
    class_weights: ClassWeights | None = None
    """How much a sample of each class counts, in the data's order; `balanced`: N / (C · the class's samples), for
    imbalanced labels. The baseline takes it over. None: all alike."""

    def build(self, context: Context) -> Term:
        check_labels(context, self.student_layer, "classification", "embedding")
        return CrossEntropy(self, class_weights(self.class_weights, context), whole=not context.partly_labelled)


class CrossEntropy(Term):
    weights: Tensor | None

    def __init__(self, config: CrossEntropyConfig, weights: Tensor | None, *, whole: bool) -> None:
        super().__init__()
        self.config, self.plain = config, whole and weights is None
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, batch: Batch) -> Tensor:
        outputs, labels = self.config.outputs(batch)
        if self.plain:
            return cross_entropy(outputs, labels, self.config.label_smoothing)
        return seen_cross_entropy(outputs, labels, self.config.label_smoothing, self.weights)
