"""Squared distance between logits: the student regresses on what the teacher says before its softmax."""

from typing import ClassVar, Literal

import torch.nn.functional as F  # noqa: N812 - the name everyone knows it by
from torch import Tensor

from kdcore.losses.base import Batch, Context, LogitLossConfig, Term, check_same_shape, full_precision


def logit_mse(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Mean over B·C of (z_s - z_t)² (Ba and Caruana 2014, equation 1, without their ½).

    Args:
        student_logits, teacher_logits: (B, C); no gradient reaches the teacher's.

    Returns:
        A scalar, at least 0; float32 for half-precision logits.

    Raises:
        ValueError: the shapes differ.
    """
    check_same_shape(student_logits, teacher_logits)
    return F.mse_loss(full_precision(student_logits), full_precision(teacher_logits.detach()))


class LogitMSEConfig(LogitLossConfig):
    """Mean squared difference between the student's logits and the teacher's.

    Unlike `kd` it also asks for the teacher's scale and offset.
    """

    title: ClassVar[str] = "Regression on logits"
    source: ClassVar[str] = "Ba, Caruana: Do Deep Nets Really Need to be Deep?, NeurIPS 2014, arXiv 1312.6184"

    type: Literal["logit_mse"] = "logit_mse"

    def build(self, context: Context) -> Term:
        self.check_logits(context)
        return LogitMSE(self)


class LogitMSE(Term):
    def __init__(self, config: LogitMSEConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, batch: Batch) -> Tensor:
        return logit_mse(*self.config.logits(batch))
