"""Cross-entropy of each class on its own: the label loss where a sample may be of several classes, or of none."""

from typing import ClassVar, Literal

import torch.nn.functional as F  # noqa: N812 - the name everyone knows it by
from torch import Tensor

from kdcore.losses.base import Batch, Context, Term, full_precision
from kdcore.losses.labelled import ClassWeights, LabelLossConfig, as_targets, check_labels, positive_weights


def binary_cross_entropy(student_logits: Tensor, labels: Tensor, pos_weight: Tensor | None = None) -> Tensor:
    """Mean over B·C of -w y log σ(z) - (1 - y) log(1 - σ(z)), in nats.

    Args:
        student_logits: (B, C).
        labels: (B, C), 1 where the sample is of the class, 0 where not.
        pos_weight: (C,), w of each class, above 0; none: 1.

    Returns:
        A scalar; float32 for half-precision logits.

    Raises:
        ValueError: the shapes differ.
    """
    if student_logits.shape != labels.shape:
        raise ValueError(f"student {tuple(student_logits.shape)} and labels {tuple(labels.shape)} differ in shape")
    logits = full_precision(student_logits)
    weights = pos_weight.to(logits.dtype) if pos_weight is not None else None
    return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), pos_weight=weights)


class BinaryCrossEntropyConfig(LabelLossConfig):
    """Cross-entropy between the sigmoid of each of the student's logits and that class's label.

    Where a sample has one class, its label is read as a one-hot row: each class against all others.
    """

    title: ClassVar[str] = "Cross-entropy on multi-label labels"
    source: ClassVar[str] = (
        "the usual multi-label loss; on one-hot labels: Wightman, Touvron, Jégou 2021, arXiv 2110.00476"
    )

    type: Literal["binary_cross_entropy"] = "binary_cross_entropy"
    pos_weight: ClassWeights | None = None
    """How much a label that says yes counts beside one that says no, for each class in the data's order; `balanced`:
    the class's samples without it / those with it, for rare labels. The baseline takes it over. None: as much."""

    def build(self, context: Context) -> Term:
        check_labels(context, self.student_layer, "multi_label", "classification")
        return BinaryCrossEntropy(self, positive_weights(self.pos_weight, context))


class BinaryCrossEntropy(Term):
    pos_weight: Tensor | None

    def __init__(self, config: BinaryCrossEntropyConfig, pos_weight: Tensor | None) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("pos_weight", pos_weight, persistent=False)

    def forward(self, batch: Batch) -> Tensor:
        logits, labels = self.config.outputs(batch)
        return binary_cross_entropy(logits, as_targets(labels, logits), self.pos_weight)
