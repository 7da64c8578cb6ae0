"""Flow of solution procedure: how one layer's channels go with the next one's, as the teacher has it."""

from itertools import pairwise
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone knows it by
from torch import Tensor

from kdcore.losses.base import Batch, Context, LossError, Term, check_same_shape, full_precision
from kdcore.losses.pairing import LayersLossConfig, Pairs
from kdcore.losses.pooling import check_maps, pooled_alike


def flow_of_solution(student_pair: tuple[Tensor, Tensor], teacher_pair: tuple[Tensor, Tensor]) -> Tensor:
    """Mean over all entries of (G_s - G_t)², G = the mean over H·W of f_a f_bᵀ (Yim et al. 2017).

    Args:
        student_pair, teacher_pair: two consecutive maps each, (B, C, H, W) and (B, D, h, w), with the same C and D;
            the larger map of a pair is pooled to the smaller size; no gradient reaches the teacher's.

    Returns:
        A scalar, at least 0; float32 for half-precision maps.

    Raises:
        ValueError: they are no maps, of different batches, or student and teacher differ in channels.
    """
    student, teacher = _flow(*student_pair), _flow(*(feature.detach() for feature in teacher_pair))
    check_same_shape(student, teacher)
    return F.mse_loss(student, teacher)


def _flow(earlier: Tensor, later: Tensor) -> Tensor:
    """(B, C, H, W), (B, D, h, w) -> (B, C, D)."""
    check_maps(earlier, later)
    one, other = (feature.flatten(2) for feature in pooled_alike(full_precision(earlier), full_precision(later)))
    return one @ other.transpose(1, 2) / one.shape[2]


class FlowOfSolutionConfig(LayersLossConfig):
    """Squared difference of the flow matrices between consecutive layers, summed over them.

    Student and teacher must have as many channels in the layers that are matched. The paper trains on it alone
    first, in a stage of about 30 epochs, and on the labels in the next.
    """

    title: ClassVar[str] = "Flow between layers"
    source: ClassVar[str] = "Yim, Joo, Bae, Kim: A Gift from Knowledge Distillation, CVPR 2017, section 3"
    in_order: ClassVar[bool] = True

    type: Literal["flow_of_solution"] = "flow_of_solution"

    def build(self, context: Context) -> Term:
        pairs, teacher = self.pairs(context, "map", least=2), self.shapes_of_teacher(context)
        for ours, theirs in pairs:
            widths = context.student[ours][0], teacher[theirs][0]
            if widths[0] != widths[1]:
                raise LossError(
                    "student_layers",
                    f"the student's {ours!r} has {widths[0]} channels, the teacher's {theirs!r} has {widths[1]};"
                    " name layers with as many channels, or give the student the teacher's widths",
                )
        return FlowOfSolution(self, pairs)


class FlowOfSolution(Term):
    def __init__(self, config: FlowOfSolutionConfig, pairs: Pairs) -> None:
        super().__init__()
        self.config, self.layers = config, pairs

    def forward(self, batch: Batch) -> Tensor:
        student, taught = batch.student, self.config.taught(batch)
        values = [
            flow_of_solution((student[s], student[next_s]), (taught[t], taught[next_t]))
            for (s, t), (next_s, next_t) in pairwise(self.layers)
        ]
        return torch.stack(values).sum()
