"""Relational distillation, angles: triplets of samples enclose the angles that they do for the teacher."""

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone knows it by
from pydantic import Field
from torch import Tensor

from kdcore.losses.base import Context, Term
from kdcore.losses.embedding import EmbeddingLossConfig, EmbeddingTerm, embeddings

NUMBERS = 2**22
"""Of a chunk's largest tensor, about: 16 MiB of float32."""


def rkd_angle(student_embedding: Tensor, teacher_embedding: Tensor) -> Tensor:
    """Mean over B³ of smooth-L1 (beta 1) between cosines of angles (Park et al. 2019).

    The angle at sample i is between the normalised differences x_i - x_j and x_i - x_k; the cosine is 0, without a
    gradient, where a squared difference is not above 1e-12. The B³ cosines are worked out in chunks, each with its
    gradient, so that memory does not grow beyond a chunk.

    Args:
        student_embedding, teacher_embedding: (B, D_s) and (B, D_t), maps are flattened; no gradient reaches the
            teacher's.

    Returns:
        A scalar, at least 0; float32 for half-precision embeddings.

    Raises:
        ValueError: the sides differ in samples.
    """
    student, teacher = embeddings(student_embedding, teacher_embedding)
    samples = len(student)
    size = max(1, NUMBERS // (samples * max(samples, student.shape[1], teacher.shape[1])))
    total: Tensor = _InChunks.apply(student, teacher, size)
    return total / samples**3


class _InChunks(torch.autograd.Function):
    """The sum of `_angle_loss` over all samples, `size` of them at a time; each chunk's gradient is made at once."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, size: int) -> Tensor:
        leaf = student.detach().requires_grad_()
        total, gradient = student.new_zeros(()), torch.zeros_like(student)
        for start in range(0, len(student), size):
            with torch.enable_grad():
                loss = _angle_loss(leaf, teacher, start, start + size)
            gradient += torch.autograd.grad(loss, leaf)[0]
            total += loss.detach()
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradients[0] * gradient, None, None


def _angle_loss(student: Tensor, teacher: Tensor, start: int, end: int) -> Tensor:
    """The sum of smooth-L1 at the samples from `start` up to `end`."""
    return F.smooth_l1_loss(_cosines(student, start, end), _cosines(teacher, start, end), reduction="sum")


def _cosines(embedding: Tensor, start: int, end: int) -> Tensor:
    """(B, D) -> (end - start, B, B): at each of these samples, between the directions to every two."""
    differences = embedding[start:end, None] - embedding  # (end - start, B, D)
    squares = differences.square().sum(dim=2, keepdim=True)
    directions = torch.where(squares > 1e-12, differences * squares.clamp(min=1e-12).rsqrt(), 0.0)
    return directions @ directions.transpose(1, 2)


class RKDAngleConfig(EmbeddingLossConfig):
    """Smooth-L1 between the cosines of the angles that triplets of samples enclose, of student and teacher.

    Widths may differ. Its cost grows with the third power of the batch, its memory with the second.
    """

    title: ClassVar[str] = "Relational distillation of angles"
    source: ClassVar[str] = (
        "Park, Kim, Lu, Cho: Relational Knowledge Distillation, CVPR 2019, arXiv 1904.05068, section 3.2.2"
    )

    together: ClassVar[int] = 3

    type: Literal["rkd_angle"] = "rkd_angle"
    weight: float = Field(default=50.0, ge=0, le=1e6)
    """Multiplier of this term in the sum."""

    def build(self, context: Context) -> Term:
        return EmbeddingTerm(self, context, rkd_angle)
