"""Decoupled distillation: what the teacher says of the label, and what it says of the other classes, apart."""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone knows it by
from pydantic import Field
from torch import Tensor

from kdcore.data.base import TaskName
from kdcore.losses.base import Batch, Context, LogitLossConfig, Term, check_same_shape, full_precision
from kdcore.losses.labelled import check_class_labels, check_labels, labels_of, log_softmax_of_others
from kdcore.losses.schedules import LinearFactorConfig, LossScheduleConfig
from kdcore.losses.temperature import Temperature


def dkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
) -> Tensor:
    """T² / B · [α · KL of (p_y, 1 - p_y) + β · KL of the softmax over all classes but y], in nats.

    p = softmax(z / T), both divergences of the student from the teacher (Zhao et al. 2022, section 3). `kd` is
    α = 1 with β = 1 - p_t,y, so that it forgets the other classes where the teacher is sure.

    Args:
        student_logits, teacher_logits: (B, C) with C of 2 or more; no gradient reaches the teacher's.
        labels: y, (B,) int64 class indices.
        alpha, beta: α, of the label's part; β, of the others'.
        temperature: T.

    Returns:
        A scalar, at least 0; float32 for half-precision logits.

    Raises:
        ValueError: the shapes differ, or there is only one class.
    """
    check_same_shape(student_logits, teacher_logits)
    check_class_labels(student_logits, labels)
    student = full_precision(student_logits) / temperature
    teacher = full_precision(teacher_logits.detach()) / temperature
    at_label = _kl(_label_or_not(student, labels), _label_or_not(teacher, labels))
    beside = _kl(log_softmax_of_others(student, labels), log_softmax_of_others(teacher, labels))
    return temperature**2 * (alpha * at_label + beta * beside)


def _label_or_not(logits: Tensor, labels: Tensor) -> Tensor:
    """(B, C), (B,) -> (B, 2): log p_y and log(1 - p_y)."""
    others = logits.scatter(1, labels[:, None], -float("inf")).logsumexp(dim=1)
    return F.log_softmax(torch.stack([logits.gather(1, labels[:, None])[:, 0], others], dim=1), dim=1)


def _kl(log_student: Tensor, log_teacher: Tensor) -> Tensor:
    return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


class DKDConfig(LogitLossConfig, Temperature):
    """`kd` taken apart: the label's share and the other classes' each with a weight of its own, times T².

    The CIFAR recipe is 1 · cross_entropy + 1 · dkd, its weight growing over the first 20 epochs, which is the default
    `weight_schedule`; give a shorter stage a shorter one. On ImageNet: temperature 1, `beta` 0.5.
    """

    needs_labels: ClassVar[bool] = True
    tasks: ClassVar[frozenset[TaskName] | None] = frozenset({"classification"})
    title: ClassVar[str] = "Decoupled distillation"
    source: ClassVar[str] = "Zhao et al.: Decoupled Knowledge Distillation, CVPR 2022, arXiv 2203.08679, section 3"

    type: Literal["dkd"] = "dkd"
    alpha: float = Field(default=1.0, ge=0, le=1000)
    """Multiplier of the divergence between label and not label."""
    beta: float = Field(default=8.0, ge=0, le=1000)
    """Multiplier of the divergence among the other classes."""
    weight_schedule: LossScheduleConfig | None = LinearFactorConfig(start=0.0, end=1.0, epochs=20.0)
    """A factor on the weight that changes over the stage's epochs; none: 1 throughout."""

    def build(self, context: Context) -> Term:
        self.check_logits(context)
        check_labels(context, self.student_layer, "classification")
        return DKD(self)


class DKD(Term):
    def __init__(self, config: DKDConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, batch: Batch) -> Tensor:
        config = self.config
        labels = labels_of(batch, config.type)
        return dkd(*config.logits(batch), labels, config.alpha, config.beta, config.temperature_at(batch))
