"""Distillation by singular vectors: how the main directions of consecutive maps relate, as Gaussian kernels say it."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone knows it by
from pydantic import Field
from torch import Tensor, nn

from kdcore.losses.base import Batch, Context, Shapes, Term
from kdcore.losses.connector import connector
from kdcore.losses.pairing import LayersLossConfig, Pairs
from kdcore.losses.pooling import check_maps

CANDIDATES = 3
"""How many more vectors of the student's than of the teacher's there are to choose from."""
NEAR_TIE = 1e-4
"""Eigenvalues nearer than this share of the largest are a tie: the gradient through them is damped."""
NOTHING = 1e-12
"""An eigenvalue below this share of the largest is 0: its vector could be any, and is left out."""


def singular_value(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor], k: int = 1) -> Tensor:
    """Squared difference between the student's and the teacher's kernels of consecutive maps (Lee et al. 2018).

    Each map as (B, H·W, C) has right singular vectors: the teacher's first k are taken, the student's first k + 3.
    Each of the teacher's takes the student's of the largest |cosine|, with its sign; both are scaled by the teacher's
    first k singular values, L2-normalised. For consecutive maps the kernels are exp(-(a - b)²/8) for every pair of
    components a (later map) and b (earlier map) of the j-th vectors; the squared differences of student and teacher
    are summed, divided by B, and summed over the pairs of maps.

    All is computed in float64; the student's vectors come from the eigenvectors of the smaller Gram matrix. Where two
    of its singular values are equal, or one is 0, a vector has no derivative: there the gradient is damped
    (`NEAR_TIE`), and a vector of the singular value 0 is left out. The signs of the teacher's vectors are those of
    torch.linalg.svd. Maps with fewer than k places or channels have as many vectors as they have.

    Args:
        student_maps, teacher_maps: (B, C, H, W) in order of depth, as many of each, at least 2; heights and widths
            may differ; no gradient reaches the teacher's.
        k: how many singular vectors of the teacher.

    Returns:
        A scalar, at least 0; float64 for float64 maps, else float32.

    Raises:
        ValueError: there are fewer than 2 maps, not as many of each, or those of a pair differ in channels.
    """
    if len(teacher_maps) < 2:
        raise ValueError(f"consecutive maps are compared: at least 2 are needed, not {len(teacher_maps)}")
    aligned = [_aligned(s, t.detach(), k) for s, t in zip(student_maps, teacher_maps, strict=True)]
    values = [
        (_kernel(later[0], earlier[0]) - _kernel(later[1], earlier[1])).square().sum()
        for earlier, later in pairwise(aligned)
    ]
    value = torch.stack(values).sum() / len(teacher_maps[0])
    return value if student_maps[0].dtype == torch.float64 else value.float()


def _aligned(student: Tensor, teacher: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(B, C, H, W) of each -> (B, C, k) of each: the scaled vectors, the student's chosen to fit."""
    check_maps(student, teacher)
    if student.shape[1] != teacher.shape[1]:
        raise ValueError(f"the student's map has {student.shape[1]} channels, the teacher's {teacher.shape[1]}")
    matrix = teacher.double().flatten(2).transpose(1, 2).nan_to_num(0.0, 0.0, 0.0)  # (B, H·W, C)
    _, values, rows = torch.linalg.svd(matrix, full_matrices=False)
    theirs, scale = rows[:, :k].transpose(1, 2), F.normalize(values[:, :k], dim=1)[:, None, :]
    ours = right_singular(student.double(), k + CANDIDATES)
    cosines = ours.transpose(1, 2) @ theirs  # (B, k + 3, k)
    nearest = cosines.detach().abs().argmax(dim=1, keepdim=True)  # (B, 1, k)
    signs = torch.where(cosines.gather(1, nearest) < 0, -1.0, 1.0).to(ours)
    chosen = ours.gather(2, nearest.expand(-1, ours.shape[1], -1)) * signs
    return chosen * scale, theirs * scale


def _kernel(later: Tensor, earlier: Tensor) -> Tensor:
    """(B, C₂, k), (B, C₁, k) -> (B, C₂, C₁, k), or of the fewer vectors where one has fewer."""
    vectors = min(later.shape[2], earlier.shape[2])
    differences = later[:, :, None, :vectors] - earlier[:, None, :, :vectors]
    return (-differences.square() / 8).exp()


