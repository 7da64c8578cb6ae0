"""How a source's samples become the three splits."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kdcore.data.base import BaseDataConfig, DataError, DataFacts, Dataset, Split


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
        assert isinstance(split.inputs, Tensor)
        digest.update(split.inputs.contiguous().numpy().data)
        digest.update(split.labels.contiguous().numpy().data)
    return f"sha256:{digest.hexdigest()}"
