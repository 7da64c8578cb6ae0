"""What a loss term is: a Config that builds an `nn.Module` on named views of student and teachers."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from kdcore.config import Config
from kdcore.data.base import TaskName
from kdcore.losses.schedules import LossScheduleConfig

Views = Mapping[str, Tensor]
"""A model's named outputs for one batch, batch first; `logits` is always among them."""

Shapes = Mapping[str, tuple[int, ...]]
"""The shapes of a model's views, without the batch dimension."""


class WhenRead(Mapping[str, Tensor]):
    """Views made of others, each when it is first read: most losses read the logits alone, and every view of a bf16
    network is cast for them."""

    def __init__(self, views: Views, change: Callable[[Tensor], Tensor]) -> None:
        self._views, self._change, self._made = views, change, dict[str, Tensor]()

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._made:
            self._made[name] = self._change(self._views[name])
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)


class LossError(ValueError):
    """A loss that cannot be built on these models: `field` of its config is wrong."""

    def __init__(self, field: str, message: str) -> None:
        self.field = field
        super().__init__(message)


@dataclass(frozen=True)
class Batch:
    """What a term sees of one step.

    Attributes:
        student: the student's views, with gradients.
        teachers: the views of each teacher, in the spec's order, without gradients; empty where none is needed.
        labels: (B,) int64 classes, or what the data has for labels; none without labels.
        indices: (B,) int64, the place of each sample in the training split.
        inputs: what the student read, (B, …): for terms that train a network of their own beside it.
        epoch: how many epochs of the stage are done, with fractions: 2.5 in the middle of the third.
    """

    student: Views
    teachers: Sequence[Views]
    labels: Tensor | None
    indices: Tensor
    inputs: Tensor
    epoch: float = 0.0


@dataclass(frozen=True)
class Context:
    """What a term is built for; the plan builds it on the meta device, with networks that have no numbers.

    Attributes:
        student: shapes of the student's views, without the batch.
        teachers: of each teacher's; empty where the stage has no teacher.
        input_shape: of what the student reads, without the batch.
        vocabulary: how many tokens there are, where it reads texts.
        classes: how many outputs the task has.
        task: what is to be learned from the labels.
        partly_labelled: whether some labels are -1: not seen.
        label_counts: how often each class is among the labels that the stage sees, (C,) on the CPU; none in the plan,
            which has seen no data, and where labels are no classes.
        labels_seen: how many samples these labels are of.
        samples: in the training split.
        epochs: of the stage.
        teacher_networks: the frozen teachers themselves, for terms that reuse a part of one. A term never
            registers such a part as a module of its own: it would be trained and saved.
    """

    student: Shapes
    teachers: Sequence[Shapes] = ()
    input_shape: tuple[int, ...] = (1,)
    vocabulary: int | None = None
    classes: int = 2
    task: TaskName = "classification"
    partly_labelled: bool = False
    label_counts: Tensor | None = None
    labels_seen: int = 0
    samples: int = 1
    epochs: int = 1
    teacher_networks: Sequence[nn.Module] = field(default=(), repr=False)


@dataclass(frozen=True)
class Rival:
    """A part of a term that learns against the student (a discriminator), or for itself (a paraphraser).

    After every update of the student it makes one of its own. Its parameters are the term's, so that they are
    saved with it, but the student's optimizer leaves them alone.

    Attributes:
        module: whose parameters are trained.
        optimizer: of these parameters; its state is saved as well.
        loss: its own loss of a batch whose views carry no gradient; none: it makes no update in this step.
    """

    module: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Callable[[Batch], Tensor | None]


class Term(nn.Module):
    """One loss term. What it must learn are its parameters: they train and are saved with the student."""

    layers: Sequence[tuple[str, str]] = ()
    """Pairs of the student's and the teacher's view that it compares, for the plan."""

    def forward(self, batch: Batch) -> Tensor:
        """The raw (unweighted) loss of one batch, a scalar."""
        raise NotImplementedError

    def rival(self) -> "Rival | None":
        """What is trained in turn with the student, by an optimizer and a loss of its own; most terms have none."""
        return None

    def beside(self) -> nn.Module | None:
        """A network of its own that reads what the student reads, in every step; most terms have none."""
        return None

    def comparisons(self, batch_size: int) -> int:
        """How many pairs or triples, of samples or of channels, it compares in a step, where they are many."""
        return 0

    def held(self, batch_size: int) -> int:
        """Of its comparisons those that are in memory at once: all, unless it works in chunks."""
        return self.comparisons(batch_size)

    def metrics(self) -> Mapping[str, Tensor]:
        """What else is worth watching in the step that was just made, scalars by name; no gradient."""
        return {}


