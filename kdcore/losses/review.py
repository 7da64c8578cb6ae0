"""Knowledge review: each level of the teacher is explained by all of the student's levels from there to the deepest."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone knows it by
from pydantic import Field
from torch import Tensor, nn

from kdcore.losses.base import Batch, Context, Shapes, Term, check_same_shape, full_precision
from kdcore.losses.connector import connector
from kdcore.losses.pairing import LayersLossConfig, Pairs
from kdcore.losses.pooling import check_maps, pooled_alike
from kdcore.losses.schedules import LinearFactorConfig, LossScheduleConfig

LEVELS = (4, 2, 1)
WIDEST = 512


def hierarchical_context(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """[MSE + Σ w · MSE(both pooled to l x l)] / (1 + Σ w) over those l of 4, 2, 1 that are below the height.

    w is 1/2 for the first l that is used, then 1/4, 1/8 (Chen et al. 2021, section 3.4, as in their published code).

    Args:
        student_map, teacher_map: (B, C, H, W); the larger one is pooled to the smaller size first; no gradient
            reaches the teacher's.

    Returns:
        A scalar, at least 0; float32 for half-precision maps.

    Raises:
        ValueError: they are no maps, or their shapes differ other than in size.
    """
    check_maps(student_map, teacher_map)
    student, teacher = pooled_alike(full_precision(student_map), full_precision(teacher_map.detach()))
    check_same_shape(student, teacher)
    value, weight, total = F.mse_loss(student, teacher), 1.0, 1.0
    for level in LEVELS:
        if level < student.shape[2]:
            weight /= 2
            total += weight
            ours, theirs = F.adaptive_avg_pool2d(student, level), F.adaptive_avg_pool2d(teacher, level)
            value = value + weight * F.mse_loss(ours, theirs)
    return value / total


def review(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> Tensor:
    """Σ over levels of `hierarchical_context` (Chen et al. 2021, section 3.3).

    Args:
        student_maps, teacher_maps: (B, C, H, W) of each level, as many of each; the student's as fused with all deeper
            levels; no gradient reaches the teacher's.

    Returns:
        A scalar, at least 0; float32 for half-precision maps.

    Raises:
        ValueError: there are not as many of each, or a pair is refused by `hierarchical_context`.
    """
    return torch.stack([hierarchical_context(s, t) for s, t in zip(student_maps, teacher_maps, strict=True)]).sum()


class Fusion(nn.Module):
    """Joins a level of the student with what the deeper levels have left, by attention over places.

    Args:
        inputs: channels of the student's map.
        middle: channels of what is handed from level to level.
        outputs: channels of the teacher's map.
        deepest: nothing is handed to the deepest level.
    """

    def __init__(self, inputs: int, middle: int, outputs: int, deepest: bool) -> None:
        super().__init__()
        self.reduce = connector(inputs, middle)
        self.attention = None if deepest else nn.Sequential(nn.Conv2d(2 * middle, 2, 1), nn.Sigmoid())
        self.expand = connector(middle, outputs, kernel=3)

    def forward(self, feature: Tensor, left: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B, inputs, H, W) and (B, middle, H', W') -> (B, outputs, H, W) to compare, (B, middle, H, W) to hand on."""
        fused: Tensor = self.reduce(feature)
        if self.attention is not None:
            assert left is not None
            deeper = F.interpolate(left, fused.shape[2:], mode="nearest")
            shares = self.attention(torch.cat([fused, deeper], dim=1))  # (B, 2, H, W)
            fused = fused * shares[:, :1] + deeper * shares[:, 1:]
        return self.expand(fused), fused


class ReviewConfig(LayersLossConfig):
    """Sum over the teacher's maps of their `hierarchical_context` with the student's levels, fused from the deepest up.

    At each level a fusion, which trains with the student, joins the student's map with what the deeper levels have
    left. The usual weight is 5, reached in a warm-up of 20 epochs.
    """

    title: ClassVar[str] = "Knowledge review"
    source: ClassVar[str] = (
        "Chen, Liu, Zhao, Jia: Distilling Knowledge via Knowledge Review, CVPR 2021, arXiv 2104.09044"
    )
    in_order: ClassVar[bool] = True

    type: Literal["review"] = "review"
    weight: float = Field(default=5.0, ge=0, le=1e6)
    """Multiplier of this term in the sum."""
    weight_schedule: LossScheduleConfig | None = LinearFactorConfig()
    """A factor on the weight that changes over the stage's epochs; none: 1 throughout."""

    def build(self, context: Context) -> Term:
        return Review(self, self.pairs(context, "map"), context.student, self.shapes_of_teacher(context))


class Review(Term):
    def __init__(self, config: ReviewConfig, pairs: Pairs, student: Shapes, teacher: Shapes) -> None:
        super().__init__()
        self.config, self.layers = config, pairs
        deepest, _ = pairs[-1]
        middle = min(WIDEST, student[deepest][0])
        self.fusions = nn.ModuleList(
            Fusion(student[s][0], middle, teacher[t][0], deepest=s == deepest) for s, t in pairs
        )

    def forward(self, batch: Batch) -> Tensor:
        taught = self.config.taught(batch)
        levels: list[Tensor] = []
        left = None
        for fusion, (s, _) in zip(reversed(self.fusions), reversed(self.layers), strict=True):
            explained, left = fusion(batch.student[s], left)
            levels.append(explained)
        return review(levels, [taught[t] for _, t in reversed(self.layers)])
