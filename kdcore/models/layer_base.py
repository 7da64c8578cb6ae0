"""What every layer of a `sequential` model is: a Config that makes a module for what comes in."""

from typing import Annotated, Any

from pydantic import Field
from torch import nn

from kdcore.config import Config
from kdcore.models.base import ModelError

Shape = tuple[int, ...]
Channels = Annotated[int, Field(ge=1, le=8192)]
Width = Annotated[int, Field(ge=1, le=65_536)]
Kernel = Annotated[int, Field(ge=1, le=63)]
ViewName = Annotated[str, Field(min_length=1, max_length=60, pattern=r"^[a-z][a-z0-9_]*$")]
KINDS = {1: "a vector (D,)", 2: "a sequence (T, D)", 3: "a picture (C, H, W)"}


class LayerConfig(Config):
    """Base of every layer."""

    type: Any
    name: ViewName | None = None
    """Of its output, for losses that look at it; left out: its type and its place in the list, as in `conv2d_1`."""

    def make(self, shape: Shape) -> nn.Module:
        """The layer for an input of this shape, without the batch.

        Raises:
            ModelError: names the field that does not fit and what would.
        """
        raise NotImplementedError

    def reads(self, shape: Shape, *ranks: int) -> None:
        """Raise `ModelError` unless the input has one of so many dimensions."""
        if len(shape) not in ranks:
            wanted = " or ".join(KINDS[rank] for rank in ranks)
            raise ModelError("type", f"{self.type} reads {wanted}, what comes in is {shape}")


def check_kernel(kernel: int, padding: int, sides: Shape) -> None:
    """Raise `ModelError` unless the kernel fits into the padded input, and is larger than the padding."""
    if padding >= kernel:
        raise ModelError("padding", f"{padding} leaves windows with nothing but padding; use less than {kernel}")
    if kernel > min(sides) + 2 * padding:
        size = "x".join(map(str, sides))
        raise ModelError("kernel", f"{kernel} is larger than the input, {size} and {padding} on each side; use less")


def check_groups(field: str, groups: int, inputs: int, outputs: int) -> None:
    """Raise `ModelError` unless both numbers of channels can be shared out."""
    if inputs % groups or outputs % groups:
        message = f"{groups} groups cannot share {inputs} channels that come in and {outputs} that go out"
        raise ModelError(field, f"{message}; use a divisor of both, or a multiple of what comes in")
