"""What a network reads of a sample: all of it, or a view of it, so that teacher and student can differ in that.

A view is computed from the stored sample, in [0, 1], after augmentation and before normalisation; what is exported
reads the view itself, since a deployed student has nothing else.
"""

import math
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import torch.nn.functional as F  # noqa: N812 - the name everyone knows it by
from pydantic import Field
from torch import Tensor, tensor

from kdcore.config import Config
from kdcore.data.base import PADDING, DataFacts

LUMA = (0.299, 0.587, 0.114)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Number = Annotated[float, Field(ge=-1e6, le=1e6)]
Positive = Annotated[float, Field(ge=1e-6, le=1e6)]
Numbers = tuple[float, ...]


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


class PictureConfig(BaseViewConfig):
    """A picture as a network from elsewhere wants it: its size, colours, their order, and what they are scaled to.

    First the colours, then the size (bilinear, antialiased), then the numbers.
    """

    title: ClassVar[str] = "As another network wants it"

    type: Literal["picture"] = "picture"
    size: int | None = Field(default=None, ge=1, le=1024)
    """Height and width, in pixels; none: as it is."""
    colour: Literal["rgb", "bgr", "grey"] | None = None
    """A grey picture is made three times the same, a coloured one grey with the weights of ITU-R BT.601; none: as it
    is."""
    normalise: Literal["data", "imagenet", "none", "bytes"] = "data"
    """`data`: with the data's own mean and deviation; `imagenet`: with those of ImageNet, as published weights want it;
    `none`: pixels in [0, 1]; `bytes`: pixels from 0 to 255."""
    mean: list[Number] | None = Field(default=None, min_length=1, max_length=64)
    """What is subtracted, of pixels in [0, 1], instead: one for each channel, in the order in which they are read, or
    one for all. With `std`."""
    std: list[Positive] | None = Field(default=None, min_length=1, max_length=64)
    """What that is divided by. With `mean`."""

    def facts(self, facts: DataFacts) -> DataFacts:
        shape = facts.input_shape
        if len(shape) != 3:
            raise ViewError("type", f"picture is a view of pictures (C, H, W), the samples are {shape}")
        if self.colour is not None and shape[0] not in (1, 3):
            raise ViewError("colour", f"these pictures have {shape[0]} channels, neither grey nor colour; leave it out")
        mean, std = (_coloured(each, shape[0], self.colour) for each in (facts.mean, facts.std))
        channels = shape[0] if self.colour is None else 1 if self.colour == "grey" else 3
        size = shape[1:] if self.size is None else (self.size, self.size)
        mean, std = self._numbers(channels, mean, std)
        return replace(facts, input_shape=(channels, *size), mean=mean, std=std)

    def _numbers(self, channels: int, mean: Numbers, std: Numbers) -> tuple[Numbers, Numbers]:
        if self.mean is not None or self.std is not None:
            for field, given in (("mean", self.mean), ("std", self.std)):
                if given is None:
                    raise ViewError(field, "give both `mean` and `std`, or neither")
                if len(given) not in (1, channels):
                    raise ViewError(field, f"there are {len(given)} numbers, the picture has {channels} channels")
            return tuple(self.mean or ()), tuple(self.std or ())
        if self.normalise == "imagenet":
            if channels != 3:
                raise ViewError("normalise", f"ImageNet's pictures have 3 channels, this one {channels}; set `colour`")
            turn = -1 if self.colour == "bgr" else 1
            return IMAGENET_MEAN[::turn], IMAGENET_STD[::turn]
        fixed: dict[str, tuple[Numbers, Numbers]] = {"none": ((0.0,), (1.0,)), "bytes": ((0.0,), (1 / 255,))}
        return fixed.get(self.normalise, (mean, std))

    def apply(self, inputs: Tensor, facts: DataFacts) -> Tensor:
        if self.colour == "grey" and inputs.shape[1] == 3:
            inputs = GreyConfig().apply(inputs, facts)
        elif self.colour in ("rgb", "bgr") and inputs.shape[1] == 1:
            inputs = inputs.expand(-1, 3, -1, -1)  # (B, 1, H, W) -> (B, 3, H, W)
        elif self.colour == "bgr":
            inputs = inputs.flip(1)
        if tuple(inputs.shape[2:]) != facts.input_shape[1:]:
            inputs = ResizeConfig(size=facts.input_shape[1]).apply(inputs, facts)
        return inputs


