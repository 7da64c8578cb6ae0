"""The transfer set: which training samples the student learns on, and which of their labels it may see."""

from typing import Annotated

import torch
from pydantic import Field, StringConstraints
from torch import Tensor

from kdcore.config import Config
from kdcore.data import DataFacts

ClassName = Annotated[str, StringConstraints(min_length=1, max_length=200)]
UNLABELLED = -1
"""Stands for the label of a sample whose label may not be seen."""


class TransferConfig(Config):
    """What student and baseline learn on, where that is not all of the training samples; teachers see them all."""

    without_classes: list[ClassName] = Field(default_factory=list, max_length=10_000)
    """Classes of which no sample is learned from (Hinton, Vinyals, Dean 2015, section 3)."""
    labelled: float = Field(default=1.0, ge=0, le=1)
    """Share of each class whose labels are seen, drawn once, the same for every seed, one at least; of the others only
    the teacher speaks. At 0 none is seen, and there is no baseline."""
    label_noise: float = Field(default=0.0, ge=0, le=1)
    """Share of the labels that are replaced by another class's, any other as likely, drawn once, the same for every
    seed: to see what wrong labels do."""

    @property
    def is_whole(self) -> bool:
        return not self.without_classes and self.labelled == 1.0 and not self.label_noise


def transfer_errors(config: TransferConfig, facts: DataFacts) -> list[tuple[tuple[str | int, ...], str]]:
    """What is wrong with it for this data: pairs of `loc`, within it, and message."""
    if config.is_whole:
        return []
    if facts.task not in ("classification", "embedding"):
        field = next(name for name, value in TransferConfig() if getattr(config, name) != value)
        return [((field,), f"a {facts.task} has no classes to choose samples by; leave it out")]
    errors: list[tuple[tuple[str | int, ...], str]] = [
        (("without_classes", index), f"the data has no class {name!r}; it has {_names(facts.classes)}")
        for index, name in enumerate(config.without_classes)
        if name not in facts.classes
    ]
    if len(set(config.without_classes)) >= len(facts.classes):
        errors.append((("without_classes",), "every class is left out, so nothing is left to learn on"))
    return errors


def _names(classes: tuple[str, ...]) -> str:
    return ", ".join(map(repr, classes[:20])) + (" …" if len(classes) > 20 else "")


def choose_samples(config: TransferConfig, labels: Tensor, classes: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """The transfer set.

    Args:
        labels: (N,) int64, of the training split; `UNLABELLED` where nobody knows it.
        classes: their names.

    Returns:
        (M,) int64, the samples that are learned on, in order; and (N,) the labels as they are seen, `UNLABELLED`
        where they are not.
    """
    left_out = torch.tensor([name in config.without_classes for name in classes], device=labels.device)
    chosen = torch.nonzero(~left_out[labels.clamp(min=0)] | (labels < 0)).flatten()
    told = _with_noise(config.label_noise, labels, len(classes))
    if config.labelled == 1.0:
        return chosen, told
    seen = torch.full_like(labels, UNLABELLED)
    generator = torch.Generator().manual_seed(0)
    for number in range(len(classes)):
        members = torch.nonzero(labels == number).flatten()
        order = torch.randperm(len(members), generator=generator).to(labels.device)
        count = max(1, round(config.labelled * len(members))) if config.labelled else 0
        kept = members[order[:count]]
        seen[kept] = told[kept]
    return chosen, seen


def labelled(labels: Tensor) -> Tensor:
    """(N,) bool: whose label is known; of targets and several labels all."""
    if labels.ndim > 1 or labels.is_floating_point():
        return torch.ones(len(labels), dtype=torch.bool, device=labels.device)
    return labels != UNLABELLED


def _with_noise(share: float, labels: Tensor, classes: int) -> Tensor:
    """The labels, that share of them wrong."""
    if not share:
        return labels
    generator = torch.Generator().manual_seed(1)
    noisy = labels.cpu().clone()
    known = torch.nonzero(noisy >= 0).flatten()
    wrong = known[torch.randperm(len(known), generator=generator)[: round(share * len(known))]]
    steps = torch.randint(1, classes, (len(wrong),), generator=generator)
    noisy[wrong] = (noisy[wrong] + steps) % classes
    return noisy.to(labels.device)


def expected_samples(config: TransferConfig, facts: DataFacts) -> int:
    """How many samples there will be, were the classes equally large: what the plan counts with."""
    kept = len(facts.classes) - len(set(config.without_classes) & set(facts.classes))
    return max(1, round(facts.train * kept / len(facts.classes))) if config.without_classes else facts.train
