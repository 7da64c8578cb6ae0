"""What the losses between samples have in common: one vector per sample, and how far two of them are apart."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from kdcore.losses.base import Batch, Context, Term, full_precision
from kdcore.losses.pairing import LayerLossConfig, candidates

COLUMNS = 8192
"""Of wide embeddings, in float64 at once."""
EQUAL = 1e-13
"""Of two samples' squared sizes: a squared distance that float64 cannot tell from 0."""


class EmbeddingLossConfig(LayerLossConfig):
    """Base of every loss on one embedding of each side: a vector, or a map read as one."""

    together: ClassVar[int] = 2
    """How many samples are compared with one another: its time grows with that power of the batch."""

    def embedding_pair(self, context: Context) -> tuple[str, str]:
        """The student's and the teacher's layer: as named, else the deepest hidden vectors, else the deepest maps."""
        named = self.student_layer or self.teacher_layer
        both = (context.student, self.shapes_of_teacher(context))
        vectors = all(candidates(shapes, "vector") for shapes in both)
        return self.pair(context, "vector" if vectors and not named else "any")


class EmbeddingTerm(Term):
    """A function of the embeddings of a batch, one of each side."""

    def __init__(
        self, config: EmbeddingLossConfig, context: Context, function: Callable[[Tensor, Tensor], Tensor]
    ) -> None:
        super().__init__()
        self.config, self.function = config, function
        self.layers = [config.embedding_pair(context)]

    def comparisons(self, batch_size: int) -> int:
        count: int = batch_size**self.config.together
        return count

    def held(self, batch_size: int) -> int:
        return self.comparisons(batch_size) if self.config.together == 2 else 0  # triples are compared in chunks

    def forward(self, batch: Batch) -> Tensor:
        student_layer, teacher_layer = self.layers[0]
        return self.function(batch.student[student_layer], self.config.taught(batch)[teacher_layer])


def embeddings(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """(B, …) -> (B, D) of each side, at least float32, the teacher's without gradient.

    Raises:
        ValueError: a side has no samples' dimension beside its numbers, or the sides differ in samples.
    """
    if student.ndim < 2 or teacher.ndim < 2 or len(student) != len(teacher):
        shapes = f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)}"
        raise ValueError(f"{shapes} are no embeddings (B, D) of the same samples")
    return full_precision(student).flatten(1), full_precision(teacher.detach()).flatten(1)


def averaged(feature: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C), the mean over positions, at least float32; (B, D) stays."""
    return full_precision(feature).flatten(2).mean(dim=2) if feature.ndim > 2 else full_precision(feature)


def distances(embedding: Tensor) -> Tensor:
    """(B, D) -> (B, B): ‖x_i - x_j‖ from the differences themselves; where it is 0, so is its gradient.

    The Gram matrix would be faster, but in float32 it leaves no digit of two near samples far from 0.
    """
    return torch.cdist(embedding, embedding, compute_mode="donot_use_mm_for_euclid_dist")


def squared_distances(embedding: Tensor) -> Tensor:
    """(B, D) -> (B, B): ‖x_i - x_j‖² by the Gram matrix, for embeddings as wide as whole maps, where the differences
    themselves take many times as long.

    About the samples' mean and in float64: of two samples that are a millionth of their size apart four digits are
    left, below a third of that it is 0. NaN and infinity make all of it NaN.
    """
    squares: Tensor = _SquaredDistances.apply(embedding)
    return squares


class _SquaredDistances(torch.autograd.Function):
    """So many columns at a time: float64 copies of whole maps, kept for the gradient, would be more than the maps."""

    @staticmethod
    def forward(embedding: Tensor) -> Tensor:
        gram = embedding.new_zeros(len(embedding), len(embedding), dtype=torch.float64)
        for columns in torch.split(embedding, COLUMNS, dim=1):
            centred = _centred(columns)
            gram += centred @ centred.T
        sizes = gram.diagonal()[:, None] + gram.diagonal()
        squares = sizes - 2 * gram
        return squares.masked_fill(squares <= EQUAL * sizes, 0).to(embedding.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs, output)

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> Tensor:
        """Of x_i: 2 Σ_j (g_ij + g_ji) (x_i - x_j)."""
        embedding, squares = ctx.saved_tensors
        both = (given[0] + given[0].T).double().masked_fill(squares == 0, 0)
        across = 2 * (both.sum(dim=1).diag() - both)
        parts = [(across @ _centred(columns)).to(embedding.dtype) for columns in torch.split(embedding, COLUMNS, dim=1)]
        return torch.cat(parts, dim=1)


def _centred(columns: Tensor) -> Tensor:
    columns = columns.double()
    return columns - columns.mean(dim=0)


def check_same_width(student: Tensor, teacher: Tensor) -> None:
    """Raise `ValueError` where the embeddings (B, D) of the two sides differ in D."""
    if student.shape[1] != teacher.shape[1]:
        raise ValueError(f"the student's embedding has {student.shape[1]} numbers, the teacher's {teacher.shape[1]}")
