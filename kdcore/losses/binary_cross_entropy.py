"""Cross-entropy of each class on its own: the label loss where a sample may be of several classes, or of none."""

from typing import ClassVar, Literal

import torch.nn.functional as F  # noqa: N812 - the name everyone knows it by
from torch import Tensor

from kdcore.losses.base import Batch, Context, Term, full_precision
from kdcore.losses.labelled import LabelLossConfig, as_targets, check_labels


def binary_cross_entropy(student_logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over B·C of -y log σ(z) - (1 - y) log(1 - σ(z)), in nats.

    Args:
        student_logits: (B, C).
        labels: (B, C), 1 where the sample is of the class, 0 where not.

    Returns:
        A scalar; float32 for half-precision logits.

    Raises:
        ValueError: the shapes differ.
    """
    if student_logits.shape != labels.shape:
        raise ValueError(f"student {tuple(student_logits.shape)} and labels {tuple(labels.shape)} differ in shape")
    logits = full_precision(student_logits)
    return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))


class BinaryCrossEntropyConfig(LabelLossConfig):
    """Cross-entropy between the sigmoid of each of the student's logits and that class's label.

    Where a sample has one class, its label is read as a one-hot row: each class against all others.
    """

    title: ClassVar[str] = "Cross-entropy on multi-label labels"
    source: ClassVar[str] = (
        "the usual multi-label loss; on one-hot labels: Wightman, Touvron, Jégou 2021, arXiv 2110.00476"
    )

    type: Literal["binary_cross_entropy"] = "binary_cross_entropy"

    def build(self, context: Context) -> Term:
        check_labels(context, self.student_layer, "multi_label", "classification")
        return BinaryCrossEntropy(self)


class BinaryCrossEntropy(Term):
    def __init__(self, config: BinaryCrossEntropyConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, batch: Batch) -> Tensor:
        logits, labels = self.config.outputs(batch)
        return binary_cross_entropy(logits, as_targets(labels, logits))
