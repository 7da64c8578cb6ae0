"""What a network reads of a sample: all of it, or a view of it, so that teacher and student can differ in that.

A view is computed from the stored sample, in [0, 1], after augmentation and before normalisation; what is exported
reads the view itself, since a deployed student has nothing else.
"""

from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import torch.nn.functional as F  # noqa: N812 - the name everyone knows it by
from pydantic import Field
from torch import Tensor, tensor

from kdcore.config import Config
from kdcore.data.base import PADDING, DataFacts

LUMA = (0.299, 0.587, 0.114)


class ViewError(ValueError):
    """A view that these samples do not have: `field` of its config is wrong."""

    def __init__(self, field: str, message: str) -> None:
        self.field = field
        super().__init__(message)


class BaseViewConfig(Config):
    """Base of every view's Config."""

    title: ClassVar[str]

    type: Any

    def facts(self, facts: DataFacts) -> DataFacts:
        """What is known of the samples as seen through this view.

        Raises:
            ViewError: samples like these have no such view.
        """
        raise NotImplementedError

    def apply(self, inputs: Tensor, facts: DataFacts) -> Tensor:
        """(B, …) samples -> (B, …) views of them; `facts` are those of the view."""
        raise NotImplementedError


class GreyConfig(BaseViewConfig):
    """The brightness of a colour picture: (3, H, W) -> (1, H, W), with the weights of ITU-R BT.601."""

    title: ClassVar[str] = "Grey picture"

    type: Literal["grey"] = "grey"

    def facts(self, facts: DataFacts) -> DataFacts:
        if len(facts.input_shape) != 3 or facts.input_shape[0] != 3:
            raise ViewError("type", f"grey is a view of colour pictures (3, H, W), the samples are {facts.input_shape}")
        mean, std = (sum(w * v for w, v in zip(LUMA, each, strict=True)) for each in (facts.mean, facts.std))
        return replace(facts, input_shape=(1, *facts.input_shape[1:]), mean=(mean,), std=(std,))

    def apply(self, inputs: Tensor, facts: DataFacts) -> Tensor:
        weights = tensor(LUMA, dtype=inputs.dtype, device=inputs.device).view(3, 1, 1)
        return (inputs * weights).sum(1, keepdim=True)  # (B, 3, H, W) -> (B, 1, H, W)


class ResizeConfig(BaseViewConfig):
    """A picture at another resolution: (C, H, W) -> (C, size, size), bilinear and, when it shrinks, antialiased."""

    title: ClassVar[str] = "Other resolution"

    type: Literal["resize"] = "resize"
    size: int = Field(ge=1, le=1024)
    """Height and width, in pixels."""

    def facts(self, facts: DataFacts) -> DataFacts:
        if len(facts.input_shape) != 3:
            raise ViewError("type", f"resize is a view of pictures (C, H, W), the samples are {facts.input_shape}")
        return replace(facts, input_shape=(facts.input_shape[0], self.size, self.size))

    def apply(self, inputs: Tensor, facts: DataFacts) -> Tensor:
        size = (self.size, self.size)
        return F.interpolate(inputs, size, mode="bilinear", antialias=True, align_corners=False)


class RowsConfig(BaseViewConfig):
    """A picture as the sequence of its rows, from the top, for recurrent networks: (C, H, W) -> (H, C·W)."""

    title: ClassVar[str] = "Sequence of rows"

    type: Literal["rows"] = "rows"

    def facts(self, facts: DataFacts) -> DataFacts:
        if len(facts.input_shape) != 3:
            raise ViewError("type", f"rows is a view of pictures (C, H, W), the samples are {facts.input_shape}")
        channels, height, width = facts.input_shape
        mean, std = (tuple(v for v in each for _ in range(width)) for each in (facts.mean, facts.std))
        return replace(facts, input_shape=(height, channels * width), mean=mean, std=std)

    def apply(self, inputs: Tensor, facts: DataFacts) -> Tensor:
        return inputs.transpose(1, 2).flatten(2)  # (B, C, H, W) -> (B, H, C·W)


class BagOfWordsConfig(BaseViewConfig):
    """How often each word of the vocabulary is in a text, whatever the order: (T,) -> (vocabulary,); padding is 0."""

    title: ClassVar[str] = "Bag of words"

    type: Literal["bag_of_words"] = "bag_of_words"

    def facts(self, facts: DataFacts) -> DataFacts:
        if facts.vocabulary is None:
            raise ViewError("type", f"bag_of_words is a view of texts, the samples are {facts.input_shape}")
        return replace(facts, input_shape=(facts.vocabulary,), vocabulary=None, mean=(0.0,), std=(1.0,))

    def apply(self, inputs: Tensor, facts: DataFacts) -> Tensor:
        ones = (inputs != PADDING).float()
        return ones.new_zeros(len(inputs), *facts.input_shape).scatter_add_(1, inputs, ones)  # (B, T) -> (B, V)


ViewConfig = Annotated[GreyConfig | ResizeConfig | RowsConfig | BagOfWordsConfig, Field(discriminator="type")]
VIEWS: tuple[type[BaseViewConfig], ...] = (GreyConfig, ResizeConfig, RowsConfig, BagOfWordsConfig)
