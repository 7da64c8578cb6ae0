"""What a data source is: a Config that says what it holds and reads it into tensors."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from kdcore.config import Config
from kdcore.data.stored import StoredRows

if TYPE_CHECKING:
    from kdcore.data.tokenizer import TokenizerConfig

Count = Annotated[int, Field(ge=1, le=100_000_000)]
Fraction = Annotated[float, Field(gt=0, lt=1)]


class DataError(ValueError):
    """Data that is missing, truncated or not what its source says; the message says how to mend it.

    Attributes:
        field: the field of the source's config that is wrong, where it is one.
    """

    def __init__(self, message: str, field: str | None = None) -> None:
        self.field = field
        super().__init__(message)


class NoRoomError(DataError):
    """Data that could be read if the disk had more room."""


CACHE_BYTES = 50 * 2**30
PADDING = 0
"""The token that fills texts up to their length."""
TaskName = Literal["classification", "multi_label", "regression", "embedding"]


@dataclass(frozen=True)
class FieldFacts:
    """A part of every sample that a network may read alone: its name, shape, and what it is normalised with."""

    name: str
    shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class DataFacts:
    """What is known of a data set without reading it.

    Attributes:
        input_shape: one sample: (C, H, W) a picture, (T, D) a sequence, (D,) a vector, (T,) a text's tokens.
        classes: class names by index; of a regression, the names of its targets.
        train, validation, test: samples in each split (published counts; a partial set may hold fewer).
        mean, std: per channel or feature, or one for all, of inputs in [0, 1]; what the models' inputs are
            normalised with.
        vocabulary: how many tokens there are, of texts; none: the samples are no texts.
        task: what is to be learned from the labels.
        bytes_each: of a stored number: 1 of pictures, 4 of tokens and measurements.
        resident: whether the samples, and a teacher's logits, are read into memory; otherwise they stay in a file, and
            batches are read.
        labelled: share of the training samples that have a label.
        teacher_logits: whether the data brings what a teacher said of every sample.
        top_logits: of how many classes it said something, at most; 0: of all. `spread`, the probability that it left
            to the others on average, is spread evenly.
        fields: the parts of a sample, where it has several: `input_shape` (D,) then holds them one after the other.
    """

    input_shape: tuple[int, ...]
    classes: tuple[str, ...]
    train: int
    validation: int
    test: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    vocabulary: int | None = None
    task: TaskName = "classification"
    bytes_each: int = 1
    resident: bool = True
    teacher_logits: bool = False
    top_logits: int = 0
    spread: float = 0.0
    labelled: float = 1.0
    fields: tuple[FieldFacts, ...] = ()

    @property
    def input_bytes(self) -> int:
        """Of one sample as it is stored."""
        return math.prod(self.input_shape) * self.bytes_each

    @property
    def label_bytes(self) -> int:
        """Of one label: an int64 class, or a row of float32."""
        return 8 if self.task in ("classification", "embedding") else 4 * len(self.classes)

    @property
    def logits_bytes(self) -> int:
        """Of what a teacher said of one sample, where the data brings that: a row of float32."""
        return 4 * len(self.classes) if self.teacher_logits else 0


@dataclass(frozen=True)
class Split:
    """Samples, in memory or in a file: `inputs` (N, …), uint8, float32 or int32 tokens, and `labels`.

    Labels are (N,) int64 classes, of an embedding too; (N, C) float32 of 0 and 1 where several classes may be right;
    (N, K) float32 targets of a regression. A class of -1 is not known. `teacher_logits` (N, C) float32 are there where
    the data brings what a teacher said of its samples.
    """

    inputs: Tensor | StoredRows
    labels: Tensor
    teacher_logits: Tensor | StoredRows | None = None

    def __len__(self) -> int:
        return len(self.inputs)

    def said(self) -> Tensor | StoredRows:
        """(N, C) what a teacher without a network said."""
        assert self.teacher_logits is not None, "the plan has seen that they are there"
        return self.teacher_logits

    def to(self, device: torch.device) -> "Split":
        logits = self.teacher_logits.to(device) if self.teacher_logits is not None else None
        return Split(self.inputs.to(device), self.labels.to(device), logits)


@dataclass(frozen=True)
class Places:
    """Where a job's data lies.

    Attributes:
        root: the data directory.
        download: whether a missing file may be fetched into it.
        uploads: the files of uploaded data sets, by their id; or what finds one, called only where it is read.
        cache: where uploads are kept in a form that is read fast; none: made for this process alone.
        cache_bytes: how large it may grow; what was not used for longest goes first.
        poll: called now and then while data is read and prepared; what it raises ends that.
        tokenizers: of teachers that have their own: each text is cut by these as well, and its row of tokens is as
            long as all together, the data's own first.
    """

    root: Path
    download: bool = False
    uploads: Mapping[str, Path | Callable[[], Path]] = field(default_factory=dict)
    cache: Path | None = None
    cache_bytes: int = CACHE_BYTES
    poll: Callable[[], object] = lambda: None
    tokenizers: Sequence["TokenizerConfig"] = ()


@dataclass(frozen=True)
class Dataset:
    """A data set: three disjoint splits.

    Attributes:
        facts: with the true counts of this copy.
        scale: the value that stands for 1.0; stored inputs divided by it lie in [0, 1].
        digest: `sha256:<hex>` of all inputs and labels, in order.
        tokenizer: how texts became tokens, as JSON values for the student's papers; none of other data.
    """

    facts: DataFacts
    train: Split
    validation: Split
    test: Split
    scale: float
    digest: str
    tokenizer: Mapping[str, Any] | None = None

    def to(self, device: torch.device) -> "Dataset":
        moved = {name: getattr(self, name).to(device) for name in ("train", "validation", "test")}
        return replace(self, **moved)


class BaseDataConfig(Config):
    """Base of every data source's Config."""

    title: ClassVar[str]
    source: ClassVar[str]

    type: Any
    validation: Count | Fraction = 0.1
    """Held out of the training samples to pick the best epoch: a count, or a fraction below 1."""
    train_samples: Count | None = None
    """Train on this many samples only, drawn once, the same for every seed; none: all."""

    @property
    def task_name(self) -> TaskName:
        """What is to be learned from its labels."""
        return "classification"

    @property
    def origin(self) -> str:
        """Where the data of a job came from, for the student's papers."""
        return self.source

    @property
    def labelled(self) -> float:
        """Share of the training samples that have a label."""
        return 1.0

    def facts(self) -> DataFacts:
        """What the plan needs, with no data read.

        Raises:
            DataError: the split leaves nothing to train on.
        """
        raise NotImplementedError

    def load(self, places: Places) -> Dataset:
        """Read the data set into memory, or open the file that it stays in.

        Raises:
            DataError: names the missing or truncated file and where it belongs.
        """
        raise NotImplementedError


class PictureDataConfig(BaseDataConfig):
    """Base of every source of pictures that each have one class."""

    task: Literal["classification", "embedding"] = "classification"
    """What is to be learned: the class, or numbers that lie near each other where the class is the same."""

    @property
    def task_name(self) -> TaskName:
        return self.task

    def of_task(self, facts: DataFacts) -> DataFacts:
        """The facts of a data set, with what is to be learned from it here."""
        return replace(facts, task=self.task)