class BaseLossConfig(Config):
    """Base of every loss's Config."""

    needs_teacher: ClassVar[bool]
    needs_labels: ClassVar[bool]
    brings_teacher: ClassVar[bool] = False
    """Whether what the student learns from comes with it: a peer, or its own deeper layers."""
    tasks: ClassVar[frozenset[TaskName] | None] = None
    """What it is for; none: any task."""
    skips_unlabelled: ClassVar[bool] = False
    """Whether it leaves samples out whose label is -1: not seen."""
    title: ClassVar[str]
    """What it is, in a few words, for the catalogue."""
    source: ClassVar[str]
    """The paper and section it is from."""

    type: Any
    weight: float = Field(default=1.0, ge=0, le=1e6)
    """Multiplier of this term in the sum."""
    weight_schedule: LossScheduleConfig | None = None
    """A factor on the weight that changes over the stage's epochs; none: 1 throughout."""

    def build(self, context: Context) -> Term:
        """The term's module.

        Raises:
            LossError: names the field that does not fit and what would.
        """
        raise NotImplementedError

    @property
    def reads_labels(self) -> bool:
        """Whether it needs labels as it is set; some losses do in one of their ways alone."""
        return self.needs_labels

    def reads(self, teachers: int) -> set[int]:
        """Which of the job's `teachers` it looks at, as indices from 0."""
        return set()

    def weight_at(self, epoch: float) -> float:
        """The weight after `epoch` epochs of the stage."""
        return self.weight * (self.weight_schedule.factor(epoch) if self.weight_schedule is not None else 1.0)


class TaughtLossConfig(BaseLossConfig):
    """Base of every loss that learns from a teacher."""

    needs_teacher: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = False

    teacher: int = Field(default=1, ge=1, le=16)
    """Which of the teachers, counted from 1."""

    def shapes_of_teacher(self, context: Context) -> Shapes:
        """The views of the teacher that is named, or a `LossError`."""
        if not context.teachers:
            raise LossError("type", "this loss needs a teacher, and there is none")
        if self.teacher > len(context.teachers):
            raise LossError("teacher", f"there are {len(context.teachers)} teachers, counted from 1")
        return context.teachers[self.teacher - 1]

    def reads(self, teachers: int) -> set[int]:
        return {self.teacher - 1}

    def taught(self, batch: Batch) -> Views:
        """The batch's views of the teacher that is named."""
        return batch.teachers[self.teacher - 1]


class LogitLossConfig(TaughtLossConfig):
    """Base of every loss that compares two views read as logits."""

    student_layer: str = "logits"
    """The student's view that is read as logits."""
    teacher_layer: str = "logits"
    """The teacher's view that is read as logits."""

    def check_logits(self, context: Context) -> None:
        """Raise `LossError` unless both views are vectors of one width."""
        teacher = self.shapes_of_teacher(context)
        ours = logits_width(context.student, self.student_layer, "student_layer", "student")
        theirs = logits_width(teacher, self.teacher_layer, "teacher_layer", "teacher")
        if ours != theirs:
            raise LossError(
                "teacher_layer",
                f"the student's {self.student_layer!r} has {ours} classes, the teacher's {self.teacher_layer!r} has"
                f" {theirs}; name two layers of the same width",
            )

    def logits(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The student's and the teacher's logits, (B, C) each."""
        return batch.student[self.student_layer], self.taught(batch)[self.teacher_layer]


def layer_shape(shapes: Shapes, layer: str, field: str, owner: str) -> tuple[int, ...]:
    """The shape of a named view, or a `LossError` that names those that are there."""
    if layer not in shapes:
        raise LossError(field, f"the {owner} has no layer {layer[:100]!r}; it has {', '.join(map(repr, shapes))}")
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


def full_precision(values: Tensor) -> Tensor:
    """Half-precision values as float32, others as they are: sums and exponentials need the digits."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


def check_same_shape(student: Tensor, teacher: Tensor) -> None:
    """Raise `ValueError` on shapes that broadcasting would otherwise hide."""
    if student.shape != teacher.shape:
        raise ValueError(f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} differ in shape")
