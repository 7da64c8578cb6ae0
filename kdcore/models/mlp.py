"""Multi-layer perceptrons: fully connected layers on the flattened input."""

import math
from itertools import pairwise
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from kdcore.models.base import BaseModelConfig, Network, refuse_texts
from kdcore.models.dropout import Dropout
from kdcore.models.layers import ACTIVATIONS, ActivationName

Width = Annotated[int, Field(ge=1, le=65_536)]


class MLPConfig(BaseModelConfig):
    """Fully connected layers on the flattened input; an empty `hidden` is softmax regression.

    Views: `hidden_1`, `hidden_2`, … (after the activation, before the dropout) and `logits`.
    """

    title: ClassVar[str] = "Multi-layer perceptron"
    source: ClassVar[str] = "Hinton, Vinyals, Dean 2015, arXiv 1503.02531, section 3 (784-1200-1200-10)"

    type: Literal["mlp"] = "mlp"
    hidden: list[Width] = Field(default=[128], max_length=64)
    """Widths of the hidden layers, in order."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of each hidden layer's outputs that is zeroed in training."""
    activation: ActivationName = "relu"

    def build(self, input_shape: tuple[int, ...], classes: int, vocabulary: int | None = None) -> Network:
        refuse_texts(vocabulary, self.type)
        return MLP(self, math.prod(input_shape), self.classes or classes)


class MLP(Network):
    def __init__(self, config: MLPConfig, inputs: int, classes: int) -> None:
        super().__init__()
        widths = [inputs, *config.hidden]
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.head = nn.Linear(widths[-1], classes)
        self.activation = ACTIVATIONS[config.activation]()
        self.dropout = Dropout(config.dropout)

    def classifier(self) -> tuple[str, nn.Module] | None:
        return (f"hidden_{len(self.hidden)}", self.head) if self.hidden else None

    def views(self, inputs: Tensor) -> dict[str, Tensor]:
        features = inputs.flatten(1)  # (B, C, H, W) -> (B, C·H·W)
        views: dict[str, Tensor] = {}
        for number, layer in enumerate(self.hidden, start=1):
            views[f"hidden_{number}"] = self.activation(layer(features))
            features = self.dropout(views[f"hidden_{number}"])
        views["logits"] = self.head(features)
        return views
