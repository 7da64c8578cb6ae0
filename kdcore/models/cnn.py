"""Plain convolutional networks: convolutions with 2x2 pooling, then fully connected layers."""

from itertools import pairwise
from typing import Annotated, ClassVar, Literal, cast

from pydantic import Field
from torch import Tensor, nn

from kdcore.models.base import BaseModelConfig, ModelError, Network, refuse_texts
from kdcore.models.dropout import Dropout
from kdcore.models.layers import ACTIVATIONS, ActivationName

Channels = Annotated[int, Field(ge=1, le=8192)]
Width = Annotated[int, Field(ge=1, le=65_536)]
POOLS = {"max": nn.MaxPool2d, "avg": nn.AvgPool2d}


class CNNConfig(BaseModelConfig):
    """Convolutions that keep the size, each followed by 2x2 pooling, then fully connected layers.

    The well-known MNIST net "conv 64-128, fc 1024" is `{channels: [64, 128], kernel_size: 5, hidden: [1024]}`.
    Views: `conv_1_pre`, … (before the activation), `conv_1`, … (after activation and pooling), `hidden_1`, …
    (before the dropout) and `logits`.
    """

    title: ClassVar[str] = "Convolutional network"
    source: ClassVar[str] = (
        "LeCun, Bottou, Bengio, Haffner 1998: Gradient-based learning applied to document recognition"
    )

    type: Literal["cnn"] = "cnn"
    channels: list[Channels] = Field(default=[32, 64], min_length=1, max_length=64)
    """Output channels of the convolutions, in order."""
    kernel_size: Literal[1, 3, 5, 7] = 3
    """Side of every convolution's kernel; the input is padded so that the size stays."""
    pool: Literal["max", "avg", "none"] = "max"
    """2x2 pooling after each convolution: it halves the height and width, rounding down."""
    batch_norm: bool = False
    """Batch normalisation between convolution and activation."""
    hidden: list[Width] = Field(default=[128], max_length=64)
    """Widths of the fully connected layers before the last one."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of each fully connected layer's outputs that is zeroed in training."""
    activation: ActivationName = "relu"

    def build(self, input_shape: tuple[int, ...], classes: int, vocabulary: int | None = None) -> Network:
        refuse_texts(vocabulary, self.type)
        if len(input_shape) != 3:
            raise ModelError("type", f"a cnn reads images (C, H, W), the data's samples are {input_shape}; use mlp")
        return CNN(self, self._map_size(input_shape), input_shape[0], self.classes or classes)

    def _map_size(self, input_shape: tuple[int, ...]) -> int:
        """Height times width after the last convolution."""
        height, width = input_shape[1:]
        if self.pool == "none":
            return height * width
        deepest = min(height, width).bit_length() - 1
        if len(self.channels) > deepest:
            raise ModelError(
                "channels",
                f"{len(self.channels)} poolings shrink {height}x{width} below 1x1;"
                f" use at most {deepest} convolutions, or pool: none",
            )
        return (height >> len(self.channels)) * (width >> len(self.channels))


class CNN(Network):
    def __init__(self, config: CNNConfig, map_size: int, input_channels: int, classes: int) -> None:
        super().__init__()
        depths = [input_channels, *config.channels]
        self.convolutions = nn.ModuleList(_block(config, a, b) for a, b in pairwise(depths))
        widths = [depths[-1] * map_size, *config.hidden]
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.head = nn.Linear(widths[-1], classes)
        self.activation = ACTIVATIONS[config.activation]()
        self.dropout = Dropout(config.dropout)
        self.before = 1 if config.batch_norm else 0
        """The place in a block of the last layer before the activation."""

    def norm_before(self, layer: str) -> nn.BatchNorm2d | None:
        for number, block in enumerate(self.convolutions, start=1):
            if layer == f"conv_{number}_pre":
                last = cast(nn.Sequential, block)[self.before]
                return last if isinstance(last, nn.BatchNorm2d) else None
        return None

    def classifier(self) -> tuple[str, nn.Module]:
        if self.hidden:
            return f"hidden_{len(self.hidden)}", self.head
        return f"conv_{len(self.convolutions)}", nn.Sequential(nn.Flatten(), self.head)

    def views(self, inputs: Tensor) -> dict[str, Tensor]:
        views: dict[str, Tensor] = {}
        features = inputs  # (B, C, H, W)
        for number, block in enumerate(self.convolutions, start=1):
            for place, layer in enumerate(cast(nn.Sequential, block)):
                features = layer(features)
                if place == self.before:
                    views[f"conv_{number}_pre"] = features
            views[f"conv_{number}"] = features
        features = features.flatten(1)  # (B, C, H, W) -> (B, C·H·W)
        for number, layer in enumerate(self.hidden, start=1):
            views[f"hidden_{number}"] = self.activation(layer(features))
            features = self.dropout(views[f"hidden_{number}"])
        views["logits"] = self.head(features)
        return views


def _block(config: CNNConfig, inputs: int, outputs: int) -> nn.Sequential:
    # A bias before batch normalisation would be subtracted again with the mean.
    convolution = nn.Conv2d(
        inputs, outputs, config.kernel_size, padding=config.kernel_size // 2, bias=not config.batch_norm
    )
    block = nn.Sequential(convolution)
    if config.batch_norm:
        block.append(nn.BatchNorm2d(outputs))
    block.append(ACTIVATIONS[config.activation]())
    if config.pool != "none":
        block.append(POOLS[config.pool](2))
    return block
