"""Activation boundary: the student's neurons are on where the teacher's are on, and off where they are off."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from kdcore.losses.base import Batch, Context, Term, check_same_shape, full_precision
from kdcore.losses.connector import connector
from kdcore.losses.pairing import LayersLossConfig, Pairs
from kdcore.losses.pooling import check_maps, pooled_alike


def activation_boundary(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor], margin: float = 1.0) -> Tensor:
    """Squares of how far the student's pre-activations are from the teacher's side of 0, with a margin m.

    Σ over maps of w · 3/(1000·B) · Σ [(s + m)²·1(s > -m, t ≤ 0) + (s - m)²·1(s ≤ m, t > 0)]; w is 1 for the last map
    and half the next one's for each before it (Heo et al. 2019, equation 5, with the factors of their published code).

    Args:
        student_maps, teacher_maps: (B, C, H, W) before the activation, in order of depth, as many of each; the larger
            of a pair is pooled to the smaller size first; no gradient reaches the teacher's.
        margin: m, at least 0.

    Returns:
        A scalar, at least 0; float32 for half-precision maps.

    Raises:
        ValueError: there are not as many of each, or the shapes of a pair differ other than in size.
    """
    values: list[Tensor] = []
    for s, t in zip(student_maps, teacher_maps, strict=True):
        check_maps(s, t)
        student, teacher = pooled_alike(full_precision(s), full_precision(t.detach()))
        check_same_shape(student, teacher)
        misses = torch.where(teacher > 0, margin - student, margin + student).relu()
        share = 0.5 ** (len(teacher_maps) - 1 - len(values))
        values.append(misses.square().sum() * (share * 3 / (1000 * len(student))))
    return torch.stack(values).sum()


class ActivationBoundaryConfig(LayersLossConfig):
    """Pushes the student's pre-activations beyond a margin on the teacher's side of 0, in every hidden map.

    A 1x1 convolution with batch normalisation, which trains with the student, takes each map of the student to the
    teacher's width. The layers are views before the activation, whose names end in `_pre`. The paper initialises the
    student so: a first stage of 30 epochs with this loss alone, then a stage with the label loss.
    """

    title: ClassVar[str] = "Activation boundaries"
    source: ClassVar[str] = (
        "Heo, Lee, Yun, Choi: Knowledge Transfer via Distillation of Activation Boundaries, AAAI 2019, arXiv 1811.03233"
    )
    in_order: ClassVar[bool] = True

    type: Literal["activation_boundary"] = "activation_boundary"
    margin: float = Field(default=1.0, ge=0, le=1000)
    """How far beyond 0 the student's pre-activations are pushed."""

    def build(self, context: Context) -> Term:
        return ActivationBoundary(self, self.pairs(context, "preactivation"), context)


class ActivationBoundary(Term):
    def __init__(self, config: ActivationBoundaryConfig, pairs: Pairs, context: Context) -> None:
        super().__init__()
        self.config, self.layers = config, pairs
        teacher = config.shapes_of_teacher(context)
        self.connectors = nn.ModuleList(connector(context.student[s][0], teacher[t][0]) for s, t in pairs)

    def forward(self, batch: Batch) -> Tensor:
        taught = self.config.taught(batch)
        student = [module(batch.student[s]) for module, (s, _) in zip(self.connectors, self.layers, strict=True)]
        return activation_boundary(student, [taught[t] for _, t in self.layers], self.config.margin)
