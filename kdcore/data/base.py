"""What a data source is: a Config that says what it holds and reads it into tensors."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from kdcore.config import Config

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


PADDING = 0
"""The token that fills texts up to their length."""
TaskName = Literal["classification", "multi_label", "regression", "embedding"]


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


@dataclass(frozen=True)
class Split:
    """Samples in memory: `inputs` (N, …), uint8, float32 or int32 tokens, and `labels`.

    Labels are (N,) int64 classes, of an embedding too; (N, C) float32 of 0 and 1 where several classes may be right;
    (N, K) float32 targets of a regression.
    """

    inputs: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.inputs)

    def to(self, device: torch.device) -> "Split":
        return Split(self.inputs.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Dataset:
    """A data set in memory: three disjoint splits.

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

    def facts(self) -> DataFacts:
        """What the plan needs, with no data read.

        Raises:
            DataError: the split leaves nothing to train on.
        """
        raise NotImplementedError

    def load(self, root: Path, *, download: bool) -> Dataset:
        """Read the data set into memory.

        Args:
            root: the data directory.
            download: whether a missing file may be fetched.

        Raises:
            DataError: names the missing or truncated file and where it belongs.
        """
        raise NotImplementedError


def split_counts(config: BaseDataConfig, available: int) -> tuple[int, int]:
    """How many of the `available` training samples are (train, validation); rounds validation up."""
    held = config.validation
    validation = math.ceil(held * available) if isinstance(held, float) else held
    train = available - validation
    if train < 1:
        message = f"validation {held} leaves no training sample of {available}; hold out fewer"
        raise DataError(message, "validation")
    if config.train_samples is not None:
        if config.train_samples > train:
            message = (
                f"train_samples {config.train_samples} is more than the {train} there are; ask for at most {train}"
            )
            raise DataError(message, "train_samples")
        train = config.train_samples
    return train, validation


def split_indices(config: BaseDataConfig, available: int) -> tuple[Tensor, Tensor]:
    """Indices of the train and validation samples, each sorted; independent of the job's seed."""
    train, validation = split_counts(config, available)
    order = torch.randperm(available, generator=torch.Generator().manual_seed(0))
    held, rest = order[:validation], order[validation : validation + train]
    return rest.sort().values, held.sort().values


def split_facts(config: BaseDataConfig, facts: DataFacts, available: int) -> DataFacts:
    """`facts` with the counts that `config` makes of the `available` training samples."""
    train, validation = split_counts(config, available)
    return replace(facts, train=train, validation=validation)


def assemble(
    config: BaseDataConfig,
    facts: DataFacts,
    training: Split,
    test: Split,
    scale: float,
    tokenizer: Mapping[str, Any] | None = None,
) -> Dataset:
    """Split the training samples as `config` says and count, check and digest all that was read.

    Raises:
        DataError: a label is no class, or the split leaves nothing to train on.
    """
    for split in (training, test):
        if len(split) == 0:
            raise DataError(f"{config.type}: there must be some sample to train on, and some to test with")
        whole = not split.labels.is_floating_point()
        if whole and (int(split.labels.min()) < 0 or int(split.labels.max()) >= len(facts.classes)):
            raise DataError(f"{config.type}: labels must be 0 to {len(facts.classes) - 1}")
        if not whole and (split.labels.shape[1:] != (len(facts.classes),) or not bool(split.labels.isfinite().all())):
            raise DataError(f"{config.type}: labels must be {len(facts.classes)} finite numbers a sample")
    kept, held = split_indices(config, len(training))
    train = Split(training.inputs[kept], training.labels[kept])
    validation = Split(training.inputs[held], training.labels[held])
    counted = replace(facts, train=len(train), validation=len(validation), test=len(test))
    return Dataset(counted, train, validation, test, scale, _digest(train, validation, test), tokenizer)


def _digest(*splits: Split) -> str:
    digest = hashlib.sha256()
    for split in splits:
        digest.update(split.inputs.contiguous().numpy().data)
        digest.update(split.labels.contiguous().numpy().data)
    return f"sha256:{digest.hexdigest()}"
