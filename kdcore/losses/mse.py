"""Squared distance to the labels: the label loss of regression."""

from typing import ClassVar, Literal

import torch.nn.functional as F  # noqa: N812 - the name everyone knows it by
from torch import Tensor

from kdcore.losses.base import Batch, Context, Term, full_precision
from kdcore.losses.labelled import LabelLossConfig, as_targets, check_labels


def mse(student_outputs: Tensor, labels: Tensor) -> Tensor:
    """Mean over all outputs of (z_s - y)².

    Args:
        student_outputs: (B,) or (B, K).
        labels: of the same shape, numbers in the labels' own unit.

    Returns:
        A scalar, at least 0, in that unit squared; float32 for half-precision outputs.

    Raises:
        ValueError: the shapes differ.
    """
    if student_outputs.shape != labels.shape:
        raise ValueError(f"student {tuple(student_outputs.shape)} and labels {tuple(labels.shape)} differ in shape")
    outputs = full_precision(student_outputs)
    return F.mse_loss(outputs, labels.to(outputs.dtype))


class MSEConfig(LabelLossConfig):
    """Mean squared difference between the student's outputs and the labels.

    Where the labels are classes, the outputs regress on one-hot rows of them.
    """

    title: ClassVar[str] = "Squared error on labels"
    source: ClassVar[str] = "least squares; on one-hot labels: Hui, Belkin, ICLR 2021, arXiv 2006.07322"

    type: Literal["mse"] = "mse"

    def build(self, context: Context) -> Term:
        check_labels(context, self.student_layer, "regression", "multi_label", "classification")
        return MSE(self)


class MSE(Term):
    def __init__(self, config: MSEConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, batch: Batch) -> Tensor:
        outputs, labels = self.config.outputs(batch)
        return mse(outputs, as_targets(labels, outputs))
