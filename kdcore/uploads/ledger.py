"""What is remembered of each sample, some 30 bytes, while they are read one after the other; then the splits of them.

The training samples are put into an order of which any beginning is a fair sample: of every class its share, chosen by
a hash. What is held out for validation, and what a job trains on, are then slices of one file.
"""

import hashlib
import math
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from kdcore.data.base import DataError
from kdcore.uploads.labels import Labels
from kdcore.uploads.options import DatasetOptions
from kdcore.uploads.profile import MOST_LISTED, SplitCounts, Unreadable
from kdcore.uploads.sample import MOST_SAMPLES, Array, Part, Sample, SampleError, Source

SPLITS: tuple[Part, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class Layout:
    """Where each sample goes.

    Attributes:
        places: for each split the samples, by their number in the file, in the order in which they are kept.
        labels: of all samples, in the order of the file: (N,) int64 or (N, K) float32.
        classes: their names.
        hashes: (N,) of the samples' content.
    """

    places: dict[Part, Array]
    labels: Array
    classes: tuple[str, ...]
    hashes: Array

    @property
    def counts(self) -> SplitCounts:
        return SplitCounts(**{part: len(places) for part, places in self.places.items()})

    @property
    def order(self) -> Array:
        """(N,) all samples: the training ones, then those of validation, then those of the test."""
        return np.concatenate([self.places[part] for part in SPLITS])


class Ledger:
    """One entry for each sample that could be read, and the names of those that could not."""

    def __init__(self, options: DatasetOptions, source: Source) -> None:
        self._options = options
        classes, columns = tuple(options.classes) or source.classes, tuple(options.labels)
        self._labels = Labels(options.task, classes, columns, by_place=not options.classes)
        self._hashes, self._keys, self._parts = array("Q"), array("Q"), array("b")
        self._seed = options.seed.to_bytes(8, "big")
        self.unreadable = 0
        self.listed: list[Unreadable] = []

    def add(self, sample: Sample) -> int:
        """Enter a sample; returns the hash that it is chosen by."""
        content = _content(sample)
        own = sample.id.encode("utf-8", "surrogatepass") if sample.id is not None else content
        key = hashlib.blake2b(own, digest_size=8, key=self._seed).digest()
        self._hashes.frombytes(content)
        self._keys.frombytes(key)
        self._parts.append(SPLITS.index(sample.part) if sample.part else -1)
        self._labels.add(sample.label, sample.name)
        if len(self._parts) > MOST_SAMPLES:
            raise DataError(f"there are more than {MOST_SAMPLES:,} samples; upload fewer")
        return self._keys[-1]

    def refuse(self, sample: Sample, reason: str) -> None:
        self.unreadable += 1
        if len(self.listed) < MOST_LISTED:
            self.listed.append(Unreadable(name=sample.name[:500], reason=reason[:500]))

    def finish(self) -> Layout:
        """The samples' places.

        Raises:
            DataError: too many cannot be read, a split is empty, or there are no two classes.
        """
        self._check_unreadable()
        if not self._parts:
            raise DataError("there is no sample in the file; is it of the kind that its name says?")
        labels, classes = self._labels.finish()
        strata = labels if labels.ndim == 1 else np.zeros(len(labels), np.int64)
        places = self._split(np.frombuffer(self._parts, np.int8), strata)
        for part in ("train", "test"):
            if len(places[part]) == 0:
                raise DataError(f"there is no sample in the {part} split; there must be some to train on, and to test")
        layout = Layout(places, labels, classes, np.frombuffer(self._hashes, np.uint64))
        self._check_classes(layout)
        return layout

    def _split(self, parts: Array, strata: Array) -> dict[Part, Array]:
        """The splits that the file gives; where it gives no test split, the options' share of the rest."""
        keys = np.frombuffer(self._keys, np.uint64)

        def ordered(chosen: Array) -> Array:
            numbers = np.flatnonzero(chosen)
            return numbers[fair_order(keys[numbers], strata[numbers])]

        training = ordered((parts == -1) | (parts == 0))
        validation, test = ordered(parts == 1), ordered(parts == 2)
        if not len(test):
            held = math.ceil(self._options.test * len(training))
            test, training = training[:held], training[held:]
        return {"train": training, "validation": validation, "test": test}

    def _check_unreadable(self) -> None:
        total = self.unreadable + len(self._parts)
        if self.unreadable > self._options.unreadable * total:
            named = "; ".join(f"{each.name}: {each.reason}" for each in self.listed[:5])
            more = "; …" if self.unreadable > 5 else ""
            message = f"{self.unreadable:,} of {total:,} samples cannot be read ({named}{more})"
            raise DataError(f"{message}; mend them, or allow a share of them in `unreadable`", "unreadable")

    def _check_classes(self, layout: Layout) -> None:
        if self._options.task == "regression":
            return
        if len(set(layout.classes)) < len(layout.classes):
            raise DataError("two classes have one name", "classes")
        least = 1 if self._options.task == "multi_label" else 2
        labelled = layout.labels.ndim > 1 or bool((layout.labels >= 0).any())
        if labelled and len(layout.classes) < least:
            raise DataError(f"all labels are of one class, {layout.classes[0]!r}; there must be two or more", "labels")


def fair_order(keys: Array, strata: Array) -> Array:
    """An order of which any beginning holds its share of every stratum.

    Args:
        keys: (N,) hashes; equal samples have equal ones.
        strata: (N,) the class of each.

    Returns:
        (N,) places.
    """
    by_stratum = np.lexsort((keys, strata))
    _, starts, counts = np.unique(strata[by_stratum], return_index=True, return_counts=True)
    rank = np.arange(len(keys)) - np.repeat(starts, counts)
    share = np.empty(len(keys))
    share[by_stratum] = (rank + 0.5) / np.repeat(counts, counts)
    return np.lexsort((keys, share))


def read_all(
    source: Source,
    ledger: Ledger,
    take: Callable[[Sample, int], None],
    check: Callable[[Sample], None] | None = None,
    poll: Callable[[], object] = lambda: None,
) -> None:
    """Read every sample once.

    Args:
        take: gets each sample that can be read, entered already, and its hash.
        check: raises `SampleError` where a sample cannot be read after all.
        poll: called before each sample; what it raises ends it.
    """
    for sample in source.samples():
        poll()
        try:
            if sample.problem is not None:
                raise SampleError(sample.problem)
            if check is not None:
                check(sample)
        except SampleError as error:
            ledger.refuse(sample, str(error))
            continue
        take(sample, ledger.add(sample))


def _content(sample: Sample) -> bytes:
    value = sample.value
    if isinstance(value, str):
        value = value.encode("utf-8", "surrogatepass")
    elif isinstance(value, np.ndarray):
        value = np.ascontiguousarray(value).tobytes()
    assert value is not None
    return hashlib.blake2b(value, digest_size=8).digest()


def overlaps(layout: Layout) -> tuple[SplitCounts, SplitCounts]:
    """Copies within each split, and samples of validation and test whose copy is in a split before: what is trained on,
    or of the test split what picks the best epoch."""
    found: dict[Part, Array] = {part: layout.hashes[places] for part, places in layout.places.items()}
    within = {part: len(hashes) - len(np.unique(hashes)) for part, hashes in found.items()}
    seen: dict[Part, Array] = {
        "validation": found["train"],
        "test": np.concatenate([found["train"], found["validation"]]),
    }
    leaked = {part: int(np.isin(found[part], hashes).sum()) for part, hashes in seen.items()}
    return SplitCounts(**within), SplitCounts(**leaked)


def labelled_counts(layout: Layout) -> SplitCounts:
    """Samples with a label, by split."""
    known = layout.labels >= 0 if layout.labels.ndim == 1 else np.ones(len(layout.labels), bool)
    return SplitCounts(**{part: int(known[places].sum()) for part, places in layout.places.items()})


def class_counts(layout: Layout, parts: Iterable[Part] = SPLITS) -> dict[Part, list[int]]:
    """Samples of each class, by split; of several labels the samples that have it, of targets all."""
    counts: dict[Part, list[int]] = {}
    for part in parts:
        labels = layout.labels[layout.places[part]]
        if labels.ndim == 1:
            counts[part] = np.bincount(labels[labels >= 0], minlength=len(layout.classes)).tolist()
        else:
            counts[part] = (labels != 0).sum(0).tolist()
    return counts
