"""Relational distillation, distances: pairs of samples are as far apart as they are for the teacher."""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone knows it by
from pydantic import Field
from torch import Tensor

from kdcore.losses.base import Context, Term
from kdcore.losses.embedding import EmbeddingLossConfig, EmbeddingTerm, distances, embeddings


def rkd_distance(student_embedding: Tensor, teacher_embedding: Tensor) -> Tensor:
    """Mean over B² of smooth-L1 (beta 1) between distances d_ij = ‖x_i - x_j‖ (Park et al. 2019).

    Each side's distances are divided by the mean of its positive ones. A squared distance is at least 1e-12, d_ii is 0.

    Args:
        student_embedding, teacher_embedding: (B, D_s) and (B, D_t), maps are flattened; no gradient reaches the
            teacher's.

    Returns:
        A scalar, at least 0; float32 for half-precision embeddings.

    Raises:
        ValueError: the sides differ in samples.
    """
    student, teacher = embeddings(student_embedding, teacher_embedding)
    return F.smooth_l1_loss(_relative_distances(student), _relative_distances(teacher))


def _relative_distances(embedding: Tensor) -> Tensor:
    """(B, D) -> (B, B)"""
    samples = len(embedding)
    others = 1 - torch.eye(samples, dtype=embedding.dtype, device=embedding.device)
    apart = distances(embedding).clamp(min=1e-6) * others
    return apart / (apart.sum() / max(samples * (samples - 1), 1)).clamp(min=1e-12)


class RKDDistanceConfig(EmbeddingLossConfig):
    """Smooth-L1 between the student's and the teacher's distances between samples, each relative to their mean.

    Widths may differ. Usually together with `rkd_angle`.
    """

    title: ClassVar[str] = "Relational distillation of distances"
    source: ClassVar[str] = (
        "Park, Kim, Lu, Cho: Relational Knowledge Distillation, CVPR 2019, arXiv 1904.05068, section 3.2.1"
    )

    type: Literal["rkd_distance"] = "rkd_distance"
    weight: float = Field(default=25.0, ge=0, le=1e6)
    """Multiplier of this term in the sum."""

    def build(self, context: Context) -> Term:
        return EmbeddingTerm(self, context, rkd_distance)
