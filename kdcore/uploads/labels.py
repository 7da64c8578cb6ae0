"""Labels as they come, sample by sample, and the classes that they turn out to be."""

import math
import re
from array import array
from typing import Any

import numpy as np

from kdcore.data.base import DataError, TaskName
from kdcore.uploads.options import MOST_CLASSES
from kdcore.uploads.sample import Array

UNLABELLED = -1
LARGEST = 2**64 - 1
"""Of a label that is a number; JSON and floats know larger ones."""
MOST_NUMBERS = 2**31
MOST_WIDTH = 10_000
NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,14})(\.0+)?")
"""Of text: tables of text know no other numbers, and 007 is a name."""


class ClassLabels:
    """One class a sample, or none: names and numbers as they were met, made classes in the end.

    A number, written as one or as text, is the place of its class among those that are declared, from 0; where one of
    these is itself named by a number, it is a name. -1, an empty text and NaN are no label, unless -1 is a name.

    Args:
        classes: those that are declared; none: what is met.
        by_place: whether numbers are places whatever the names: of classes that the file itself declares.
    """

    def __init__(self, classes: tuple[str, ...], by_place: bool = False) -> None:
        self._declared = classes
        self._by_place = by_place or not any(NUMBER.fullmatch(name) for name in classes)
        self._none = UNLABELLED if self._by_place or str(UNLABELLED) not in classes else None
        self._codes: dict[int | str, int] = {}
        self._met = array("i")

    def add(self, label: Any, where: str) -> None:
        self._met.append(self._code(label, where))

    def _code(self, label: Any, where: str) -> int:
        """A label's number in the order of meeting; UNLABELLED where it has none."""
        if isinstance(label, str) and NUMBER.fullmatch(label):
            label = int(label.partition(".")[0])
        elif isinstance(label, bool) or (isinstance(label, float) and label.is_integer()):
            label = int(label)
        if label in (None, "", self._none) or (isinstance(label, float) and math.isnan(label)):
            return UNLABELLED
        if not isinstance(label, (int, str)):
            raise DataError(f"{where}: the label {str(label)[:50]!r} is no class; write its name or number", "labels")
        if isinstance(label, int) and not -LARGEST <= label <= LARGEST:
            message = f"{where}: a label is a number beyond ±{LARGEST}; is this the column of the label?"
            raise DataError(message, "labels")
        if isinstance(label, str) and not (len(label) <= 200 and label.isprintable()):
            raise DataError(f"{where}: a label of {len(label)} signs is no class's name; use a short line", "labels")
        if label not in self._codes and len(self._codes) == MOST_CLASSES:
            message = f"{where}: there are more than {MOST_CLASSES:,} classes; is this the column of the label?"
            raise DataError(message, "labels")
        return self._codes.setdefault(label, len(self._codes))

    def finish(self) -> tuple[Array, tuple[str, ...]]:
        """(N,) int64 classes, and their names."""
        classes = self._declared or _names(list(self._codes))
        places = {name: place for place, name in enumerate(classes)}
        known = [self._place(label, places) for label in self._codes]
        table = np.array([*known, UNLABELLED], dtype=np.int64)  # the last is what UNLABELLED finds
        return table[np.frombuffer(self._met, np.int32)], classes

    def _place(self, label: int | str, places: dict[str, int]) -> int:
        if not self._declared:
            return places[str(label)] if str(label) in places else places[str(int(label))]  # 007, among numbers
        if isinstance(label, int) and self._by_place:
            found = label if 0 <= label < len(places) else None
        else:
            found = places.get(str(label))
        if found is None:
            known = ", ".join(list(places)[:20])
            message = f"the label {str(label)[:50]!r} is none of the {len(places)} classes: {known}"
            raise DataError(f"{message}; write a name, or a place from 0 where no name is a number", "classes")
        return found


def _names(labels: list[int | str]) -> tuple[str, ...]:
    """Classes that nobody named: numbers from 0 where 0 is among them, else what is there, in order."""
    if not all(isinstance(label, int) or label.isdecimal() for label in labels):
        return tuple(sorted(map(str, labels)))
    numbers = sorted({int(label) for label in labels})
    if numbers and (numbers[0] < 0 or (numbers[0] == 0 and numbers[-1] >= MOST_CLASSES)):
        raise DataError(f"labels reach from {numbers[0]} to {numbers[-1]}; number the classes from 0", "labels")
    return tuple(map(str, range(numbers[-1] + 1) if numbers and numbers[0] == 0 else numbers))


