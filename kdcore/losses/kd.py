"""Hinton's distillation loss: the student matches the teacher's softened probabilities."""

from typing import ClassVar, Literal

import torch.nn.functional as F  # noqa: N812 - the name everyone knows it by
from torch import Tensor

from kdcore.data.base import TaskName
from kdcore.losses.base import Batch, Context, LogitLossConfig, Term, check_same_shape, full_precision
from kdcore.losses.temperature import Temperature


def kd(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 4.0, standardize: bool = False) -> Tensor:
    """T² · Σ p_t (log p_t - log p_s) / B with p = softmax(z / T), in nats (Hinton et al. 2015, section 2).

    T² keeps the gradient's size as T grows. The sum is divided by the batch, not by batch times classes.

    Args:
        student_logits, teacher_logits: (B, C); no gradient reaches the teacher's.
        temperature: T.
        standardize: z-score each row of logits first (Sun et al. 2024, algorithm 1).

    Returns:
        A scalar, at least 0; float32 for half-precision logits.

    Raises:
        ValueError: the shapes differ.
    """
    check_same_shape(student_logits, teacher_logits)
    student, teacher = full_precision(student_logits), full_precision(teacher_logits.detach())
    if standardize:
        student, teacher = _standardized(student), _standardized(teacher)
    log_student = F.log_softmax(student / temperature, dim=1)
    log_teacher = F.log_softmax(teacher / temperature, dim=1)
    return temperature**2 * F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


def _standardized(logits: Tensor) -> Tensor:
    """(B, C) -> (B, C): rows of mean 0 and unbiased standard deviation 1; a constant row becomes 0."""
    return (logits - logits.mean(dim=1, keepdim=True)) / (logits.std(dim=1, keepdim=True) + 1e-7)


class KDConfig(LogitLossConfig, Temperature):
    """Kullback-Leibler divergence of the student's softened probabilities from the teacher's, times T².

    The recipe of the CIFAR comparisons is 0.1 · cross_entropy + 0.9 · kd at temperature 4;
    with `standardize`, weight 9 and temperature 2.
    """

    tasks: ClassVar[frozenset[TaskName] | None] = frozenset({"classification"})
    title: ClassVar[str] = "Distillation of softened probabilities"
    source: ClassVar[str] = (
        "Hinton, Vinyals, Dean 2015, arXiv 1503.02531, section 2;"
        " standardize: Sun et al., Logit Standardization in Knowledge Distillation, CVPR 2024"
    )

    type: Literal["kd"] = "kd"
    standardize: bool = False
    """Z-score each row of logits before the softmax."""

    def build(self, context: Context) -> Term:
        self.check_logits(context)
        return KD(self)


class KD(Term):
    def __init__(self, config: KDConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, batch: Batch) -> Tensor:
        config = self.config
        return kd(*config.logits(batch), config.temperature_at(batch), config.standardize)
