"""Cross-entropy on the teacher's softened probabilities: `kd`'s gradient, another value."""

from typing import ClassVar, Literal

import torch.nn.functional as F  # noqa: N812 - the name everyone knows it by
from pydantic import Field
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


def soft_cross_entropy(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """-T² · Σ p_t log p_s / B with p = softmax(z / T), in nats.

    Differs from `kd` by T² times the entropy of the teacher, which has no gradient.

    Args:
        student_logits, teacher_logits: (B, C); no gradient reaches the teacher's.
        temperature: T.

    Returns:
        A scalar; float32 for half-precision logits.

    Raises:
        ValueError: the shapes differ.
    """
    check_same_shape(student_logits, teacher_logits)
    log_student = F.log_softmax(full_precision(student_logits) / temperature, dim=1)
    target = F.softmax(full_precision(teacher_logits.detach()) / temperature, dim=1)
    return -(temperature**2) * (target * log_student).sum(dim=1).mean()


class SoftCrossEntropyConfig(BaseLossConfig):
    """Cross-entropy between the teacher's softened probabilities and the student's, times T²."""

    needs_teacher: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = False
    title: ClassVar[str] = "Cross-entropy on soft targets"
    source: ClassVar[str] = "Hinton, Vinyals, Dean 2015, arXiv 1503.02531, section 2"

    type: Literal["soft_cross_entropy"] = "soft_cross_entropy"
    temperature: float = Field(default=1.0, ge=0.01, le=1000)
    """T: the higher, the more the small probabilities count."""
    student_layer: str = "logits"
    """The student's view that is read as logits."""
    teacher_layer: str = "logits"
    """The teacher's view that is read as logits."""

    def build(self, student: Shapes, teacher: Shapes, classes: int) -> Term:
        check_same_classes(student, teacher, self.student_layer, self.teacher_layer)
        return SoftCrossEntropy(self)


class SoftCrossEntropy(Term):
    def __init__(self, config: SoftCrossEntropyConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, student: Views, teacher: Views, labels: Tensor | None) -> Tensor:
        config = self.config
        return soft_cross_entropy(student[config.student_layer], teacher[config.teacher_layer], config.temperature)