class NumberLabels:
    """The targets of a regression, or a row of 0 and 1: as many numbers for every sample."""

    def __init__(self, task: TaskName, classes: tuple[str, ...], columns: tuple[str, ...]) -> None:
        self._task, self._named = task, classes or columns
        self._width: int | None = None
        self._numbers = array("f")

    def add(self, label: Any, where: str) -> None:
        try:
            row = np.atleast_1d(np.asarray(label, dtype=np.float32))
        except (TypeError, ValueError, OverflowError):
            row = np.array([math.nan], np.float32)
        if row.ndim != 1 or not np.isfinite(row).all():
            raise DataError(f"{where}: the label is no finite number; every sample of a {self._task} has one", "labels")
        self._width = self._width or len(row)
        if len(row) != self._width or self._width > MOST_WIDTH:
            raise DataError(f"{where}: {len(row)} numbers as label, the first sample has {self._width}", "labels")
        if self._task == "multi_label" and not np.isin(row, (0, 1)).all():
            raise DataError(f"{where}: labels of {self._task} are 0 and 1, one for each class", "labels")
        self._numbers.frombytes(row.tobytes())

    def finish(self) -> tuple[Array, tuple[str, ...]]:
        """(N, K) float32, and the names of the K."""
        width = self._width or 1
        word = "target" if self._task == "regression" else "class"
        names = self._named if len(self._named) == width else tuple(f"{word}-{n + 1}" for n in range(width))
        if self._named and self._task == "multi_label" and len(self._named) != width:
            raise DataError(f"{len(self._named)} classes are named, a label has {width} numbers", "classes")
        return np.frombuffer(self._numbers, np.float32).reshape(-1, width), names


class SetLabels:
    """Any number of classes a sample, by name or number."""

    def __init__(self, classes: tuple[str, ...], by_place: bool) -> None:
        self._each = ClassLabels(classes, by_place)
        self._counts = array("i")

    def add(self, label: Any, where: str) -> None:
        if not isinstance(label, list | tuple):
            what = "there is no label" if label is None else f"the label {str(label)[:50]!r} is no list"
            raise DataError(f"{where}: {what}; write an empty list where no class is right", "labels")
        for one in label:
            self._each.add(one, where)
        self._counts.append(len(label))

    def finish(self) -> tuple[Array, tuple[str, ...]]:
        """(N, K) float32 of 0 and 1, and the names of the K classes."""
        found, classes = self._each.finish()
        if len(self._counts) * max(1, len(classes)) > MOST_NUMBERS:
            raise DataError(f"{len(self._counts):,} samples of {len(classes):,} classes are too many labels", "labels")
        rows = np.zeros((len(self._counts), max(1, len(classes))), np.float32)
        samples, there = np.repeat(np.arange(len(self._counts)), self._counts), found != UNLABELLED
        rows[samples[there], found[there]] = 1  # lists filled up to one length hold -1 or nothing behind their labels
        return rows, classes


class Labels:
    """The labels of any task; what the first one looks like decides how the others are read."""

    def __init__(
        self, task: TaskName, classes: tuple[str, ...], columns: tuple[str, ...], by_place: bool = False
    ) -> None:
        self._task, self._classes, self._columns, self._by_place = task, classes, columns, by_place
        self._kind: ClassLabels | NumberLabels | SetLabels | None = None

    def add(self, label: Any, where: str) -> None:
        if self._kind is None:
            if self._task in ("classification", "embedding"):
                self._kind = ClassLabels(self._classes, self._by_place)
            elif self._task == "multi_label" and isinstance(label, list):
                self._kind = SetLabels(self._classes, self._by_place)
            else:
                self._kind = NumberLabels(self._task, self._classes, self._columns)
        self._kind.add(label, where)

    def finish(self) -> tuple[Array, tuple[str, ...]]:
        assert self._kind is not None, "there is a sample"
        return self._kind.finish()
