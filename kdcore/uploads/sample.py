"""What every format is read as: one sample after the other, each with its name, so that memory holds one."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from kdcore.data.base import DataError
from kdcore.uploads.options import Kind

Part = Literal["train", "validation", "test"]
Array: TypeAlias = NDArray[Any]
PARTS: dict[str, Part] = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
MOST_SAMPLES = 10_000_000
MOST_LOGITS = 10_000
MOST_MASS = 1.01
"""Of log-probabilities that were rounded; as logits they would sum up to anything."""
LEAST = 1e-12
"""No class is impossible: so much of probability each of the rest has at least."""


class SampleError(ValueError):
    """A sample that cannot be read; it is counted, and left out where the options allow it."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample as it was stored.

    Attributes:
        name: where it is, for people: its path in the archive, or its row.
        value: a picture's file, a text, or numbers.
        part: the split that the file puts it into; none: the options' rule does.
        label: a class by name or number, several of them, or the targets of a regression; none: it has no label.
        id: the name that it keeps; none: its content stands for it.
        logits: (C,) what a teacher said of it; with `places` (K,) log-probabilities of some classes alone.
        places: (K,) int64, the classes that the logits are of; none: of all, in their order.
        problem: why it cannot be read; then it has no value.
        shapes: of its fields, where it has several; `value` (D,) then holds them one after the other.
    """

    name: str
    value: bytes | str | Array | None
    part: Part | None = None
    label: Any = None
    id: str | None = None
    logits: Array | None = None
    problem: str | None = None
    places: Array | None = None
    shapes: tuple[tuple[int, ...], ...] | None = None


class Source(Protocol):
    """A file that was opened as a data set.

    Attributes:
        kind: what its samples are.
        classes: the names of the classes, where the file says them; else empty.
        ignored: files of an archive that were not read; counted while its samples are read.
        integers: whether numbers are stored as bytes.
    """

    kind: Kind
    classes: tuple[str, ...]
    ignored: int
    integers: bool

    def samples(self) -> Iterator[Sample]:
        """All samples, in the order of the file; may be called again."""
        ...


def part_of(value: object, where: str) -> Part:
    """The split that a table names."""
    part = PARTS.get(str(value).strip().lower())
    if part is None:
        raise DataError(f"{where}: {str(value)[:50]!r} is no split; write train, validation or test", "split")
    return part


def checked_logits(value: Any, where: str) -> Array:
    """(C,) float32 of what a table holds as logits."""
    try:
        found = np.asarray(value, dtype=np.float32)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{where}: the logits are no list of numbers ({error})", "logits") from error
    if found.ndim != 1 or not 1 <= len(found) <= MOST_LOGITS:
        raise DataError(f"{where}: logits are a list of 1 to {MOST_LOGITS} numbers", "logits")
    if not np.isfinite(found).all():
        raise DataError(f"{where}: the logits hold NaN or infinity", "logits")
    return found


def checked_places(value: Any, logits: Array | None, where: str) -> Array:
    """(K,) int64: the classes that the K log-probabilities of a sample are of, each once."""
    field = "logit_classes"
    try:
        places = np.atleast_1d(np.asarray(value))  # raises where lists are of several lengths
        if places.dtype.kind not in "iu":
            places = places.astype(np.float64)
    except (TypeError, ValueError, OverflowError):
        places = np.array([math.nan])
    if not (np.isfinite(places).all() and (places == np.floor(places)).all()):
        raise DataError(f"{where}: {str(value)[:50]!r} are no places of classes; write numbers from 0", field)
    if logits is None or places.shape != logits.shape:
        had = 0 if logits is None else len(logits)
        raise DataError(
            f"{where}: {places.size} places for {had} logits; give each logit the place of its class", field
        )
    if places.min() < 0 or places.max() >= MOST_LOGITS or len(np.unique(places)) < len(places):
        raise DataError(f"{where}: a class is below 0, above {MOST_LOGITS - 1}, or there twice", field)
    if rest_of(logits) < 1 - MOST_MASS:
        why = "as probabilities their sum is more than 1; subtract the logarithm of the sum of all exponentials"
        raise DataError(f"{where}: the logits of some classes must be log-probabilities, and {why}", "logits")
    return places.astype(np.int64)


def rest_of(logits: Array) -> float:
    """The probability that log-probabilities of some classes leave to all others."""
    with np.errstate(over="ignore"):  # of what are no log-probabilities
        return 1.0 - float(np.exp(logits.astype(np.float64)).sum())


def spread(logits: Array, places: Array, classes: int) -> Array:
    """(K,) log-probabilities of some classes -> (C,) of all: the others share evenly what is left."""
    others = classes - len(places)
    found = np.full(classes, math.log(max(LEAST, rest_of(logits) / max(1, others))), np.float32)
    found[places] = logits
    return found
