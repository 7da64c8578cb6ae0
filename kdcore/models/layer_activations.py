"""The activations of a `sequential` model."""

from typing import Literal

from pydantic import Field
from torch import nn

from kdcore.models.layer_base import LayerConfig, Shape


class ReLUConfig(LayerConfig):
    """max(x, 0)."""

    type: Literal["relu"] = "relu"

    def make(self, shape: Shape) -> nn.Module:
        return nn.ReLU()


class LeakyReLUConfig(LayerConfig):
    """x above 0, a small share of it below."""

    type: Literal["leaky_relu"] = "leaky_relu"
    slope: float = Field(default=0.01, ge=0, lt=1)
    """Below 0."""

    def make(self, shape: Shape) -> nn.Module:
        return nn.LeakyReLU(self.slope)


class GELUConfig(LayerConfig):
    """x times the share of a normal distribution that lies below it."""

    type: Literal["gelu"] = "gelu"

    def make(self, shape: Shape) -> nn.Module:
        return nn.GELU()


class SiLUConfig(LayerConfig):
    """x times its sigmoid, also called swish."""

    type: Literal["silu"] = "silu"

    def make(self, shape: Shape) -> nn.Module:
        return nn.SiLU()


class HardswishConfig(LayerConfig):
    """silu in straight lines."""

    type: Literal["hardswish"] = "hardswish"

    def make(self, shape: Shape) -> nn.Module:
        return nn.Hardswish()


class TanhConfig(LayerConfig):
    """The hyperbolic tangent."""

    type: Literal["tanh"] = "tanh"

    def make(self, shape: Shape) -> nn.Module:
        return nn.Tanh()


class SigmoidConfig(LayerConfig):
    """1 / (1 + exp(-x))."""

    type: Literal["sigmoid"] = "sigmoid"

    def make(self, shape: Shape) -> nn.Module:
        return nn.Sigmoid()
