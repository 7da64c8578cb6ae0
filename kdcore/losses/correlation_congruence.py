"""Correlation congruence: where the student misses the teacher must not be alike from sample to sample."""

import math
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from kdcore.losses.base import Batch, Context, Term
from kdcore.losses.embedding import EmbeddingLossConfig, check_same_width, embeddings


def correlation_congruence(student_embedding: Tensor, teacher_embedding: Tensor) -> Tensor:
    """Mean over the B - 1 consecutive pairs of samples of Σ_d δ_i δ_{i+1}, with δ = |e_s - e_t| (Peng et al. 2019).

    Args:
        student_embedding, teacher_embedding: (B, D), maps are flattened; no gradient reaches the teacher's.

    Returns:
        A scalar, at least 0, for a batch of one 0; float32 for half-precision embeddings.

    Raises:
        ValueError: the sides differ in samples or width.
    """
    student, teacher = embeddings(student_embedding, teacher_embedding)
    check_same_width(student, teacher)
    return _of_consecutive_pairs(student, teacher)


def _of_consecutive_pairs(student: Tensor, teacher: Tensor) -> Tensor:
    misses = (student - teacher).abs()  # (B, D)
    return (misses[:-1] * misses[1:]).sum() / max(len(misses) - 1, 1)


class CorrelationCongruenceConfig(EmbeddingLossConfig):
    """Product of how far student and teacher are apart at one sample and at the next, summed over dimensions.

    The embeddings come from two linear layers, one on each side, that train with the student.
    """

    title: ClassVar[str] = "Correlation congruence"
    source: ClassVar[str] = (
        "Peng et al.: Correlation Congruence for Knowledge Distillation, ICCV 2019, arXiv 1904.01802;"
        " the form that the CIFAR comparisons of Tian et al. 2020 use"
    )

    type: Literal["correlation_congruence"] = "correlation_congruence"
    weight: float = Field(default=0.02, ge=0, le=1e6)
    """Multiplier of this term in the sum."""
    width: int = Field(default=128, ge=1, le=65_536)
    """Of both embeddings."""

    def build(self, context: Context) -> Term:
        return CorrelationCongruence(self, context)


class CorrelationCongruence(Term):
    def __init__(self, config: CorrelationCongruenceConfig, context: Context) -> None:
        super().__init__()
        self.config = config
        ours, theirs = config.embedding_pair(context)
        self.layers = [(ours, theirs)]
        self.of_student = nn.Linear(math.prod(context.student[ours]), config.width)
        self.of_teacher = nn.Linear(math.prod(config.shapes_of_teacher(context)[theirs]), config.width)

    def forward(self, batch: Batch) -> Tensor:
        ours, theirs = self.layers[0]
        student, teacher = embeddings(batch.student[ours], self.config.taught(batch)[theirs])
        # No detaching between here and the loss: the teacher's linear layer learns, too.
        return _of_consecutive_pairs(self.of_student(student), self.of_teacher(teacher))
