"""Multi-head graph distillation: attention from layer to layer draws a graph of the batch for the student to match."""

from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar, Literal, cast

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone knows it by
from pydantic import Field
from torch import Tensor, nn

from kdcore.losses.base import Batch, Context, Rival, Shapes, Term, check_same_shape, full_precision
from kdcore.losses.connector import as_map, connector
from kdcore.losses.pairing import LayersLossConfig, Pairs
from kdcore.losses.singular_value import CANDIDATES, right_singular
from kdcore.optim import AdamConfig, LearningRate


def multi_head_graph(student_scores: Sequence[Tensor], teacher_scores: Sequence[Tensor]) -> Tensor:
    """Sum over graphs and heads of Σ g_s (log g_s - log g_t) / B, g = softmax(tanh(score)) of rows (Lee, Song 2019).

    Args:
        student_scores, teacher_scores: for each two consecutive layers (H, B, B): of each head, how much a sample in
            the later layer (row) attends to each in the earlier one; no gradient reaches the teacher's.

    Returns:
        A scalar, at least 0; float32 for half-precision scores.

    Raises:
        ValueError: the sides differ in graphs or their shapes, or there is none.
    """
    if len(student_scores) != len(teacher_scores) or not student_scores:
        raise ValueError(f"{len(student_scores)} graphs of the student, {len(teacher_scores)} of the teacher")
    divergences = []
    for ours, theirs in zip(student_scores, teacher_scores, strict=True):
        check_same_shape(ours, theirs)
        student = full_precision(ours).tanh().log_softmax(dim=2)
        teacher = full_precision(theirs.detach()).tanh().log_softmax(dim=2)
        divergences.append((student.exp() * (student - teacher)).sum() / student.shape[1])
    return torch.stack(divergences).sum()


class MultiHeadGraphConfig(LayersLossConfig):
    """Divergence between the attention graphs of student and teacher, one for each two consecutive layers and head.

    A layer is seen as the main direction of its channels: of the teacher's map the first right singular vector, of
    the student's that of the first four which is nearest to it; of a vector itself. In the stage's first epochs
    attention heads learn to estimate the teacher's later layer from the earlier one, by the cosine and Adam; the loss
    is 0 until then. Afterwards they are frozen and draw the graphs of both sides. Where widths differ, a 1x1
    convolution with batch normalisation, which trains with the student, takes its maps to the teacher's width.
    """

    title: ClassVar[str] = "Multi-head graphs of the batch"
    source: ClassVar[str] = (
        "Lee, Song: Graph-based Knowledge Distillation by Multi-head Attention Network, BMVC 2019, arXiv 1907.02226"
    )
    in_order: ClassVar[bool] = True

    type: Literal["multi_head_graph"] = "multi_head_graph"
    heads: int = Field(default=8, ge=1, le=64)
    """Of each two consecutive layers."""
    attention_epochs: float = Field(default=40.0, gt=0, le=100_000)
    """Epochs in which the heads learn; never more than half of the stage's."""
    attention_lr: LearningRate = 1e-3
    """Learning rate of their Adam."""

    def build(self, context: Context) -> Term:
        pairs = self.pairs(context, "any", least=2)
        learning = min(self.attention_epochs, context.epochs / 2)
        return MultiHeadGraph(self, pairs, context.student, self.shapes_of_teacher(context), learning)


