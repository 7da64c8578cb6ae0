"""What a loss term is: a Config that builds an `nn.Module` on named views of student and teacher."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from kdcore.config import Config

Views = Mapping[str, Tensor]
"""A model's named outputs for one batch, batch first; `logits` is always among them."""

Shapes = Mapping[str, tuple[int, ...]]
"""The shapes of a model's views, without the batch dimension."""


class LossError(ValueError):
    """A loss that cannot be built on these models: `field` of its config is wrong."""

    def __init__(self, field: str, message: str) -> None:
        self.field = field
        super().__init__(message)


class Term(nn.Module):
    """One loss term. What it must learn are its parameters: they train and are saved with the student."""

    def forward(self, student: Views, teacher: Views, labels: Tensor | None) -> Tensor:
        """The raw (unweighted) loss of one batch, a scalar. `teacher` is empty where there is none."""
        raise NotImplementedError


class BaseLossConfig(Config):
    """Base of every loss's Config."""

    needs_teacher: ClassVar[bool]
    needs_labels: ClassVar[bool]
    title: ClassVar[str]
    """What it is, in a few words, for the catalogue."""
    source: ClassVar[str]
    """The paper and section it is from."""

    type: Any
    weight: float = Field(default=1.0, ge=0, le=1e6)
    """Multiplier of this term in the sum."""

    def build(self, student: Shapes, teacher: Shapes, classes: int) -> Term:
        """The term's module.

        Args:
            student, teacher: shapes of the views of both, without the batch; `teacher` may be empty.
            classes: how many classes the data has.

        Raises:
            LossError: names the field that does not fit and what would.
        """
        raise NotImplementedError


def layer_shape(shapes: Shapes, layer: str, field: str, owner: str) -> tuple[int, ...]:
    """The shape of a named view, or a `LossError` that names those that are there."""
    if layer not in shapes:
        raise LossError(field, f"the {owner} has no layer {layer!r}; it has {', '.join(map(repr, shapes))}")
    return shapes[layer]


def logits_width(shapes: Shapes, layer: str, field: str, owner: str) -> int:
    """How many classes a view has when it is read as logits, or a `LossError` where it is no vector."""
    shape = layer_shape(shapes, layer, field, owner)
    if len(shape) != 1:
        vectors = ", ".join(repr(name) for name, other in shapes.items() if len(other) == 1)
        raise LossError(
            field, f"the {owner}'s {layer!r} has the shape {shape}, logits are a vector; its vectors are {vectors}"
        )
    return shape[0]


def check_same_classes(student: Shapes, teacher: Shapes, student_layer: str, teacher_layer: str) -> None:
    """Raise `LossError` unless both views are vectors of one width."""
    if not teacher:
        raise LossError("type", "this loss needs a teacher, and there is none")
    ours = logits_width(student, student_layer, "student_layer", "student")
    theirs = logits_width(teacher, teacher_layer, "teacher_layer", "teacher")
    if ours != theirs:
        raise LossError(
            "teacher_layer",
            f"the student's {student_layer!r} has {ours} classes, the teacher's {teacher_layer!r} has {theirs};"
            " name two layers of the same width",
        )


def full_precision(logits: Tensor) -> Tensor:
    """Half-precision logits as float32, others as they are: sums of exponentials need the digits."""
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def check_same_shape(student: Tensor, teacher: Tensor) -> None:
    """Raise `ValueError` on shapes that broadcasting would otherwise hide."""
    if student.shape != teacher.shape:
        raise ValueError(f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} differ in shape")
