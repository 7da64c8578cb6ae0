"""Distillation from several teachers at once, and how much each of them counts."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone knows it by
from pydantic import Field
from torch import Tensor

from kdcore.data.base import TaskName
from kdcore.losses.base import (
    BaseLossConfig,
    Batch,
    Context,
    LossError,
    Term,
    check_same_shape,
    full_precision,
    logits_width,
)
from kdcore.losses.kd import kd
from kdcore.losses.labelled import check_class_labels, check_labels, labels_of
from kdcore.losses.temperature import Temperature
from kdcore.seeds import derive

Weighting = Literal["mean_logits", "mean_probabilities", "weights", "confidence", "one_per_batch"]


def multi_teacher(
    student_logits: Tensor,
    teacher_logits: Sequence[Tensor],
    labels: Tensor | None = None,
    weighting: Weighting = "mean_logits",
    weights: Sequence[float] | None = None,
    temperature: float = 4.0,
    choice: int | Tensor = 0,
) -> Tensor:
    """`kd` from K teachers, in nats, with p = softmax(z / T).

    `mean_logits`: from the mean of their logits, which is a geometric mean of their probabilities.
    `mean_probabilities`: from the mean of their probabilities.
    `weights`: Σ_k w_k · `kd` from teacher k, w as given, divided by its sum.
    `confidence`: the same with w_k = (1 - softmax_k(CE_k)) / (K - 1) for each sample, CE_k the cross-entropy of
    teacher k on the label at temperature 1 (Zhang et al. 2022, section 2).
    `one_per_batch`: from teacher `choice` alone.

    Args:
        student_logits: (B, C).
        teacher_logits: K of them, (B, C) each, K of 2 or more; no gradient reaches them.
        labels: (B,) int64 class indices; `confidence` needs them, the others do not look at them.
        weighting: how the teachers are brought together.
        weights: K numbers of at least 0, not all of them 0; for the weighting `weights` alone.
        temperature: T.
        choice: from 0; where it is a tensor (), it is not read from its device.

    Returns:
        A scalar, at least 0; float32 for half-precision logits.

    Raises:
        ValueError: there is one teacher, shapes differ, or what the weighting needs is missing.
    """
    if len(teacher_logits) < 2:
        raise ValueError(f"this loss takes two teachers or more, not {len(teacher_logits)}; kd takes one")
    if weighting not in get_args(Weighting):
        raise ValueError(f"unknown weighting {weighting!r}; there are: {', '.join(get_args(Weighting))}")
    check_weights(weights, weighting, len(teacher_logits))
    for logits in teacher_logits:
        check_same_shape(student_logits, logits)
    teachers = torch.stack([full_precision(logits.detach()) for logits in teacher_logits])  # (K, B, C)
    targets = _targets(teachers, weighting, temperature, choice)  # (K, B, C), or (1, B, C) of all together
    shares: Sequence[float] | Tensor = [1.0]
    if weighting == "weights" and weights is not None:
        shares = [weight / sum(weights) for weight in weights]
    elif weighting == "confidence":
        shares = _confidence(teachers, labels)
    student = F.log_softmax(full_precision(student_logits) / temperature, dim=-1)
    divergences = (targets.exp() * (targets - student)).sum(dim=-1)  # (K, B)
    weighted = [share * of_one for share, of_one in zip(shares, divergences, strict=True)]
    return temperature**2 * torch.stack(weighted).sum(dim=0).mean()


def _targets(teachers: Tensor, weighting: Weighting, temperature: float, choice: int | Tensor) -> Tensor:
    """(K, B, C) logits -> (K, B, C) soft targets' logarithms, or (1, B, C) where all teachers speak as one."""
    if weighting == "mean_logits":
        teachers = teachers.mean(dim=0, keepdim=True)
    elif weighting == "one_per_batch":
        teachers = teachers.index_select(0, torch.as_tensor(choice, device=teachers.device).reshape(1))
    targets = F.log_softmax(teachers / temperature, dim=-1)
    if weighting == "mean_probabilities":
        targets = targets.logsumexp(dim=0, keepdim=True) - math.log(len(targets))
    return targets


def _confidence(teachers: Tensor, labels: Tensor | None) -> Tensor:
    """(K, B, C), (B,) -> (K, B): each teacher's share in each sample, their sum 1; the worse on the label, the less."""
    if labels is None:
        raise ValueError("the weighting 'confidence' needs labels")
    check_class_labels(teachers[0], labels)
    errors = torch.stack([F.cross_entropy(logits, labels, reduction="none") for logits in teachers])
    return (1 - errors.softmax(dim=0)) / (len(teachers) - 1)


