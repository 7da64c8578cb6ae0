"""What a model is: a Config that builds a network with named views."""

from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor, nn

from kdcore.config import Config


class ModelError(ValueError):
    """A model that cannot be built for this input: `field` of its config is wrong."""

    def __init__(self, field: str, message: str) -> None:
        self.field = field
        super().__init__(message)


class Network(nn.Module):
    """A classifier whose hidden outputs have names."""

    def views(self, inputs: Tensor) -> dict[str, Tensor]:
        """Every named output in order of depth, the last one `logits`: (B, …) -> name: (B, …)."""
        raise NotImplementedError

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, …) normalised inputs -> (B, C) logits."""
        return self.views(inputs)["logits"]


class BaseModelConfig(Config):
    """Base of every model family's Config."""

    title: ClassVar[str]
    source: ClassVar[str]

    type: Any
    classes: int | None = Field(default=None, ge=2, le=1_000_000)
    """Outputs of the last layer; the data's classes where left out."""

    def build(self, input_shape: tuple[int, ...], classes: int) -> Network:
        """The network, on the current default device, initialised from torch's global generator.

        Args:
            input_shape: of one sample, without the batch: (C, H, W) or (features,).
            classes: how many classes the data has; `self.classes` wins where given.

        Raises:
            ModelError: names the field that does not fit and what would.
        """
        raise NotImplementedError
