"""Generalised Jensen-Shannon divergence: between covering all that the teacher says and keeping to its likeliest."""

import math
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone knows it by
from pydantic import Field
from torch import Tensor

from kdcore.data.base import TaskName
from kdcore.losses.base import Batch, Context, LogitLossConfig, Term, check_same_shape, full_precision
from kdcore.losses.temperature import Kelvin, Temperature


def jsd(student_logits: Tensor, teacher_logits: Tensor, beta: float = 0.5, temperature: float = 1.0) -> Tensor:
    """T² · [β · KL(p_t ‖ m) + (1 - β) · KL(p_s ‖ m)] / B, m = (1 - β) p_s + β p_t, p = softmax(z / T), in nats.

    As in Agarwal et al. 2024 the ends are defined apart, since the formula is 0 there: β = 0 is the forward
    divergence KL(p_t ‖ p_s), `kd`'s; β = 1 is the reverse one, KL(p_s ‖ p_t).

    Args:
        student_logits, teacher_logits: (B, C); no gradient reaches the teacher's.
        beta: β, from 0 to 1.
        temperature: T.

    Returns:
        A scalar, at least 0; float32 for half-precision logits.

    Raises:
        ValueError: the shapes differ, or β is out of its bounds.
    """
    check_same_shape(student_logits, teacher_logits)
    if not 0 <= beta <= 1:
        raise ValueError(f"beta is {beta}, it lies between 0 and 1")
    student = F.log_softmax(full_precision(student_logits) / temperature, dim=1)
    teacher = F.log_softmax(full_precision(teacher_logits.detach()) / temperature, dim=1)
    if beta == 0:
        divergence = _kl(teacher, student)
    elif beta == 1:
        divergence = _kl(student, teacher)
    else:
        mixture = torch.logaddexp(student + math.log1p(-beta), teacher + math.log(beta))
        divergence = beta * _kl(teacher, mixture) + (1 - beta) * _kl(student, mixture)
    return temperature**2 * divergence


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p ‖ q) of log-probabilities (B, C), averaged over the batch."""
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


class JSDConfig(LogitLossConfig, Temperature):
    """Generalised Jensen-Shannon divergence of student and teacher, times T².

    Towards `beta` 0 the student is asked to cover all that the teacher holds possible, towards 1 to keep to what
    the teacher holds likely. Between the ends it is bounded: two sides that disagree entirely differ by at most ln 2.
    """

    tasks: ClassVar[frozenset[TaskName] | None] = frozenset({"classification"})
    title: ClassVar[str] = "Generalised Jensen-Shannon divergence"
    source: ClassVar[str] = "GKD: Agarwal et al., ICLR 2024, arXiv 2306.13649, section 2"

    type: Literal["jsd"] = "jsd"
    beta: float = Field(default=0.5, ge=0, le=1)
    """0: KL(teacher ‖ student), as `kd`; 1: KL(student ‖ teacher); between: of both from their mixture."""
    temperature: Kelvin = 1.0
    """T: the higher, the more the small probabilities count."""

    def build(self, context: Context) -> Term:
        self.check_logits(context)
        return JSD(self)


class JSD(Term):
    def __init__(self, config: JSDConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, batch: Batch) -> Tensor:
        config = self.config
        return jsd(*config.logits(batch), config.beta, config.temperature_at(batch))
