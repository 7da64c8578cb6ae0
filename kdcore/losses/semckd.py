"""Semantic calibration: every student's map learns from all of the teacher's, as much as attention says."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone knows it by
from pydantic import Field
from torch import Tensor, nn

from kdcore.losses.base import Batch, Context, LossError, Shapes, Term, check_same_shape, full_precision
from kdcore.losses.connector import projector
from kdcore.losses.pairing import WORDS, LayersLossConfig, candidates, check_kind, stage_ends
from kdcore.losses.pooling import pooled_alike


def semckd(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor], attention: Tensor) -> Tensor:
    """Σ over the pairs of layers and samples of attention · MSE, divided by B and the student's layers.

    Chen et al. 2021, equation 10.

    Args:
        student_maps, teacher_maps: (B, C, H, W) of each pair, all teacher's layers of the student's first one first;
            the larger of a pair is pooled to the smaller size first; no gradient reaches the teacher's.
        attention: (B, S, T), over the T layers of the teacher it sums to 1.

    Returns:
        A scalar, at least 0; float32 for half-precision maps.

    Raises:
        ValueError: there are not S·T of each, or the shapes of a pair differ other than in size.
    """
    errors = []
    for s, t in zip(student_maps, teacher_maps, strict=True):
        student, teacher = pooled_alike(full_precision(s), full_precision(t.detach()))
        check_same_shape(student, teacher)
        errors.append((student - teacher).square().flatten(1).mean(dim=1))
    shares = full_precision(attention).flatten(1)  # (B, S·T)
    found = torch.stack(errors, dim=1)
    check_same_shape(found, shares)
    return (shares * found).sum() / (attention.shape[0] * attention.shape[1])


class SemCKDConfig(LayersLossConfig):
    """Mean squared differences between every map of the student and every one of the teacher, weighted by attention.

    For each pair a projector of three convolutions takes the student's map to the teacher's width. Attention is the
    softmax over the teacher's layers of query times key, which two linear layers each make from the channel means of
    a map and bring to length 1. In the paper they read the batch's similarities, so that all batches must be of one
    size; here any batch fits. All of these train with the student.
    """

    title: ClassVar[str] = "Semantic calibration across layers"
    source: ClassVar[str] = (
        "Chen, Mei, Zhang, Wang, Feng, Chen: Cross-Layer Distillation with Semantic Calibration, AAAI 2021,"
        " arXiv 2012.03236; the weight is their code's"
    )

    type: Literal["semckd"] = "semckd"
    weight: float = Field(default=400.0, ge=0, le=1e6)
    """Multiplier of this term in the sum."""
    student_layers: list[str] | None = Field(default=None, min_length=1, max_length=64)
    """The student's maps; left out: the last of each size."""
    teacher_layers: list[str] | None = Field(default=None, min_length=1, max_length=64)
    """The teacher's maps, not necessarily as many; left out: the last of each size."""
    width: int = Field(default=32, ge=1, le=65_536)
    """Of queries and keys."""

    def build(self, context: Context) -> Term:
        teacher = self.shapes_of_teacher(context)
        ours = maps_of(context.student, self.student_layers, "student")
        return SemCKD(self, ours, maps_of(teacher, self.teacher_layers, "teacher"), context.student, teacher)


def maps_of(shapes: Shapes, named: list[str] | None, owner: str) -> list[str]:
    """The named maps of one side, or the last of each size; a `LossError` where there is none."""
    field = f"{owner}_layers"
    for layer in named or []:
        check_kind(shapes, layer, "map", field, owner)
    found = named or stage_ends(shapes, candidates(shapes, "map"))
    if not found:
        there = ", ".join(f"{name!r} {shape}" for name, shape in shapes.items())
        raise LossError(field, f"the {owner} has no hidden {WORDS['map']}; it has {there}")
    return found


class SemCKD(Term):
    def __init__(
        self, config: SemCKDConfig, ours: list[str], theirs: list[str], student: Shapes, teacher: Shapes
    ) -> None:
        super().__init__()
        self.config, self.ours, self.theirs = config, ours, theirs
        self.layers = [(s, t) for s in ours for t in theirs]
        self.queries = nn.ModuleList(_embedding(student[s][0], config.width) for s in ours)
        self.keys = nn.ModuleList(_embedding(teacher[t][0], config.width) for t in theirs)
        widths = [(student[s][0], teacher[t][0]) for s, t in self.layers]
        self.projectors = nn.ModuleList(projector(a, 2 * b, b) for a, b in widths)

    def forward(self, batch: Batch) -> Tensor:
        student, taught = batch.student, self.config.taught(batch)
        pairs = [pooled_alike(student[s], taught[t]) for s, t in self.layers]
        values = [module(ours) for module, (ours, _) in zip(self.projectors, pairs, strict=True)]
        attention = self.attention([student[s] for s in self.ours], [taught[t] for t in self.theirs])
        return semckd(values, [theirs for _, theirs in pairs], attention)

    def attention(self, student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> Tensor:
        """S maps and T maps (B, C, H, W) -> (B, S, T)."""
        queries = _embedded(self.queries, student_maps)
        keys = _embedded(self.keys, teacher_maps)
        return (queries @ keys.transpose(1, 2)).softmax(dim=2)


def _embedding(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(channels, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))


def _embedded(modules: nn.ModuleList, maps: Sequence[Tensor]) -> Tensor:
    """L maps (B, C, H, W) -> (B, L, width), of length 1."""
    found = [module(each.mean(dim=(2, 3))) for module, each in zip(modules, maps, strict=True)]
    return F.normalize(torch.stack(found, dim=1), dim=2)
