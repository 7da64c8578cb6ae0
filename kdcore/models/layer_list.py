"""The layers that a `sequential` model is made of: what each is given as, and the module it makes.

A layer reads what the one before it gives: a picture (C, H, W), a sequence (T, D) or a vector (D,), each without
the batch. How many channels or features come in is never stated.
"""

from typing import Literal

from pydantic import Field
from torch import nn

from kdcore.models.base import ModelError
from kdcore.models.dropout import Dropout
from kdcore.models.layer_base import Channels, Kernel, LayerConfig, Shape, Width, check_groups, check_kernel
from kdcore.models.layer_modules import GRU, LSTM, GlobalPool, OverPlaces, SequenceConv, SequenceNorm
from kdcore.models.sequences import Embedding


class Conv2dConfig(LayerConfig):
    """A convolution over a picture."""

    type: Literal["conv2d"] = "conv2d"
    channels: Channels | None = None
    """That go out; none: as many as come in."""
    kernel: Kernel = 3
    stride: int = Field(default=1, ge=1, le=63)
    padding: int | None = Field(default=None, ge=0, le=63)
    """Zeros on each side; none: half of the kernel, rounded down, with which an odd one keeps the size."""
    groups: Channels = 1
    depthwise: bool = False
    """Each channel alone: as many groups as channels come in."""
    bias: bool = True

    def make(self, shape: Shape) -> nn.Module:
        self.reads(shape, 3)
        inputs, padding = shape[0], self.kernel // 2 if self.padding is None else self.padding
        check_kernel(self.kernel, padding, shape[1:])
        if self.depthwise and self.groups != 1:
            raise ModelError("groups", "a depthwise convolution has as many groups as channels; leave `groups` out")
        outputs, groups = self.channels or inputs, inputs if self.depthwise else self.groups
        check_groups("groups" if not self.depthwise else "channels", groups, inputs, outputs)
        return nn.Conv2d(inputs, outputs, self.kernel, self.stride, padding, groups=groups, bias=self.bias)


class Conv1dConfig(LayerConfig):
    """A convolution over the places of a sequence."""

    type: Literal["conv1d"] = "conv1d"
    channels: Channels | None = None
    """Numbers for each place that go out; none: as many as come in."""
    kernel: Kernel = 3
    stride: int = Field(default=1, ge=1, le=63)
    padding: int | None = Field(default=None, ge=0, le=63)
    """Zeros on each side; none: half of the kernel, rounded down."""
    groups: Channels = 1
    bias: bool = True

    def make(self, shape: Shape) -> nn.Module:
        self.reads(shape, 2)
        places, inputs = shape
        padding = self.kernel // 2 if self.padding is None else self.padding
        check_kernel(self.kernel, padding, (places,))
        outputs = self.channels or inputs
        check_groups("groups", self.groups, inputs, outputs)
        return SequenceConv(inputs, outputs, self.kernel, self.stride, padding, groups=self.groups, bias=self.bias)


class LinearConfig(LayerConfig):
    """A fully connected layer on a vector, or on each place of a sequence."""

    type: Literal["linear"] = "linear"
    features: Width | None = None
    """That go out; left out: one for each class, which is for the last layer only."""
    bias: bool = True

    def make(self, shape: Shape) -> nn.Module:
        self.reads(shape, 1, 2)
        if self.features is None:
            raise ModelError("features", "only the last layer has one for each class; say how many go out")
        return nn.Linear(shape[-1], self.features, bias=self.bias)


class BatchNormConfig(LayerConfig):
    """Batch normalisation of each channel or feature."""

    type: Literal["batch_norm"] = "batch_norm"

    def make(self, shape: Shape) -> nn.Module:
        if len(shape) == 3:
            return nn.BatchNorm2d(shape[0])
        return nn.BatchNorm1d(shape[0]) if len(shape) == 1 else SequenceNorm(shape[1])


class LayerNormConfig(LayerConfig):
    """Layer normalisation of a vector, or of each place of a sequence."""

    type: Literal["layer_norm"] = "layer_norm"

    def make(self, shape: Shape) -> nn.Module:
        if len(shape) == 3:
            raise ModelError("type", "layer_norm reads vectors and sequences; of pictures use group_norm, groups: 1")
        return nn.LayerNorm(shape[-1])


