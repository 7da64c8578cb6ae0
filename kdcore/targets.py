"""What the teachers say of a stage's samples: asked in every step, or once where the samples repeat.

A teacher is frozen: of the same input it always says the same. Where a stage does not augment, or draws a fixed number
of versions of each sample, the teachers' views of all of them are kept after the first time (`kdcore.keeping` says
where), and every later epoch, stage and repeat reads them. They are kept as they are computed, bf16 or float32, so that
nothing is lost but the order of sums: a batch of the loop is not the batch in which they were computed.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from kdcore.augment import Draws, augment
from kdcore.data import Dataset, StoredRows, rows_at
from kdcore.inputs import Reader, unit
from kdcore.losses import LossConfig, Shapes, Term, Views
from kdcore.models import Network
from kdcore.teacher import assert_frozen

FLOAT = 4


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
    """What keeping these views takes, at most: in a bf16 job autocast leaves some as float32.

    Args:
        samples: how many, each version of them counted.
    """
    numbers = sum(torch.Size(shapes[place][name]).numel() for place, names in read.items() for name in names)
    return numbers * samples * FLOAT


Key = tuple[int, str, str]
"""Of views that are kept: the teacher's place, the view's name, and how the samples are changed before it sees them."""


@dataclass
class Kept:
    """The views of a job's teachers that are kept, on the device or in a file: (versions * N, …), by their key."""

    views: dict[Key, Tensor | StoredRows] = field(default_factory=dict)

    def make_room(self, wanted: set[Key], needed: int, room: int) -> None:
        """Forget what is not wanted, unless the `needed` bytes of what is wanted fit beside it in memory."""
        others = [view for key, view in self.views.items() if key not in wanted and isinstance(view, Tensor)]
        if sum(view.numel() * view.element_size() for view in others) + needed > room:
            self.views = {key: view for key, view in self.views.items() if key in wanted}


@dataclass
class Targets:
    """The teachers' views of any batch of a stage.

    Attributes:
        read: the views that the losses look at, by teacher.
        teachers: who is asked in every step; empty where all is kept.
        readers: of all teachers.
        given: what came with the data, by teacher and name: (N, …).
        kept: what was asked before, by teacher and name: (versions * N, …), one version after the other.
        samples: N.
    """

    read: Mapping[int, Sequence[str]]
    teachers: Mapping[int, Network]
    readers: Sequence[Reader]
    given: Mapping[tuple[int, str], Tensor | StoredRows]
    kept: Mapping[tuple[int, str], Tensor | StoredRows] = field(default_factory=dict)
    samples: int = 0

    @torch.no_grad()
    def of(self, batch: Tensor, inputs: Tensor, version: int = 0) -> list[Views]:
        """Each teacher's views, float32, by its place.

        Args:
            batch: (B,) places in the training split.
            inputs: (B, …) these samples as the stage sees them.
            version: which version of them these are, where there is a fixed number of versions.
        """
        found: list[Views] = [{} for _ in range(max(self.read, default=-1) + 1)]
        for place, names in self.read.items():
            if place in self.teachers:
                views = self.teachers[place].views(self.readers[place](inputs))
                found[place] = {name: views[name].float() for name in names}
            else:
                found[place] = {name: self._row(place, name, batch, version).float() for name in names}
        return found

    def _row(self, place: int, name: str, batch: Tensor, version: int) -> Tensor:
        if (place, name) in self.given:
            return rows_at(self.given[place, name], batch)
        return rows_at(self.kept[place, name], batch + version * self.samples if version else batch)

    def check(self) -> None:
        """Nothing has woken a teacher."""
        for teacher in self.teachers.values():
            assert_frozen(teacher)


@torch.no_grad()
def answers(
    names: Sequence[str],
    teacher: Network,
    reader: nn.Module,
    data: Dataset,
    versions: Sequence[Draws | None],
    autocast: Callable[[], AbstractContextManager[object]],
    poll: Callable[[], None],
    at_once: int,
) -> Iterator[dict[str, Tensor]]:
    """Ask a teacher once about each version of every training sample, `at_once` of them together, in order.

    Args:
        versions: what is drawn for all samples, version by version; None: they are as they are.
        poll: called before each batch; what it raises ends it.
    """
    assert_frozen(teacher)
    stored = data.train.inputs
    for draws in versions:
        for start in range(0, len(stored), at_once):
            poll()
            batch = slice(start, start + at_once)
            inputs = unit(stored[batch], data.scale)
            if draws is not None:
                inputs = augment(inputs, draws.of(batch))
            with autocast():
                views = teacher.views(reader(inputs))
            yield {name: views[name] for name in names}
