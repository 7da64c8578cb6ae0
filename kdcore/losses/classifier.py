"""The teacher's classifier, reused on features of the student."""

from dataclasses import dataclass

import torch.nn.functional as F  # noqa: N812 - the name everyone knows it by
from torch import Tensor, nn

from kdcore.losses.base import Context, LossError, TaughtLossConfig, layer_shape
from kdcore.losses.connector import as_map
from kdcore.models.base import Network


@dataclass(frozen=True)
class Reused:
    """A teacher's classifier. It is no part of the term that holds it, which would train and save it otherwise.

    Attributes:
        layer: the teacher's view that it reads.
        shape: of this view, without the batch.
        module: from this view to the logits; frozen.
    """

    layer: str
    shape: tuple[int, ...]
    module: nn.Module

    def shaped(self, feature: Tensor) -> Tensor:
        """A feature of the student in the height and width of what is read, by average pooling; of any width.

        (B, C, H, W) or (B, C) -> (B, C, H', W') where a map is read, else (B, C).
        """
        if len(self.shape) == 1:
            return as_map(feature).mean(dim=(2, 3))
        height, width = self.shape[1:]
        return F.adaptive_avg_pool2d(feature, (height, width))


class ClassifierLossConfig(TaughtLossConfig):
    """Base of every loss that reads a hidden layer of the student with the teacher's classifier."""

    student_layer: str | None = None
    """The student's view that is taken to what the teacher's classifier reads; left out: its last hidden one."""

    def reused(self, context: Context) -> Reused:
        """The classifier of the teacher that is named.

        Raises:
            LossError: the teacher has none that reads one of its views.
        """
        shapes = self.shapes_of_teacher(context)
        network = context.teacher_networks[self.teacher - 1] if context.teacher_networks else None
        found = network.classifier() if isinstance(network, Network) else None
        if found is None:
            message = "the teacher's logits are made from none of its hidden layers; use a teacher that has some"
            raise LossError("teacher", message)
        layer, module = found
        return Reused(layer, shapes[layer], module)

    def read_layer(self, context: Context, reused: Reused) -> str:
        """The student's layer, as named or its last hidden one.

        Raises:
            LossError: it is not there, or a vector where the teacher's classifier reads a map.
        """
        hidden = [name for name in context.student if name != "logits" and not name.endswith("_pre")]
        layer = self.student_layer or (hidden[-1] if hidden else None)
        if layer is None:
            raise LossError("student_layer", "the student has no hidden layer; use one that has")
        shape = layer_shape(context.student, layer, "student_layer", "student")
        if len(shape) < len(reused.shape):
            maps = ", ".join(repr(name) for name in hidden if len(context.student[name]) == 3) or "none"
            raise LossError(
                "student_layer",
                f"the teacher's classifier reads its map {reused.layer!r}, the student's {layer!r} is a vector;"
                f" name a map of the student, of which it has {maps}",
            )
        return layer