def check_weights(weights: Sequence[float] | None, weighting: Weighting, teachers: int) -> None:
    """Raise `ValueError` unless there is a weight for each teacher, or the weighting is another one."""
    if weighting != "weights":
        if weights is not None:
            raise ValueError(f"weights are for the weighting 'weights', not for {weighting!r}; leave them out")
    elif weights is None or len(weights) != teachers:
        raise ValueError(f"{len(weights or [])} weights are given; give one for each of the {teachers} teachers")
    elif min(weights) < 0 or sum(weights) <= 0:
        raise ValueError("weights are at least 0, and one of them above 0")


class MultiTeacherConfig(BaseLossConfig, Temperature):
    """`kd` from two teachers or more: from their mean, from each with a share of its own, or from one at a time.

    The mean of logits is not the mean of probabilities: one teacher that rules a class out rules it out for all.
    """

    needs_teacher: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = False
    tasks: ClassVar[frozenset[TaskName] | None] = frozenset({"classification"})
    title: ClassVar[str] = "Distillation from several teachers"
    source: ClassVar[str] = (
        "mean: Hinton, Vinyals, Dean 2015, arXiv 1503.02531; You et al., KDD 2017; one per batch: Fukuda et al.,"
        " Interspeech 2017; confidence: Zhang et al. (CA-MKD), ICASSP 2022, arXiv 2201.00007, section 2"
    )

    type: Literal["multi_teacher"] = "multi_teacher"
    teachers: list[Annotated[int, Field(ge=1, le=16)]] | None = Field(default=None, max_length=16)
    """Which of the teachers, counted from 1; none: all."""
    weighting: Weighting = "mean_logits"
    """How the teachers are brought together; `confidence` needs labels."""
    weights: list[Annotated[float, Field(ge=0, le=1e6)]] | None = Field(default=None, max_length=16)
    """With the weighting `weights`: one for each teacher, divided by their sum."""
    student_layer: str = "logits"
    """The student's view that is read as logits."""
    teacher_layer: str = "logits"
    """Each teacher's view that is read as logits."""

    @property
    def reads_labels(self) -> bool:
        return self.weighting == "confidence"

    def reads(self, teachers: int) -> set[int]:
        return set(self.places(teachers))

    def places(self, teachers: int) -> list[int]:
        """The teachers that it learns from, as indices from 0."""
        return list(range(teachers)) if self.teachers is None else [number - 1 for number in self.teachers]

    def build(self, context: Context) -> Term:
        places = self.places(len(context.teachers))
        if not context.teachers:
            raise LossError("type", "this loss needs two teachers or more, and there is none")
        if max(places, default=0) >= len(context.teachers):
            raise LossError("teachers", f"there are {len(context.teachers)} teachers, counted from 1")
        if len(places) < 2 or len(set(places)) < len(places):
            raise LossError("teachers", "this loss takes two different teachers or more; kd takes one")
        try:
            check_weights(self.weights, self.weighting, len(places))
        except ValueError as error:
            raise LossError("weights", str(error)) from None
        self._check_widths(context, places)
        return MultiTeacher(self, places)

    def _check_widths(self, context: Context, places: Sequence[int]) -> None:
        ours = logits_width(context.student, self.student_layer, "student_layer", "student")
        for place in places:
            owner = f"teacher-{place + 1}"
            theirs = logits_width(context.teachers[place], self.teacher_layer, "teacher_layer", owner)
            if ours != theirs:
                raise LossError(
                    "teacher_layer",
                    f"the student's {self.student_layer!r} has {ours} classes, the {self.teacher_layer!r} of {owner}"
                    f" has {theirs}; name layers of the same width",
                )
        if self.weighting == "confidence":
            check_labels(context, self.student_layer, "classification")


class MultiTeacher(Term):
    """Beside its loss it tells the `kd` from each teacher, as `teacher-1` and so on."""

    def __init__(self, config: MultiTeacherConfig, places: Sequence[int]) -> None:
        super().__init__()
        self.config = config
        self.places = places
        self.of_each: dict[str, Tensor] = {}

    def forward(self, batch: Batch) -> Tensor:
        config = self.config
        student = batch.student[config.student_layer]
        teachers = [batch.teachers[place][config.teacher_layer] for place in self.places]
        temperature = config.temperature_at(batch)
        with torch.no_grad():
            values = [kd(student, teacher, temperature) for teacher in teachers]
        self.of_each = {f"teacher-{place + 1}": value for place, value in zip(self.places, values, strict=True)}
        labels = labels_of(batch, "the weighting 'confidence'") if config.weighting == "confidence" else None
        choice = draw(batch, len(teachers)) if config.weighting == "one_per_batch" else 0
        return multi_teacher(student, teachers, labels, config.weighting, config.weights, temperature, choice)

    def metrics(self) -> Mapping[str, Tensor]:
        return self.of_each


def draw(batch: Batch, count: int) -> Tensor:
    """One of `count`, each equally likely: an int64 scalar that depends on the time and the samples alone.

    A resumed stage draws the same without any state that is saved, and the device need not be waited for.
    """
    return (batch.indices.sum() + derive("teacher", str(batch.epoch)) % count) % count
