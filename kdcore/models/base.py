"""What a model is: a Config that builds a network with named views."""

from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor, nn

from kdcore.config import Config, Loc

FOREIGN = "network."
"""Before the names of the weights of a network that another project defined; not in files."""


class ModelError(ValueError):
    """A model that cannot be built for this input.

    Attributes:
        field: of its config, that is wrong.
        loc: the path to it, which begins with `field`; longer where a field holds parts of their own.
    """

    def __init__(self, field: str, message: str, *inner: str | int) -> None:
        self.field = field
        self.loc: Loc = (field, *inner)
        super().__init__(message)


class Network(nn.Module):
    """A classifier whose hidden outputs have names."""

    def views(self, inputs: Tensor) -> dict[str, Tensor]:
        """Every named output in order of depth, the last one `logits`: (B, …) -> name: (B, …)."""
        raise NotImplementedError

    def norm_before(self, layer: str) -> nn.BatchNorm2d | None:
        """The batch normalisation whose output the view `layer`, before its activation, is; None: it is of none."""
        return None

    def classifier(self) -> tuple[str, nn.Module] | None:
        """The view that the logits are made from, and what makes them in evaluation; None: they are of no view."""
        return None

    def output_bias(self) -> nn.Parameter | None:
        """(C,) that is added to the logits last of all; None where there is no such thing."""
        heads = [module for module in self.modules() if isinstance(module, nn.Linear)]
        bias = heads[-1].bias
        assert isinstance(bias, nn.Parameter)
        return bias

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, …) normalised inputs -> (B, C) logits."""
        return self.views(inputs)["logits"]


class BaseModelConfig(Config):
    """Base of every model family's Config."""

    title: ClassVar[str]
    source: ClassVar[str]
    trainable: ClassVar[bool] = True
    """False: it can only be a teacher that is given."""

    type: Any
    classes: int | None = Field(default=None, ge=2, le=1_000_000)
    """Outputs of the last layer; the data's classes where left out."""

    def build(self, input_shape: tuple[int, ...], classes: int, vocabulary: int | None = None) -> Network:
        """The network, on the current default device, initialised from torch's global generator.

        Args:
            input_shape: of one sample, without the batch: (C, H, W) a picture, (T, D) a sequence, (D,) a vector,
                and with a vocabulary (T,) a text's tokens.
            classes: how many classes the data has; `self.classes` wins where given.
            vocabulary: how many tokens there are, where samples are texts.

        Raises:
            ModelError: names the field that does not fit and what would.
        """
        raise NotImplementedError

    def original(self, input_shape: tuple[int, ...], classes: int) -> tuple[str, str] | None:
        """The module, and the expression with it, that build the same network without this project, its weights under
        the names in `student.safetensors`; None where there is no such thing."""
        return None


def refuse_texts(vocabulary: int | None, family: str) -> None:
    """Raise `ModelError` where samples are texts, which most families cannot read."""
    if vocabulary is not None:
        message = f"{family} reads numbers, not words; use lstm, gru, text_cnn or text_transformer"
        raise ModelError("type", f"{message}, or the view bag_of_words")
