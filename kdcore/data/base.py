"""What a data source is: a Config that says what it holds and reads it into tensors."""

import hashlib
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

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


@dataclass(frozen=True)
class DataFacts:
    """What is known of a data set without reading it.

    Attributes:
        input_shape: one sample, (C, H, W).
        classes: class names by index.
        train, validation, test: samples in each split (published counts; a partial set may hold fewer).
        mean, std: per channel, of inputs in [0, 1]; what the models' inputs are normalised with.
    """

    input_shape: tuple[int, ...]
    classes: tuple[str, ...]
    train: int
    validation: int
    test: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Split:
    """Samples in memory: `inputs` (N, C, H, W) uint8 and `labels` (N,) int64."""

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
    """

    facts: DataFacts
    train: Split
    validation: Split
    test: Split
    scale: float
    digest: str

    def to(self, device: torch.device) -> "Dataset":
        return Dataset(
            self.facts, self.train.to(device), self.validation.to(device), self.test.to(device), self.scale, self.digest
        )


class BaseDataConfig(Config):
    """Base of every data source's Config."""

    title: ClassVar[str]
    source: ClassVar[str]

    type: Any
    validation: Count | Fraction = 0.1
    """Held out of the training samples to pick the best epoch: a count, or a fraction below 1."""
    train_samples: Count | None = None
    """Train on this many samples only, drawn once, the same for every seed; none: all."""

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


def assemble(config: BaseDataConfig, facts: DataFacts, training: Split, test: Split, scale: float) -> Dataset:
    """Split the training samples as `config` says and count, check and digest all that was read.

    Raises:
        DataError: a label is no class, or the split leaves nothing to train on.
    """
    for split in (training, test):
        if len(split) == 0 or int(split.labels.min()) < 0 or int(split.labels.max()) >= len(facts.classes):
            raise DataError(f"{config.type}: labels must be 0 to {len(facts.classes) - 1}, and some sample there")
    kept, held = split_indices(config, len(training))
    train = Split(training.inputs[kept], training.labels[kept])
    validation = Split(training.inputs[held], training.labels[held])
    counted = replace(facts, train=len(train), validation=len(validation), test=len(test))
    return Dataset(counted, train, validation, test, scale, _digest(train, validation, test))


def _digest(*splits: Split) -> str:
    digest = hashlib.sha256()
    for split in splits:
        digest.update(split.inputs.contiguous().numpy().data)
        digest.update(split.labels.contiguous().numpy().data)
    return f"sha256:{digest.hexdigest()}"
