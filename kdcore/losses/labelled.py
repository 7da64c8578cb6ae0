"""What the losses on labels share: one output per class, and labels in the shape that the formula wants."""

from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone knows it by
from pydantic import Discriminator, Field, Tag
from torch import Tensor

from kdcore.data.base import TaskName
from kdcore.losses.base import BaseLossConfig, Batch, Context, LossError, logits_width

ClassWeights = Annotated[
    Annotated[Literal["balanced"], Tag("balanced")]
    | Annotated[list[Annotated[float, Field(gt=0, le=1e6)]], Field(max_length=10_000), Tag("each")],
    Discriminator(lambda value: "balanced" if isinstance(value, str) else "each"),
]


def class_weights(wanted: ClassWeights | None, context: Context) -> Tensor | None:
    """How much each class counts, (C,) float32; none: all alike.

    Raises:
        LossError: there are not as many weights as classes.
    """
    counts = context.label_counts
    if wanted != "balanced" or counts is None:
        return _given(wanted, context, "class_weights")
    present = counts.float().clamp(min=1)  # a class without samples needs no weight
    return counts.sum() / (len(counts) * present)


def positive_weights(wanted: ClassWeights | None, context: Context) -> Tensor | None:
    """How much each class's positive labels count beside its negative ones, (C,) float32; none: as much.

    Raises:
        LossError: there are not as many weights as classes.
    """
    counts = context.label_counts
    if wanted != "balanced" or counts is None:
        return _given(wanted, context, "pos_weight")
    positive = counts.float()  # a class with one kind of label alone has nothing to balance
    return (context.labels_seen - positive).clamp(min=1) / positive.clamp(min=1)


def _given(wanted: ClassWeights | None, context: Context, field: str) -> Tensor | None:
    """The weights as they are named; of balanced ones, before labels are seen, any."""
    if wanted is None:
        return None
    if wanted == "balanced":
        return torch.ones(context.classes)
    if len(wanted) != context.classes:
        message = f"{len(wanted)} weights for {context.classes} classes; give one for each, in the data's order"
        raise LossError(field, message)
    return torch.tensor(wanted)


class LabelLossConfig(BaseLossConfig):
    """Base of every loss of the student's outputs on the labels alone."""

    needs_teacher: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = True

    student_layer: str = "logits"
    """The student's view that is compared with the labels."""

    def outputs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The student's outputs (B, C), and the labels."""
        return batch.student[self.student_layer], labels_of(batch, self.type)


def check_labels(context: Context, student_layer: str, *tasks: TaskName) -> None:
    """Raise `LossError` unless the labels are those of one of the tasks, with an output of the student for each."""
    if context.task not in tasks:
        raise LossError("type", f"this loss reads the labels of {' or '.join(tasks)}, the data's are {context.task}")
    width = logits_width(context.student, student_layer, "student_layer", "student")
    if width != context.classes:
        raise LossError(
            "student_layer",
            f"the student's {student_layer!r} has {width} outputs, the data has {context.classes} classes;"
            " name a layer with one output per class",
        )


def labels_of(batch: Batch, loss: str) -> Tensor:
    """The batch's labels, or a `ValueError` that names the loss which cannot do without."""
    if batch.labels is None:
        raise ValueError(f"{loss} needs labels")
    return batch.labels


def as_targets(labels: Tensor, outputs: Tensor) -> Tensor:
    """Labels in the shape and type of the outputs (B, K).

    Classes (B,) int64, from 0 to K - 1, become one-hot rows; numbers (B,) for a single output become (B, 1); others
    keep their shape.
    """
    if labels.ndim == 1 and outputs.shape[1:] == (1,):
        labels = labels[:, None]
    elif labels.ndim == 1 and not labels.is_floating_point():
        labels = _one_hot(labels, outputs.shape[1])
    return labels.to(outputs.dtype)


def check_class_labels(logits: Tensor, labels: Tensor) -> None:
    """Raise `ValueError` unless there is one class per row, and a class beside it."""
    if labels.shape != logits.shape[:1]:
        raise ValueError(f"labels {tuple(labels.shape)} are not one class for each of the logits {tuple(logits.shape)}")
    if logits.shape[1] < 2:
        raise ValueError("logits of one class have no class beside the label's; two are needed at least")


def log_softmax_of_others(logits: Tensor, labels: Tensor) -> Tensor:
    """(B, C), (B,) -> (B, C): log-probabilities among the classes that are not the label; at the label 0.

    The label is left out of the softmax rather than pushed down by a large number, so that logits of any size do.
    """
    at_label = _one_hot(labels, logits.shape[1])
    return F.log_softmax(logits.masked_fill(at_label, -float("inf")), dim=1).masked_fill(at_label, 0.0)


def _one_hot(labels: Tensor, classes: int) -> Tensor:
    """(B,) -> (B, C), whether a class is the label. torch's own `one_hot` looks at the values first, for which a
    compiled graph has no room."""
    return labels[:, None] == torch.arange(classes, device=labels.device)
