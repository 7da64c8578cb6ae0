"""Attention transfer: the student looks where the teacher looks."""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone knows it by
from pydantic import Field
from torch import Tensor

from kdcore.losses.base import Batch, Context, Term, full_precision
from kdcore.losses.pairing import LayersLossConfig, Pairs, check_places
from kdcore.losses.pooling import check_maps, pooled_alike


def attention_transfer(student_map: Tensor, teacher_map: Tensor, p: float = 2) -> Tensor:
    """Mean over B·H·W of (Q_s - Q_t)², Q = the L2-normalised map of the channels' mean of |f|^p.

    Zagoruyko and Komodakis 2017, equation 2, with the mean over places of their published code.

    Args:
        student_map, teacher_map: (B, C, H, W), of any widths; the larger one is pooled to the smaller size first;
            no gradient reaches the teacher's.
        p: the power, at least 1.

    Returns:
        A scalar, at least 0; float32 for half-precision maps.

    Raises:
        ValueError: they are no maps, or of different batches.
    """
    check_maps(student_map, teacher_map)
    student, teacher = pooled_alike(full_precision(student_map), full_precision(teacher_map.detach()))
    return F.mse_loss(_attention(student, p), _attention(teacher, p))


def _attention(feature: Tensor, p: float) -> Tensor:
    """(B, C, H, W) -> (B, H·W): rows of length 1; a map of zeros becomes zeros."""
    # One pass over the feature, and one back: of abs, pow and mean each writes it anew.
    sums = torch.linalg.vector_norm(feature, p, dim=1).pow(p)
    return F.normalize(sums.flatten(1) / feature.shape[1], dim=1)


class AttentionTransferConfig(LayersLossConfig):
    """Mean squared difference of the normalised attention maps, summed over pairs of layers.

    An attention map is the mean over the channels of |f|^p; widths may differ.
    """

    title: ClassVar[str] = "Attention maps"
    source: ClassVar[str] = "Zagoruyko, Komodakis: Paying More Attention to Attention, ICLR 2017, arXiv 1612.03928"

    type: Literal["attention_transfer"] = "attention_transfer"
    weight: float = Field(default=1000.0, ge=0, le=1e6)
    """Multiplier of this term in the sum."""
    p: float = Field(default=2.0, ge=1, le=4)
    """The power: the higher, the more the strongest channels count."""

    def build(self, context: Context) -> Term:
        pairs = self.pairs(context, "map")
        check_places(context.student, self.shapes_of_teacher(context), pairs, "student_layers")
        return AttentionTransfer(self, pairs)


class AttentionTransfer(Term):
    def __init__(self, config: AttentionTransferConfig, pairs: Pairs) -> None:
        super().__init__()
        self.config, self.layers = config, pairs

    def forward(self, batch: Batch) -> Tensor:
        taught = self.config.taught(batch)
        values = [attention_transfer(batch.student[s], taught[t], self.config.p) for s, t in self.layers]
        return torch.stack(values).sum()
