"""Instance relationship graph: how far apart samples are in each layer, and how that changes between layers."""

from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar, Literal

import torch.nn.functional as F  # noqa: N812 - the name everyone knows it by
from torch import Tensor

from kdcore.losses.base import Batch, Context, Term
from kdcore.losses.embedding import embeddings, squared_distances
from kdcore.losses.pairing import LayersLossConfig, Pairs
from kdcore.losses.pooling import pooled_alike


def instance_graph(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> Tensor:
    """Squared differences between the graphs of student and teacher, summed (Liu et al. 2019).

    A layer's graph has the samples as nodes and the edges E_ij = ‖f_i - f_j‖², divided by the mean of the positive
    ones, so that weights keep their size. The sum has the mean of (E_s - E_t)² of each layer, the mean of
    (ΔE_s - ΔE_t)² of each two consecutive layers with ΔE = E of the later - E of the earlier, and the mean squared
    difference of the last layer's features where their widths are equal.

    Args:
        student_maps, teacher_maps: as many of each side, in order of depth: (B, C, H, W) or (B, D), of any widths;
            for the last difference the larger map is pooled to the smaller size. No gradient reaches the teacher's.

    Returns:
        A scalar, at least 0; float32 for half-precision maps.

    Raises:
        ValueError: the sides differ in layers or samples, or have none.
    """
    if len(student_maps) != len(teacher_maps) or not student_maps:
        raise ValueError(f"{len(student_maps)} layers of the student, {len(teacher_maps)} of the teacher; give as many")
    both = [embeddings(ours, theirs) for ours, theirs in zip(student_maps, teacher_maps, strict=True)]
    graphs = [_edges(ours) - _edges(theirs) for ours, theirs in both]
    loss = sum((graph.square().mean() for graph in graphs), start=_features(student_maps[-1], teacher_maps[-1]))
    # (E_s - E_t) of the later - (E_s - E_t) of the earlier is ΔE_s - ΔE_t.
    return sum(((later - earlier).square().mean() for earlier, later in pairwise(graphs)), start=loss)


def _edges(embedding: Tensor) -> Tensor:
    """(B, D) -> (B, B): squared distances, relative to the mean of the positive ones."""
    squares = squared_distances(embedding)
    return squares / (squares.sum() / (squares > 0).sum().clamp(min=1)).clamp(min=1e-12)


def _features(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean squared difference of two features; 0 where their widths differ."""
    student, teacher = pooled_alike(student, teacher)
    if student.shape != teacher.shape:
        return student.new_zeros(())
    return F.mse_loss(*embeddings(student, teacher))


class InstanceGraphConfig(LayersLossConfig):
    """Squared differences between the student's and the teacher's instance relationship graphs.

    One graph for each pair of layers, one for what changes between two of them, and, where the widths of the last
    pair are equal, the features themselves.
    """

    title: ClassVar[str] = "Instance relationship graph"
    source: ClassVar[str] = (
        "Liu et al.: Knowledge Distillation via Instance Relationship Graph, CVPR 2019; edges are normalised here"
    )
    in_order: ClassVar[bool] = True

    type: Literal["instance_graph"] = "instance_graph"

    def build(self, context: Context) -> Term:
        return InstanceGraph(self, self.pairs(context, "any"))


class InstanceGraph(Term):
    def __init__(self, config: InstanceGraphConfig, pairs: Pairs) -> None:
        super().__init__()
        self.config, self.layers = config, pairs

    def comparisons(self, batch_size: int) -> int:
        return len(self.layers) * batch_size**2

    def forward(self, batch: Batch) -> Tensor:
        teacher = self.config.taught(batch)
        return instance_graph(
            [batch.student[ours] for ours, _ in self.layers], [teacher[theirs] for _, theirs in self.layers]
        )
