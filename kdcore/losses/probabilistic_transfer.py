"""Probabilistic knowledge transfer: to whom a sample is alike, as a distribution over the batch."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from kdcore.losses.base import Context, Term
from kdcore.losses.embedding import EmbeddingLossConfig, EmbeddingTerm, embeddings

EPSILON = 1e-7


def probabilistic_transfer(student_embedding: Tensor, teacher_embedding: Tensor) -> Tensor:
    """Mean over B² of q_t · log((q_t + ε) / (q_s + ε)) with ε = 1e-7 (Passalis and Tefas 2018).

    Row i of q is (cos(x_i, x_j) + 1) / 2 over all samples j, divided by its sum; x is first divided by ‖x‖ + ε.

    Args:
        student_embedding, teacher_embedding: (B, D_s) and (B, D_t), maps are flattened; no gradient reaches the
            teacher's.

    Returns:
        A scalar, 0 where the rows are equal; float32 for half-precision embeddings.

    Raises:
        ValueError: the sides differ in samples.
    """
    student, teacher = (_likeness(side) for side in embeddings(student_embedding, teacher_embedding))
    return (teacher * ((teacher + EPSILON) / (student + EPSILON)).log()).mean()


def _likeness(embedding: Tensor) -> Tensor:
    """(B, D) -> (B, B): rows of probabilities."""
    directions: Tensor = embedding / (torch.linalg.vector_norm(embedding, dim=1, keepdim=True) + EPSILON)
    # A cosine that rounding takes below -1 would make the logarithm's argument negative.
    alike: Tensor = ((directions @ directions.T + 1) / 2).clamp(min=0)
    return alike / alike.sum(dim=1, keepdim=True)


class ProbabilisticTransferConfig(EmbeddingLossConfig):
    """Divergence of the student's from the teacher's distribution of cosine similarities over the batch (PKT).

    Widths may differ.
    """

    title: ClassVar[str] = "Probabilistic knowledge transfer"
    source: ClassVar[str] = (
        "Passalis, Tefas: Learning Deep Representations with Probabilistic Knowledge Transfer, ECCV 2018"
    )

    type: Literal["probabilistic_transfer"] = "probabilistic_transfer"
    weight: float = Field(default=30_000.0, ge=0, le=1e6)
    """Multiplier of this term in the sum."""

    def build(self, context: Context) -> Term:
        return EmbeddingTerm(self, context, probabilistic_transfer)