class Attention(nn.Module):
    """The heads of two consecutive layers, and the estimator of the later layer by which they learn."""

    def __init__(self, earlier: int, later: int, heads: int) -> None:
        super().__init__()
        self.heads, width = heads, max(1, (earlier + later) // 2)
        self.sender = nn.Sequential(nn.Linear(later, heads * width), nn.BatchNorm1d(heads * width))
        self.receiver = nn.Sequential(nn.Linear(earlier, heads * width), nn.BatchNorm1d(heads * width))
        self.values = nn.Sequential(nn.Linear(earlier, width), nn.BatchNorm1d(width), nn.ReLU())
        self.estimate = nn.Linear(heads * width, later)

    def scores(self, earlier: Tensor, later: Tensor) -> Tensor:
        """(B, D), (B, E) -> (H, B, B)"""
        sender = self.sender(later).unflatten(1, (self.heads, -1))  # (B, H, W)
        receiver = self.receiver(earlier).unflatten(1, (self.heads, -1))
        return torch.einsum("ihw,jhw->hij", sender, receiver)

    def miss(self, earlier: Tensor, later: Tensor) -> Tensor:
        """(B, D), (B, E) -> the mean over B of 1 - cosine of the estimate; half of the heads are dropped at random."""
        graph = self.scores(earlier, later).softmax(dim=2)
        graph = graph * F.dropout(torch.ones_like(graph[:, :, :1]), 0.5)
        mixed = torch.einsum("hij,jw->ihw", graph, self.values(earlier)).flatten(1)
        return 1 - F.cosine_similarity(self.estimate(mixed), later, dim=1, eps=1e-6).mean()


class MultiHeadGraph(Term):
    """`learning`: epochs until the attention is frozen."""

    missed: Tensor

    def __init__(
        self, config: MultiHeadGraphConfig, pairs: Pairs, student: Shapes, teacher: Shapes, learning: float
    ) -> None:
        super().__init__()
        self.config, self.layers, self.learning = config, pairs, learning
        widths = [(student[ours][0], teacher[theirs][0]) for ours, theirs in pairs]
        self.connectors = nn.ModuleList(connector(a, b) if a != b else nn.Identity() for a, b in widths)
        taught = [width for _, width in widths]
        self.attention = nn.ModuleList(Attention(a, b, config.heads) for a, b in pairwise(taught))
        self.register_buffer("missed", torch.zeros(()))  # saved: a resumed stage goes on reporting it

    def comparisons(self, batch_size: int) -> int:
        """Of every pair of layers, student's and teacher's each, one graph a head."""
        return 2 * len(self.attention) * self.config.heads * batch_size**2

    def forward(self, batch: Batch) -> Tensor:
        both = zip(self.connectors, self.layers, strict=True)
        maps = [connect(as_map(batch.student[ours])) for connect, (ours, _) in both]
        if batch.epoch < self.learning:
            # A zero with gradients of zero for all that trains here: fused SGD wants the same parameters in each step.
            return 0 * torch.stack([each.sum() for each in maps]).sum()
        self.attention.eval().requires_grad_(False)
        taught = self.taught(batch)
        student = [_nearest(each, direction) for each, direction in zip(maps, taught, strict=True)]
        return multi_head_graph(self.scores(student), self.scores(taught))

    def rival(self) -> Rival:
        optimizer = AdamConfig(lr=self.config.attention_lr).build(self.attention.parameters())
        return Rival(self.attention, optimizer, self._learn)

    def metrics(self) -> dict[str, Tensor]:
        return {"missed": self.missed}

    def taught(self, batch: Batch) -> list[Tensor]:
        """(B, D) of each of the teacher's layers."""
        views = self.config.taught(batch)
        return [_main_direction(as_map(views[theirs].detach())) for _, theirs in self.layers]

    def scores(self, directions: list[Tensor]) -> list[Tensor]:
        """(H, B, B) of each two consecutive layers."""
        both = zip(self.attention, pairwise(directions), strict=True)
        return [cast(Attention, module).scores(earlier, later) for module, (earlier, later) in both]

    def _learn(self, batch: Batch) -> Tensor | None:
        """The heads' own loss; none once they are frozen, or where batch normalisation has nothing to compare."""
        if batch.epoch >= self.learning or len(batch.indices) < 2:
            return None
        both = zip(self.attention, pairwise(self.taught(batch)), strict=True)
        loss = torch.stack([cast(Attention, module).miss(*directions) for module, directions in both]).sum()
        self.missed.copy_(loss.detach())
        return loss


def _main_direction(feature: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C): the first right singular vector, of the two signs that whose numbers' sum is not below 0.

    So vectors of near maps are near each other; of maps after a ReLU no number is below 0.
    """
    vector = right_singular(feature.double(), 1).squeeze(2)
    return (vector * torch.where(vector.sum(dim=1, keepdim=True) < 0, -1.0, 1.0)).float()


def _nearest(feature: Tensor, direction: Tensor) -> Tensor:
    """(B, C, H, W), (B, C) -> (B, C): of the first singular vectors that of the largest |cosine|, with its sign."""
    vectors = right_singular(feature.double(), CANDIDATES + 1).float()  # (B, C, n)
    cosines = torch.einsum("bcn,bc->bn", vectors, direction)
    nearest = cosines.detach().abs().argmax(dim=1, keepdim=True)  # (B, 1)
    sign = torch.where(cosines.gather(1, nearest) < 0, -1.0, 1.0)
    return vectors.gather(2, nearest[:, :, None].expand(-1, vectors.shape[1], -1)).squeeze(2) * sign
