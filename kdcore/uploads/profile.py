"""What a check leaves: all that a plan needs to know of a data set, and what its owner should."""

from typing import Annotated

from pydantic import Field, StringConstraints

from kdcore.config import Config
from kdcore.data.base import TaskName
from kdcore.uploads.options import MOST_CLASSES, DatasetOptions, Format, Kind

LARGEST = 3.5e38
"""No float32 is larger."""
Size = Annotated[int, Field(ge=0, le=2**60)]
Value = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]
Text = Annotated[str, StringConstraints(max_length=500)]
MOST_LISTED = 100
MOST_FEATURES = 1024
"""Whose means are kept each; of longer vectors there is one for all."""


class SplitCounts(Config):
    """A number for each split; of validation 0 where the data set has none of its own."""

    train: Size = 0
    validation: Size = 0
    test: Size = 0


class ClassProfile(Config):
    """A class, and how many samples of each split it has."""

    name: Text
    samples: SplitCounts


class Unreadable(Config):
    """A sample that cannot be read."""

    name: Text
    reason: Text


class PictureSizes(Config):
    """The smallest and largest of the pictures, in pixels, and how many are grey."""

    min_width: Size
    max_width: Size
    min_height: Size
    max_height: Size
    grey: Size


class FieldProfile(Config):
    """A part of every sample that a network may read alone."""

    name: Text
    shape: list[Annotated[int, Field(ge=1, le=2**31)]] = Field(min_length=1, max_length=3)
    mean: list[Value] = Field(max_length=MOST_FEATURES)
    """As of a data set of this field alone, like the deviation and the range."""
    std: list[Value] = Field(max_length=MOST_FEATURES)
    value_range: list[Value] = Field(min_length=2, max_length=2)


class DatasetProfile(Config):
    """What a data set is, as its check found it."""

    version: int = Field(default=1, ge=1, le=1)
    format: Format
    kind: Kind
    task: TaskName
    digest: Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
    """Of the file."""
    bytes: Size
    """Of the file."""
    options: DatasetOptions
    """By which it was read, and is read again."""
    samples: SplitCounts
    labelled: SplitCounts
    """Of the samples, those with a label."""
    classes: list[ClassProfile] = Field(max_length=MOST_CLASSES)
    """In the order of the outputs; of a regression its targets."""
    imbalance: float | None = Field(default=None, ge=1, le=2**60)
    """The largest class over the smallest that has any sample."""
    shape: list[Annotated[int, Field(ge=1, le=2**31)]] = Field(default_factory=list, max_length=3)
    """Of a sample; empty of pictures in files and of texts, which take the shape that the spec says."""
    fields: list[FieldProfile] = Field(default_factory=list, max_length=16)
    """In the order in which a sample's row holds them; empty: a sample is one thing."""
    integers: bool = False
    """Whether samples are stored as bytes, 255 standing for 1."""
    sizes: PictureSizes | None = None
    words: Size = 0
    """Of texts, words and marks in all of them."""
    longest: Size = 0
    """Words and marks of the longest text."""
    text_bytes: Size = 0
    """Of all texts; 0 in profiles of an earlier version."""
    copied_bytes: Size = 0
    """Of the largest table of an archive, which is copied out of it to be read."""
    value_range: list[Value] | None = Field(default=None, min_length=2, max_length=2)
    """Smallest and largest number, in the unit of `mean`; pictures reach from 0 to 1."""
    mean: list[Value] = Field(max_length=MOST_FEATURES)
    """Per channel or feature, or one for all, of all samples; of pictures in colour, in [0, 1], each pixel counting
    the same. A job is normalised with those of its training split instead."""
    std: list[Value] = Field(max_length=MOST_FEATURES)
    duplicates: SplitCounts
    """Samples that are a copy of an earlier one of their split."""
    leaked: SplitCounts
    """Samples of validation and test whose copy is in the training split."""
    unreadable: Size = 0
    """Samples that were left out."""
    unreadable_samples: list[Unreadable] = Field(default_factory=list, max_length=MOST_LISTED)
    ignored: Size = 0
    """Files of an archive that are neither pictures nor their table."""
    logits: SplitCounts = SplitCounts()
    """Samples with a teacher's logits."""
    top_logits: Size = 0
    """Of how many classes a sample has a logit, at most, where not all have one; 0: all have."""
    spread: Annotated[float, Field(ge=0, le=1)] = 0.0
    """The probability that the other classes share evenly, on average."""
    pages: list[Text] = Field(default_factory=list, max_length=4)
    """Files that show some samples."""
    warnings: list[Text] = Field(default_factory=list, max_length=20)
