"""A teacher without a network: all that is known of it is what it said of each sample."""

from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from torch import Tensor

from kdcore.data.stored import StoredRows
from kdcore.models.base import BaseModelConfig, Network


class AnswersConfig(BaseModelConfig):
    """Base of every teacher of which there are only its logits."""

    trainable: ClassVar[bool] = False

    def build(self, input_shape: tuple[int, ...], classes: int, vocabulary: int | None = None) -> Network:
        return Precomputed(self.classes or classes)


class LogitsConfig(AnswersConfig):
    """A frozen teacher of which only its logits are there: a column or tensor `logits` of an uploaded data set, one
    number for each class, of every sample.

    It is asked about no other sample, and sees none: augmentation changes only what the student sees. Its size and its
    speed are unknown.
    """

    title: ClassVar[str] = "Precomputed logits"
    source: ClassVar[str] = "your own; a teacher's views kept: Beyer et al., CVPR 2022, arXiv 2106.05237, section 3"

    type: Literal["logits"] = "logits"


class Precomputed(Network):
    """Stands for the teacher where a network is asked for: it knows shapes, and has no answer to any input.

    Attributes:
        said: what it said of a split, by its name: (N, C).
    """

    place: Tensor
    said: Callable[[str], Tensor | StoredRows]

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.register_buffer("place", torch.empty(0), persistent=False)  # tells the device

    def output_bias(self) -> None:
        return None

    def views(self, inputs: Tensor) -> dict[str, Tensor]:
        """(B, …) -> (B, C) of NaN: whoever takes it for an answer finds out at once."""
        return {"logits": torch.full((len(inputs), self.classes), torch.nan, device=inputs.device)}
