"""Variational information distillation: the student's layer shall say much about the teacher's."""

import math
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone knows it by
from pydantic import Field
from torch import Tensor, nn

from kdcore.losses.base import Batch, Context, Shapes, Term, check_same_shape, full_precision
from kdcore.losses.connector import as_map
from kdcore.losses.pairing import LayersLossConfig, Pairs
from kdcore.losses.pooling import check_maps, pooled_alike

LEAST = 1e-5
"""Variance that a channel keeps at least."""


def variational_information(student_mean: Tensor, teacher_map: Tensor, variance: Tensor) -> Tensor:
    """Mean over all entries of ½[(μ - t)²/σ² + log σ²], in nats (Ahn et al. 2019).

    It is, but for a constant, how unlikely the teacher's map is under a Gaussian that the student's layer predicts;
    minus it bounds the mutual information of the two layers from below.

    Args:
        student_mean, teacher_map: (B, C, H, W); no gradient reaches the teacher's.
        variance: (C,), σ² of each channel of the teacher, above 0.

    Returns:
        A scalar, below 0 where variances are small and errors too; float32 for half-precision maps.

    Raises:
        ValueError: they are no maps, the shapes differ, or there is not a variance for each channel.
    """
    check_maps(student_mean, teacher_map)
    check_same_shape(student_mean, teacher_map)
    if variance.shape != teacher_map.shape[1:2]:
        raise ValueError(
            f"a variance of each of {teacher_map.shape[1]} channels is needed, not {tuple(variance.shape)}"
        )
    spread = full_precision(variance)[:, None, None]
    error = full_precision(student_mean) - full_precision(teacher_map.detach())
    return (error.square() / spread + spread.log()).mean() / 2


class VariationalInformationConfig(LayersLossConfig):
    """Unlikeliness of the teacher's hidden outputs given the student's, summed over pairs of layers.

    Three 1x1 convolutions predict the teacher's map from the student's, and each channel of it has a variance of its
    own; both train with the student. Widths may differ, the larger map is pooled to the smaller size first.
    A vector counts as a map of one place.
    """

    title: ClassVar[str] = "Variational information"
    source: ClassVar[str] = (
        "Ahn et al.: Variational Information Distillation for Knowledge Transfer, CVPR 2019, arXiv 1904.05835"
    )

    type: Literal["variational_information"] = "variational_information"
    initial_variance: float = Field(default=5.0, ge=1e-3, le=1e6)
    """σ² of each channel as training begins."""

    def build(self, context: Context) -> Term:
        return VariationalInformation(
            self, context.student, self.shapes_of_teacher(context), self.pairs(context, "any")
        )


class Gaussian(nn.Module):
    """The teacher's map as the student's layer predicts it: a mean for each entry, a variance for each channel."""

    def __init__(self, student_channels: int, teacher_channels: int, initial_variance: float) -> None:
        super().__init__()
        self.mean = nn.Sequential(
            nn.Conv2d(student_channels, teacher_channels, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(teacher_channels, teacher_channels, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(teacher_channels, teacher_channels, 1, bias=False),
        )
        above = initial_variance - LEAST
        inverse_softplus = above + math.log(-math.expm1(-above))
        self.spread = nn.Parameter(torch.full((teacher_channels,), inverse_softplus))

    def forward(self, student_map: Tensor, teacher_map: Tensor) -> Tensor:
        student, teacher = pooled_alike(student_map, teacher_map)
        return variational_information(self.mean(student), teacher, F.softplus(self.spread) + LEAST)


class VariationalInformation(Term):
    def __init__(self, config: VariationalInformationConfig, student: Shapes, teacher: Shapes, pairs: Pairs) -> None:
        super().__init__()
        self.config, self.layers = config, pairs
        self.gaussians = nn.ModuleList(
            Gaussian(student[ours][0], teacher[theirs][0], config.initial_variance) for ours, theirs in pairs
        )

    def forward(self, batch: Batch) -> Tensor:
        taught = self.config.taught(batch)
        values = [
            gaussian(as_map(batch.student[ours]), as_map(taught[theirs]))
            for gaussian, (ours, theirs) in zip(self.gaussians, self.layers, strict=True)
        ]
        return torch.stack(values).sum()