def right_singular(maps: Tensor, count: int) -> Tensor:
    """The first right singular vectors of each map read as a matrix (H·W, C), with a gradient that stays finite.

    Args:
        maps: (B, C, H, W), float64.
        count: how many, at most; never more than H·W or C.

    Returns:
        (B, C, n) in falling order of singular values: vectors of length 1 with any sign, of length 0 where the
        singular value is 0; not-a-numbers where a map is not finite.
    """
    matrix = maps.flatten(2)  # (B, C, H·W), the transpose of what is decomposed
    wide = matrix.shape[1] > matrix.shape[2]
    gram = matrix.transpose(1, 2) @ matrix if wide else matrix @ matrix.transpose(1, 2)
    values, vectors = _eigenvectors(gram.nan_to_num(0.0, 0.0, 0.0))
    values, vectors = values[:, :count], vectors[:, :, :count]
    there = (values > NOTHING * values[:, :1])[:, None, :]
    if wide:
        vectors = matrix @ vectors  # (B, C, n): as long as the singular values
        squares = torch.where(there, vectors.square().sum(dim=1, keepdim=True), 1.0)
        vectors = vectors / squares.sqrt()
    # eigh refuses what is not finite; a student that diverged is to be told by its loss, which this makes NaN.
    return torch.where(there, vectors, 0.0) + 0 * matrix.sum(dim=(1, 2))[:, None, None]


def _eigenvectors(gram: Tensor) -> tuple[Tensor, Tensor]:
    values, vectors = _Eigenvectors.apply(gram)
    return values, vectors


class _Eigenvectors(torch.autograd.Function):
    """Eigenvalues and eigenvectors of symmetric matrices in falling order; only the vectors have a gradient.

    The derivative of the i-th vector has the factors 1/(λ_i - λ_j), infinite at a tie. Here it is
    gap/(gap² + ε²), which differs from them by the share (ε/gap)² and is 0 at the tie itself.
    """

    @staticmethod
    def forward(ctx: Any, gram: Tensor) -> tuple[Tensor, Tensor]:
        values, vectors = (part.flip(-1) for part in torch.linalg.eigh(gram))
        ctx.save_for_backward(values, vectors)
        ctx.mark_non_differentiable(values)
        return values, vectors

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        values, vectors = ctx.saved_tensors  # (B, n), (B, n, n)
        gaps = values[:, None, :] - values[:, :, None]  # λ_i - λ_j at [j, i]
        damping = NEAR_TIE * values[:, :1, None]
        factors = gaps / (gaps.square() + damping.square()).clamp(min=torch.finfo(gaps.dtype).tiny)
        inner = factors * (vectors.transpose(1, 2) @ gradients[1])
        gradient: Tensor = vectors @ inner @ vectors.transpose(1, 2)
        return gradient


class SingularValueConfig(LayersLossConfig):
    """Compares, in consecutive maps, how the main directions of the channels relate in the student and the teacher.

    Where a pair of maps differs in channels, a 1x1 convolution with batch normalisation, which trains with the
    student, takes the student's to the teacher's. It needs two pairs of layers or more.
    """

    title: ClassVar[str] = "Singular vectors of consecutive maps"
    source: ClassVar[str] = (
        "Lee, Kim, Song: Self-supervised Knowledge Distillation Using Singular Value Decomposition, ECCV 2018,"
        " arXiv 1807.06819"
    )
    in_order: ClassVar[bool] = True

    type: Literal["singular_value"] = "singular_value"
    k: int = Field(default=1, ge=1, le=64)
    """How many singular vectors of each of the teacher's maps."""

    def build(self, context: Context) -> Term:
        pairs = self.pairs(context, "map", least=2)
        return SingularValue(self, pairs, context.student, self.shapes_of_teacher(context))


class SingularValue(Term):
    def __init__(self, config: SingularValueConfig, pairs: Pairs, student: Shapes, teacher: Shapes) -> None:
        super().__init__()
        self.config, self.layers = config, pairs
        widths = [(student[s][0], teacher[t][0]) for s, t in pairs]
        self.connectors = nn.ModuleList(connector(a, b) if a != b else nn.Identity() for a, b in widths)

    def forward(self, batch: Batch) -> Tensor:
        taught = self.config.taught(batch)
        student = [module(batch.student[s]) for module, (s, _) in zip(self.connectors, self.layers, strict=True)]
        return singular_value(student, [taught[t] for _, t in self.layers], self.config.k)
