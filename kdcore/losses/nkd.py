"""Normalised distillation: the teacher's trust in the label, and the other classes with their sum made 1."""

from typing import ClassVar, Literal

import torch.nn.functional as F  # noqa: N812 - the name everyone knows it by
from pydantic import Field
from torch import Tensor

from kdcore.data.base import TaskName
from kdcore.losses.base import Batch, Context, LogitLossConfig, Term, check_same_shape, full_precision
from kdcore.losses.labelled import check_class_labels, check_labels, labels_of, log_softmax_of_others
from kdcore.losses.temperature import Kelvin, Temperature


def nkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    gamma: float = 1.5,
    temperature: float = 1.0,
) -> Tensor:
    """-mean(t_y log s_y) - γ T² · mean over B of Σ over the classes but y of t̂ log ŝ, in nats.

    s_y, t_y are the label's probabilities at temperature 1; ŝ, t̂ those of the other classes at T, renormalised
    (Yang et al. 2023, section 3). A cross-entropy: it is not 0 where student and teacher are equal.

    Args:
        student_logits, teacher_logits: (B, C) with C of 2 or more; no gradient reaches the teacher's.
        labels: y, (B,) int64 class indices.
        gamma: γ, of the other classes' part.
        temperature: T, of the other classes' part alone.

    Returns:
        A scalar, at least 0; float32 for half-precision logits.

    Raises:
        ValueError: the shapes differ, or there is only one class.
    """
    check_same_shape(student_logits, teacher_logits)
    check_class_labels(student_logits, labels)
    student, teacher = full_precision(student_logits), full_precision(teacher_logits.detach())
    trust = F.softmax(teacher, dim=1).gather(1, labels[:, None])
    at_label = -(trust * F.log_softmax(student, dim=1).gather(1, labels[:, None])).mean()
    log_others = log_softmax_of_others(student / temperature, labels)  # 0 at the label, which takes it out of the sum
    beside = -(log_softmax_of_others(teacher / temperature, labels).exp() * log_others).sum(dim=1).mean()
    return at_label + gamma * temperature**2 * beside


class NKDConfig(LogitLossConfig, Temperature):
    """Cross-entropy on the label as far as the teacher trusts it, and on the other classes, renormalised.

    Added to 1 · cross_entropy with weight 1.
    """

    needs_labels: ClassVar[bool] = True
    tasks: ClassVar[frozenset[TaskName] | None] = frozenset({"classification"})
    title: ClassVar[str] = "Normalised distillation"
    source: ClassVar[str] = (
        "Yang et al.: From Knowledge Distillation to Self-Knowledge Distillation, ICCV 2023, arXiv 2303.13005"
    )

    type: Literal["nkd"] = "nkd"
    gamma: float = Field(default=1.5, ge=0, le=1000)
    """Multiplier of the other classes' part."""
    temperature: Kelvin = 1.0
    """T of the other classes' part; the label's is always at 1."""

    def build(self, context: Context) -> Term:
        self.check_logits(context)
        check_labels(context, self.student_layer, "classification")
        return NKD(self)


class NKD(Term):
    def __init__(self, config: NKDConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, batch: Batch) -> Tensor:
        config = self.config
        labels = labels_of(batch, config.type)
        return nkd(*config.logits(batch), labels, config.gamma, config.temperature_at(batch))
