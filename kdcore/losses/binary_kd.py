"""Distillation of multi-label classifiers: each class's probability on its own."""

from typing import ClassVar, Literal

import torch.nn.functional as F  # noqa: N812 - the name everyone knows it by
from torch import Tensor

from kdcore.data.base import TaskName
from kdcore.losses.base import Batch, Context, LogitLossConfig, Term, check_same_shape, full_precision
from kdcore.losses.temperature import Kelvin, Temperature


def binary_kd(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """T² · mean over B·C of p_t log(p_t / p_s) + (1 - p_t) log((1 - p_t) / (1 - p_s)) with p = σ(z / T), in nats.

    The divergence of the student's Bernoulli distribution from the teacher's, class by class.

    Args:
        student_logits, teacher_logits: (B, C); no gradient reaches the teacher's.
        temperature: T.

    Returns:
        A scalar, at least 0; float32 for half-precision logits.

    Raises:
        ValueError: the shapes differ.
    """
    check_same_shape(student_logits, teacher_logits)
    student = full_precision(student_logits) / temperature
    teacher = full_precision(teacher_logits.detach()) / temperature
    positive = teacher.sigmoid() * (F.logsigmoid(teacher) - F.logsigmoid(student))
    negative = (-teacher).sigmoid() * (F.logsigmoid(-teacher) - F.logsigmoid(-student))
    return temperature**2 * (positive + negative).mean()


class BinaryKDConfig(LogitLossConfig, Temperature):
    """Kullback-Leibler divergence of the student's sigmoids from the teacher's, averaged over classes, times T².

    For classes that do not exclude each other, where a softmax says nothing; goes with binary_cross_entropy.
    """

    tasks: ClassVar[frozenset[TaskName] | None] = frozenset({"classification", "multi_label"})
    title: ClassVar[str] = "Distillation of multi-label probabilities"
    source: ClassVar[str] = (
        "Yang et al.: Multi-Label Knowledge Distillation, ICCV 2023, arXiv 2308.06453, its loss on logits, at T 1"
    )

    type: Literal["binary_kd"] = "binary_kd"
    temperature: Kelvin = 1.0
    """T: the higher, the more unsure both sides are made."""

    def build(self, context: Context) -> Term:
        self.check_logits(context)
        return BinaryKD(self)


class BinaryKD(Term):
    def __init__(self, config: BinaryKDConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, batch: Batch) -> Tensor:
        return binary_kd(*self.config.logits(batch), self.config.temperature_at(batch))
