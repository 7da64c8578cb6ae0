"""Squared distance between logits: the student regresses on what the teacher says before its softmax."""

from typing import ClassVar, Literal

import torch.nn.functional as F  # noqa: N812 - the name everyone knows it by
from torch import Tensor

from kdcore.losses.base import (
    BaseLossConfig,
    Shapes,
    Term,
    Views,
    check_same_classes,
    check_same_shape,
    full_precision,
)


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


class LogitMSEConfig(BaseLossConfig):
    """Mean squared difference between the student's logits and the teacher's.

    Unlike `kd` it also asks for the teacher's scale and offset.
    """

    needs_teacher: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = False
    title: ClassVar[str] = "Regression on logits"
    source: ClassVar[str] = "Ba, Caruana: Do Deep Nets Really Need to be Deep?, NeurIPS 2014, arXiv 1312.6184"

    type: Literal["logit_mse"] = "logit_mse"
    student_layer: str = "logits"
    """The student's view that is compared."""
    teacher_layer: str = "logits"
    """The teacher's view that is compared."""

    def build(self, student: Shapes, teacher: Shapes, classes: int) -> Term:
        check_same_classes(student, teacher, self.student_layer, self.teacher_layer)
        return LogitMSE(self)


class LogitMSE(Term):
    def __init__(self, config: LogitMSEConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, student: Views, teacher: Views, labels: Tensor | None) -> Tensor:
        return logit_mse(student[self.config.student_layer], teacher[self.config.teacher_layer])
