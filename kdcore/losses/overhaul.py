"""Feature distillation overhaul: the teacher's pre-activations through a margin ReLU, where they still matter."""

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from kdcore.losses.base import Batch, Context, LossError, Term, check_same_shape, full_precision
from kdcore.losses.connector import connector
from kdcore.losses.pairing import LayersLossConfig, Pairs
from kdcore.losses.pooling import check_maps, pooled_alike
from kdcore.models.base import Network


def overhaul(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor], margins: Sequence[Tensor]) -> Tensor:
    """Σ over maps of w / B · Σ (s - t')²·1(s > t' or t' > 0) with t' = max(t, margin) (Heo et al. 2019, equation 3).

    Where the teacher's neuron is off and the student's is below its margin, nothing is asked. As in the authors' code
    w is 1 for the last map and half the next one's for each before it.

    Args:
        student_maps, teacher_maps: (B, C, H, W) before the activation, in order of depth, as many of each; the larger
            of a pair is pooled to the smaller size first; no gradient reaches the teacher's.
        margins: (C,) for each map, at most 0: see `negative_means`.

    Returns:
        A scalar, at least 0; float32 for half-precision maps.

    Raises:
        ValueError: there are not as many of each, or the shapes of a pair differ other than in size.
    """
    values: list[Tensor] = []
    for s, t, margin in zip(student_maps, teacher_maps, margins, strict=True):
        check_maps(s, t)
        student, teacher = pooled_alike(full_precision(s), full_precision(t.detach()))
        check_same_shape(student, teacher)
        wanted = teacher.maximum(margin.to(teacher)[:, None, None])
        asked = (student > wanted) | (wanted > 0)
        squares = torch.where(asked, student - wanted, torch.zeros_like(wanted)).square()
        share = 0.5 ** (len(teacher_maps) - 1 - len(values))
        values.append(squares.sum() * (share / len(student)))
    return torch.stack(values).sum()


def negative_means(norm: nn.BatchNorm2d) -> Tensor:
    """E[x given x < 0] of each channel after a batch normalisation, x being normal about its bias β: (C,), float32.

    With its weight γ as the standard deviation: β - |γ|·φ(β/γ)/Φ(-β/γ), computed by logarithms, so that it is also
    right for a channel that is hardly ever negative, for which the authors' code takes -3|γ| instead.
    """
    mean, deviation = norm.bias.detach().double(), norm.weight.detach().double().abs().clamp(min=1e-12)
    ratio = (mean / deviation).clamp(-1e4, 1e4)  # beyond, the logarithms' difference has no digit left
    log_density = -ratio.square() / 2 - math.log(2 * math.pi) / 2
    expected: Tensor = mean - deviation * (log_density - torch.special.log_ndtr(-ratio)).exp()
    return expected.clamp(max=0).float()


class OverhaulConfig(LayersLossConfig):
    """Squared distance to the teacher's pre-activations after a margin ReLU, which keeps what is on.

    The margin of a channel is the mean of its negative values as the teacher's batch normalisation has it: the
    teacher's layers are outputs of batch normalisations, before their activation, whose names end in `_pre`. A 1x1
    convolution with batch normalisation, which trains with the student, takes each map of the student to the
    teacher's width. The usual weight is 1e-3, for ImageNet 1e-4.
    """

    title: ClassVar[str] = "Overhaul of feature distillation"
    source: ClassVar[str] = (
        "Heo, Kim, Yun, Park, Kwak, Choi: A Comprehensive Overhaul of Feature Distillation, ICCV 2019, arXiv 1904.01866"
    )
    in_order: ClassVar[bool] = True

    type: Literal["overhaul"] = "overhaul"
    weight: float = Field(default=1e-3, ge=0, le=1e6)
    """Multiplier of this term in the sum."""

    def build(self, context: Context) -> Term:
        pairs = self.pairs(context, "preactivation")
        network = context.teacher_networks[self.teacher - 1] if context.teacher_networks else None
        margins = []
        for _, layer in pairs:
            norm = network.norm_before(layer) if isinstance(network, Network) else None
            if norm is None:
                raise LossError(
                    "teacher_layers",
                    f"the teacher's {layer!r} is no output of a batch normalisation, from which the margin is read;"
                    " use a teacher with batch normalisation before its activations",
                )
            margins.append(negative_means(norm))
        return Overhaul(self, pairs, margins, context)


class Overhaul(Term):
    def __init__(self, config: OverhaulConfig, pairs: Pairs, margins: Sequence[Tensor], context: Context) -> None:
        super().__init__()
        self.config, self.layers = config, pairs
        self.connectors = nn.ModuleList(
            connector(context.student[s][0], len(margin)) for (s, _), margin in zip(pairs, margins, strict=True)
        )
        for place, margin in enumerate(margins):
            self.register_buffer(f"margin_{place}", margin)

    def forward(self, batch: Batch) -> Tensor:
        taught = self.config.taught(batch)
        student = [module(batch.student[s]) for module, (s, _) in zip(self.connectors, self.layers, strict=True)]
        margins = [self.get_buffer(f"margin_{place}") for place in range(len(self.layers))]
        return overhaul(student, [taught[t] for _, t in self.layers], margins)
