"""Pieces that the model families share."""

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn

from kdcore.models.base import ModelError

ActivationName = Literal["relu", "gelu", "tanh"]
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}


def conv3x3(inputs: int, outputs: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A 3x3 convolution that keeps the size, without the bias that batch normalisation would take away."""
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, groups=groups, bias=False)


def conv1x1(inputs: int, outputs: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A 1x1 convolution without a bias."""
    return nn.Conv2d(inputs, outputs, 1, stride=stride, groups=groups, bias=False)


def check_picture(input_shape: tuple[int, ...], family: str, least: int) -> None:
    """Raise `ModelError` unless samples are pictures (C, H, W) of at least `least` pixels a side."""
    if len(input_shape) != 3:
        raise ModelError("type", f"{family} reads pictures (C, H, W), the data's samples are {input_shape}; use mlp")
    if min(input_shape[1:]) < least:
        size = "x".join(map(str, input_shape[1:]))
        raise ModelError("type", f"{family} needs pictures of {least} pixels a side, these have {size}; use mlp or cnn")


def pooled_classifier(views: dict[str, Tensor], features: Tensor, head: nn.Module) -> dict[str, Tensor]:
    """The views that end a convolutional network: the mean of each map, and the logits made of it."""
    views["pooled"] = features.mean((2, 3))  # (B, C, H, W) -> (B, C)
    views["logits"] = head(views["pooled"])
    return views
