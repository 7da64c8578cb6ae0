"""Pieces that the model families share."""

from collections.abc import Callable
from typing import Literal

from torch import nn

ActivationName = Literal["relu", "gelu", "tanh"]
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}
