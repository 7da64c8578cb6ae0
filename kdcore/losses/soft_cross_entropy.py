"""Cross-entropy on the teacher's softened probabilities: `kd`'s gradient, another value."""

from typing import ClassVar, Literal

import torch.nn.functional as F  # noqa: N812 - the name everyone knows it by
from torch import Tensor

from kdcore.data.base import TaskName
from kdcore.losses.base import Batch, Context, LogitLossConfig, Term, check_same_shape, full_precision
from kdcore.losses.temperature import Kelvin, Temperature


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


class SoftCrossEntropyConfig(LogitLossConfig, Temperature):
    """Cross-entropy between the teacher's softened probabilities and the student's, times T²."""

    tasks: ClassVar[frozenset[TaskName] | None] = frozenset({"classification"})
    title: ClassVar[str] = "Cross-entropy on soft targets"
    source: ClassVar[str] = "Hinton, Vinyals, Dean 2015, arXiv 1503.02531, section 2"

    type: Literal["soft_cross_entropy"] = "soft_cross_entropy"
    temperature: Kelvin = 1.0
    """T: the higher, the more the small probabilities count."""

    def build(self, context: Context) -> Term:
        self.check_logits(context)
        return SoftCrossEntropy(self)


class SoftCrossEntropy(Term):
    def __init__(self, config: SoftCrossEntropyConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, batch: Batch) -> Tensor:
        return soft_cross_entropy(*self.config.logits(batch), self.config.temperature_at(batch))
