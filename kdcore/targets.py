"""What the teachers say of a stage's samples: asked in every step, or once where the samples never change.

A teacher is frozen: of the same input it always says the same. Where a stage does not augment, its views of all
training samples are kept after the first time, as far as they fit into `Choices.keep_bytes`, and every later epoch,
stage and repeat reads them. They are kept as they are computed, bf16 or float32, so that nothing is lost but the order
of sums: a batch of the loop is not the batch in which they were computed.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from kdcore.data import Dataset
from kdcore.inputs import Reader, unit
from kdcore.losses import LossConfig, Shapes, Term, Views
from kdcore.models import Network
from kdcore.teacher import assert_frozen

FLOAT = 4
AT_ONCE = 1024
"""Samples that a teacher is asked about together when its views are kept."""


def views_read(losses: Sequence[LossConfig], terms: Sequence[Term], teachers: int) -> dict[int, list[str]]:
    """The views that the terms look at, by the place of their teacher; its logits are always among them."""
    found: dict[int, set[str]] = {}
    for loss, term in zip(losses, terms, strict=True):
        named = {theirs for _, theirs in term.layers} | {"logits"}
        layer = getattr(loss, "teacher_layer", None)
        for place in loss.reads(teachers):
            found.setdefault(place, set()).update(named | ({layer} if layer is not None else set()))
    return {place: sorted(names) for place, names in sorted(found.items())}


def kept_bytes(read: Mapping[int, Sequence[str]], shapes: Sequence[Shapes], samples: int) -> int:
    """What keeping these views of so many samples takes, at most: in a bf16 job autocast leaves some as float32."""
    numbers = sum(torch.Size(shapes[place][name]).numel() for place, names in read.items() for name in names)
    return numbers * samples * FLOAT


@dataclass
class Kept:
    """The views of a job's teachers that are kept, on the device: (N, …) by teacher and name."""

    views: dict[tuple[int, str], Tensor] = field(default_factory=dict)

    def make_room(self, read: Mapping[int, Sequence[str]], needed: int, room: int) -> None:
        """Forget what is not read, unless the `needed` bytes of what is read fit beside it."""
        wanted = {(place, name) for place, names in read.items() for name in names}
        others = sum(view.numel() * view.element_size() for key, view in self.views.items() if key not in wanted)
        if others + needed > room:
            self.views = {key: view for key, view in self.views.items() if key in wanted}

    def missing(self, place: int, names: Sequence[str]) -> list[str]:
        return [name for name in names if (place, name) not in self.views]


@dataclass(frozen=True)
class Targets:
    """The teachers' views of any batch of a stage.

    Attributes:
        read: the views that the losses look at, by teacher.
        teachers: who is asked in every step; empty where all is kept.
        readers: of all teachers.
        kept: what was asked before, by teacher and name.
    """

    read: Mapping[int, Sequence[str]]
    teachers: Mapping[int, Network]
    readers: Sequence[Reader]
    kept: Mapping[tuple[int, str], Tensor]

    @torch.no_grad()
    def of(self, batch: Tensor, inputs: Tensor) -> list[Views]:
        """Each teacher's views, float32, by its place.

        Args:
            batch: (B,) places in the training split.
            inputs: (B, …) these samples as the stage sees them.
        """
        found: list[Views] = [{} for _ in range(max(self.read, default=-1) + 1)]
        for place, names in self.read.items():
            if place in self.teachers:
                views = self.teachers[place].views(self.readers[place](inputs))
                found[place] = {name: views[name].float() for name in names}
            else:
                found[place] = {name: self.kept[place, name][batch].float() for name in names}
        return found

    def check(self) -> None:
        """Nothing has woken a teacher."""
        for teacher in self.teachers.values():
            assert_frozen(teacher)


@torch.no_grad()
def keep(
    kept: Kept,
    place: int,
    names: Sequence[str],
    teacher: Network,
    reader: nn.Module,
    data: Dataset,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
    poll: Callable[[], None] = lambda: None,
) -> None:
    """Ask a teacher once about every training sample.

    Args:
        poll: called before each batch; what it raises ends it, and nothing is kept.
    """
    assert_frozen(teacher)
    stored = data.train.inputs
    whole: dict[str, Tensor] = {}
    for start in range(0, len(stored), AT_ONCE):
        poll()
        with autocast():
            views = teacher.views(reader(unit(stored[start : start + AT_ONCE], data.scale)))
        for name in names:
            if name not in whole:
                whole[name] = views[name].new_empty((len(stored), *views[name].shape[1:]))
            whole[name][start : start + AT_ONCE] = views[name]
    kept.views.update({(place, name): view for name, view in whole.items()})
