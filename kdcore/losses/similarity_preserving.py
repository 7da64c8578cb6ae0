"""Similarity-preserving distillation: samples that are alike to the teacher shall be alike to the student."""

from typing import ClassVar, Literal

import torch.nn.functional as F  # noqa: N812 - the name everyone knows it by
from pydantic import Field
from torch import Tensor

from kdcore.losses.base import Batch, Context, Term, check_same_shape, full_precision
from kdcore.losses.pairing import LayerLossConfig


def similarity_preserving(student_feature: Tensor, teacher_feature: Tensor) -> Tensor:
    """‖G_t - G_s‖²_F / B², G = X Xᵀ of the flattened features, its rows L2-normalised (Tung and Mori 2019).

    Args:
        student_feature, teacher_feature: (B, …) of any shapes, flattened as they are; no gradient reaches the
            teacher's.

    Returns:
        A scalar, at least 0; float32 for half-precision features.

    Raises:
        ValueError: they are of different batches.
    """
    student, teacher = _similarity(full_precision(student_feature)), _similarity(full_precision(teacher_feature))
    check_same_shape(student, teacher)
    return F.mse_loss(student, teacher.detach())  # the mean over B² entries


def _similarity(feature: Tensor) -> Tensor:
    """(B, …) -> (B, B): rows of length 1; the row of a sample of zeros stays zeros."""
    rows = feature.flatten(1)
    return F.normalize(rows @ rows.T, dim=1)


class SimilarityPreservingConfig(LayerLossConfig):
    """Squared difference between the similarities of the batch's samples, in one layer of each side.

    Widths and sizes may differ. Left out, the layers are the deepest maps, or vectors where one side has no maps.
    """

    title: ClassVar[str] = "Similarities between samples"
    source: ClassVar[str] = "Tung, Mori: Similarity-Preserving Knowledge Distillation, ICCV 2019, arXiv 1907.09682"

    type: Literal["similarity_preserving"] = "similarity_preserving"
    weight: float = Field(default=3000.0, ge=0, le=1e6)
    """Multiplier of this term in the sum."""

    def build(self, context: Context) -> Term:
        return SimilarityPreserving(self, self.pair(context, "any"))


class SimilarityPreserving(Term):
    def __init__(self, config: SimilarityPreservingConfig, pair: tuple[str, str]) -> None:
        super().__init__()
        self.config, self.layers = config, [pair]

    def comparisons(self, batch_size: int) -> int:
        return batch_size**2

    def forward(self, batch: Batch) -> Tensor:
        ((ours, theirs),) = self.layers
        return similarity_preserving(batch.student[ours], self.config.taught(batch)[theirs])