class NumbersConfig(BaseViewConfig):
    """Numbers as a network from elsewhere wants them, (D,) or (T, D): less `mean`, over `std`, or as they are.

    Bytes are between 0 and 1.
    """

    title: ClassVar[str] = "Numbers in another scale"

    type: Literal["numbers"] = "numbers"
    mean: list[Number] = Field(default=[0.0], min_length=1, max_length=10_000)
    """What is subtracted: one for each of the D, or one for all."""
    std: list[Positive] = Field(default=[1.0], min_length=1, max_length=10_000)
    """What that is divided by: one for each of the D, or one for all."""

    def facts(self, facts: DataFacts) -> DataFacts:
        if len(facts.input_shape) == 3 or facts.vocabulary is not None:
            what = "texts" if facts.vocabulary is not None else "pictures; use the view picture"
            raise ViewError("type", f"numbers is a view of vectors and sequences of them, the samples are {what}")
        for field, given in (("mean", self.mean), ("std", self.std)):
            if len(given) not in (1, facts.input_shape[-1]):
                raise ViewError(field, f"there are {len(given)} numbers, a sample has {facts.input_shape[-1]}")
        return replace(facts, mean=tuple(self.mean), std=tuple(self.std))

    def apply(self, inputs: Tensor, facts: DataFacts) -> Tensor:
        return inputs


def _coloured(values: Numbers, channels: int, colour: str | None) -> Numbers:
    """A mean or deviation, one for each channel or one for all, of the picture in other colours."""
    each = values * channels if len(values) == 1 else values
    if colour == "grey":
        return (sum(w * v for w, v in zip(LUMA, each, strict=True)),) if channels == 3 else each
    if colour in ("rgb", "bgr") and channels == 1:
        return each * 3
    return each[::-1] if colour == "bgr" else each


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


class FieldConfig(BaseViewConfig):
    """One field of paired samples: (D,) all fields, one after the other -> (…) this one in its own shape."""

    title: ClassVar[str] = "One field of several"

    type: Literal["field"] = "field"
    field: str = Field(min_length=1, max_length=200)
    """Its name, as the uploaded data set's options have it."""

    def facts(self, facts: DataFacts) -> DataFacts:
        for each in facts.fields:
            if each.name == self.field:
                return replace(facts, input_shape=each.shape, mean=each.mean, std=each.std)
        if not facts.fields:
            message = "these samples are not paired: they have one part, and no fields; leave the view out, or upload"
            raise ViewError("type", f"{message} data whose options name its `fields`")
        raise ViewError("field", f"the samples have no field {self.field!r}; {fields_named(facts)}")

    def apply(self, inputs: Tensor, facts: DataFacts) -> Tensor:
        start = 0
        for each in facts.fields:
            size = math.prod(each.shape)
            if each.name == self.field:
                return inputs[:, start : start + size].reshape(-1, *each.shape)  # (B, D) -> (B, …)
            start += size
        raise AssertionError("the facts are those of this view")


def fields_named(facts: DataFacts) -> str:
    """What a message says of the fields that there are."""
    return f"they have {', '.join(repr(each.name[:50]) for each in facts.fields)}"


ViewConfig = Annotated[
    GreyConfig | ResizeConfig | PictureConfig | NumbersConfig | RowsConfig | BagOfWordsConfig | FieldConfig,
    Field(discriminator="type"),
]
VIEWS: tuple[type[BaseViewConfig], ...] = (
    GreyConfig,
    ResizeConfig,
    PictureConfig,
    NumbersConfig,
    RowsConfig,
    BagOfWordsConfig,
    FieldConfig,
)