class GroupNormConfig(LayerConfig):
    """Normalisation of groups of channels of one sample."""

    type: Literal["group_norm"] = "group_norm"
    groups: Channels = 1

    def make(self, shape: Shape) -> nn.Module:
        self.reads(shape, 1, 3)
        check_groups("groups", self.groups, shape[0], shape[0])
        return nn.GroupNorm(self.groups, shape[0])


class PoolConfig(LayerConfig):
    """Base of both poolings: of a picture both ways, of a sequence over its places."""

    kernel: Kernel = 2
    stride: int | None = Field(default=None, ge=1, le=63)
    """None: the kernel, so that the windows lie side by side."""
    padding: int = Field(default=0, ge=0, le=31)

    def options(self, shape: Shape) -> tuple[int, int, int]:
        """Kernel, stride and padding, checked against the input."""
        self.reads(shape, 2, 3)
        if self.padding > self.kernel // 2:
            raise ModelError("padding", f"{self.padding} is more than half of the kernel, {self.kernel}; use less")
        check_kernel(self.kernel, self.padding, shape[1:] if len(shape) == 3 else shape[:1])
        return self.kernel, self.stride or self.kernel, self.padding


class MaxPoolConfig(PoolConfig):
    """The largest value of each window."""

    type: Literal["max_pool"] = "max_pool"

    def make(self, shape: Shape) -> nn.Module:
        options = self.options(shape)
        return nn.MaxPool2d(*options) if len(shape) == 3 else OverPlaces(nn.MaxPool1d(*options))


class AvgPoolConfig(PoolConfig):
    """The mean of each window, padding counted."""

    type: Literal["avg_pool"] = "avg_pool"

    def make(self, shape: Shape) -> nn.Module:
        options = self.options(shape)
        return nn.AvgPool2d(*options) if len(shape) == 3 else OverPlaces(nn.AvgPool1d(*options))


class GlobalPoolConfig(LayerConfig):
    """One number for each channel of a picture, or for each feature of a sequence.

    The mean over a text leaves padding out, as long as there is a place for each of its words.
    """

    type: Literal["global_pool"] = "global_pool"
    by: Literal["avg", "max"] = "avg"

    def make(self, shape: Shape) -> nn.Module:
        self.reads(shape, 2, 3)
        return GlobalPool(self.by)


class DropoutConfig(LayerConfig):
    """Numbers zeroed in training."""

    type: Literal["dropout"] = "dropout"
    rate: float = Field(default=0.5, ge=0, lt=1)
    """The share of them."""

    def make(self, shape: Shape) -> nn.Module:
        return Dropout(self.rate)


class FlattenConfig(LayerConfig):
    """All numbers as one vector."""

    type: Literal["flatten"] = "flatten"

    def make(self, shape: Shape) -> nn.Module:
        return nn.Flatten()


class EmbeddingConfig(LayerConfig):
    """A vector for each word of a text: the first layer of a model on texts, and of no other."""

    type: Literal["embedding"] = "embedding"
    width: Channels = 64

    def make(self, shape: Shape) -> nn.Module:
        raise ModelError("type", "embedding reads the words of a text, as the first layer; leave it out here")

    def embed(self, vocabulary: int) -> nn.Module:
        """(B, T) tokens -> (B, T, width)."""
        return Embedding(vocabulary, self.width)


class RecurrentLayerConfig(LayerConfig):
    """Base of both recurrent layers."""

    hidden: Channels = 128
    """Numbers for each place, in each direction."""
    bidirectional: bool = False
    """Read it from both ends."""


class LSTMLayerConfig(RecurrentLayerConfig):
    """Long short-term memory over the places of a sequence."""

    type: Literal["lstm"] = "lstm"

    def make(self, shape: Shape) -> nn.Module:
        self.reads(shape, 2)
        return LSTM(shape[1], self.hidden, batch_first=True, bidirectional=self.bidirectional)


class GRULayerConfig(RecurrentLayerConfig):
    """Gated recurrent units over the places of a sequence."""

    type: Literal["gru"] = "gru"

    def make(self, shape: Shape) -> nn.Module:
        self.reads(shape, 2)
        return GRU(shape[1], self.hidden, batch_first=True, bidirectional=self.bidirectional)
