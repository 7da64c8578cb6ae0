"""What the losses between samples have in common: one vector per sample, and how far two of them are apart."""

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from kdcore.losses.base import Batch, Context, Term, full_precision
from kdcore.losses.pairing import LayerLossConfig, candidates


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

    The Gram matrix would be faster, but of two near samples far from 0 it leaves no digit.
    """
    return torch.cdist(embedding, embedding, compute_mode="donot_use_mm_for_euclid_dist")


def check_same_width(student: Tensor, teacher: Tensor) -> None:
    """Raise `ValueError` where the embeddings (B, D) of the two sides differ in D."""
    if student.shape[1] != teacher.shape[1]:
        raise ValueError(f"the student's embedding has {student.shape[1]} numbers, the teacher's {teacher.shape[1]}")
