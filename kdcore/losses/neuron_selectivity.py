"""Neuron selectivity transfer: the student's channels are active in the same patterns of places as the teacher's."""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone knows it by
from pydantic import Field
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from kdcore.losses.base import Batch, Context, Term, full_precision
from kdcore.losses.pairing import LayersLossConfig, Pairs, check_places
from kdcore.losses.pooling import check_maps, pooled_alike

AT_ONCE = 2**22
"""Products of channels held at a time: 16 MiB of float32, or one sample's where that is more."""


def neuron_selectivity(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Squared maximum mean discrepancy between the channels of the two, with k(a, b) = (a·b)².

    Each channel's H·W values are L2-normalised; then mean k(t, t) + mean k(s, s) - 2 mean k(s, t), the means over
    the batch and all pairs of channels (Huang and Wang 2017, with the polynomial kernel of degree 2).
    The products of a batch are B·C² numbers; larger batches are taken in parts, each computed again for its gradient,
    so that they never take more than `AT_ONCE` numbers.

    Args:
        student_map, teacher_map: (B, C, H, W), of any widths; the larger one is pooled to the smaller size first;
            no gradient reaches the teacher's.

    Returns:
        A scalar, at least 0 but for rounding; float32 for half-precision maps.

    Raises:
        ValueError: they are no maps, or of different batches.
    """
    check_maps(student_map, teacher_map)
    student, teacher = pooled_alike(full_precision(student_map), full_precision(teacher_map.detach()))
    student, teacher = F.normalize(student.flatten(2), dim=2), F.normalize(teacher.flatten(2), dim=2)  # (B, C, H·W)
    return _mean_kernel(teacher, teacher) + _mean_kernel(student, student) - 2 * _mean_kernel(student, teacher)


def _mean_kernel(one: Tensor, other: Tensor) -> Tensor:
    """(B, C, N), (B, D, N) -> the mean over B·C·D of (a·b)²."""
    count = one.shape[1] * other.shape[1]
    parts = max(1, AT_ONCE // count)
    if parts >= len(one):
        return _kernel_sum(one, other) / (len(one) * count)
    sums = [
        checkpoint(_kernel_sum, a, b, use_reentrant=False, preserve_rng_state=False)
        for a, b in zip(torch.split(one, parts), torch.split(other, parts), strict=True)
    ]
    return torch.stack(sums).sum() / (len(one) * count)


def _kernel_sum(one: Tensor, other: Tensor) -> Tensor:
    return (one @ other.transpose(1, 2)).square().sum()


class NeuronSelectivityConfig(LayersLossConfig):
    """Discrepancy between the distributions of the channels' spatial patterns, summed over pairs of layers.

    Widths may differ. Its time grows with B·C²·H·W; its memory is bounded.
    """

    title: ClassVar[str] = "Selectivity of channels"
    source: ClassVar[str] = (
        "Huang, Wang: Like What You Like: Knowledge Distill via Neuron Selectivity Transfer, 2017, arXiv 1707.01219"
    )

    type: Literal["neuron_selectivity"] = "neuron_selectivity"
    weight: float = Field(default=50.0, ge=0, le=1e6)
    """Multiplier of this term in the sum."""

    def build(self, context: Context) -> Term:
        pairs = self.pairs(context, "map")
        check_places(context.student, self.shapes_of_teacher(context), pairs, "student_layers")
        teacher = self.shapes_of_teacher(context)
        return NeuronSelectivity(self, pairs, sum(context.student[s][0] * teacher[t][0] for s, t in pairs))


class NeuronSelectivity(Term):
    def __init__(self, config: NeuronSelectivityConfig, pairs: Pairs, channels: int) -> None:
        super().__init__()
        self.config, self.layers, self.channels = config, pairs, channels

    def comparisons(self, batch_size: int) -> int:
        return batch_size * self.channels

    def held(self, batch_size: int) -> int:
        return 0  # in chunks

    def forward(self, batch: Batch) -> Tensor:
        taught = self.config.taught(batch)
        return torch.stack([neuron_selectivity(batch.student[s], taught[t]) for s, t in self.layers]).sum()
