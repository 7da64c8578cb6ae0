"""Distillation by correlation: the student keeps the teacher's order and proportions, not its very numbers."""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone knows it by
from pydantic import Field
from torch import Tensor

from kdcore.data.base import TaskName
from kdcore.losses.base import Batch, Context, LogitLossConfig, Term, check_same_shape, full_precision
from kdcore.losses.temperature import Kelvin, Temperature

SMALLEST = 1e-20
"""The largest probability of a row or column that is not all zero; below it scaling would overflow."""
CONSTANT = 1e-6
"""The L2 norm around the mean, as a share of the largest value, up to which a row or column has no variation."""


def dist(
    student_logits: Tensor,
    teacher_logits: Tensor,
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: float = 1.0,
) -> Tensor:
    """T² · [β · (1 - mean over rows of r) + γ · (1 - mean over columns of r)], r Pearson's correlation of p_s and p_t.

    p = softmax(z / T): rows are samples, columns are classes over the batch (Huang et al. 2022, section 4).
    Where one side is constant there is no correlation: r is 0 there, with no gradient. So are all columns of a
    batch of one.

    Args:
        student_logits, teacher_logits: (B, C); no gradient reaches the teacher's.
        beta, gamma: β, of the relation between classes; γ, of that between samples.
        temperature: T.

    Returns:
        A scalar from 0 to 2 T² (β + γ); float32 for half-precision logits.

    Raises:
        ValueError: the shapes differ.
    """
    check_same_shape(student_logits, teacher_logits)
    student = F.softmax(full_precision(student_logits) / temperature, dim=1)
    teacher = F.softmax(full_precision(teacher_logits.detach()) / temperature, dim=1)
    rows, columns = ((_unit(student, dim) * _unit(teacher, dim)).sum(dim).mean() for dim in (1, 0))
    return temperature**2 * (beta * (1 - rows) + gamma * (1 - columns))


def _unit(values: Tensor, dim: int) -> Tensor:
    """Less their mean along `dim`, and with L2 norm 1; constant ones become 0.

    They are scaled by their largest first, which correlation does not see, so that small probabilities keep their
    digits when they are squared.
    """
    values = values / values.detach().amax(dim, keepdim=True).clamp_min(SMALLEST)
    centred = values - values.mean(dim, keepdim=True)
    norm: Tensor = torch.linalg.vector_norm(centred, dim=dim, keepdim=True)
    return centred / norm.clamp_min(CONSTANT) * (norm > CONSTANT)


class DISTConfig(LogitLossConfig, Temperature):
    """One minus the correlation of student's and teacher's probabilities, within each sample and within each class.

    The usual weight is 2; for CIFAR with temperature 4. The relation between samples needs batches of many.
    """

    tasks: ClassVar[frozenset[TaskName] | None] = frozenset({"classification"})
    title: ClassVar[str] = "Distillation by correlation"
    source: ClassVar[str] = (
        "Huang et al.: Knowledge Distillation from A Stronger Teacher, NeurIPS 2022, arXiv 2205.10536, section 4"
    )

    type: Literal["dist"] = "dist"
    weight: float = Field(default=2.0, ge=0, le=1e6)
    """Multiplier of this term in the sum."""
    beta: float = Field(default=1.0, ge=0, le=1000)
    """Multiplier of the part between classes: how a sample's probabilities compare."""
    gamma: float = Field(default=1.0, ge=0, le=1000)
    """Multiplier of the part between samples: how the batch's probabilities of a class compare."""
    temperature: Kelvin = 1.0
    """T: the higher, the more the small probabilities count."""

    def build(self, context: Context) -> Term:
        self.check_logits(context)
        return DIST(self)


class DIST(Term):
    def __init__(self, config: DISTConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, batch: Batch) -> Tensor:
        config = self.config
        return dist(*config.logits(batch), config.beta, config.gamma, config.temperature_at(batch))
