"""The check of a data set: every sample is read once, and what is found becomes its profile."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kdcore.data.base import DataError, TaskName
from kdcore.uploads.fields import FieldsGauge
from kdcore.uploads.formats import open_source
from kdcore.uploads.gauge import Gauge, PictureGauge, gauge_of
from kdcore.uploads.ledger import SPLITS, Layout, Ledger, class_counts, labelled_counts, overlaps, read_all
from kdcore.uploads.options import MOST_CLASSES, DatasetOptions
from kdcore.uploads.pages import Page
from kdcore.uploads.profile import ClassProfile, DatasetProfile, SplitCounts
from kdcore.uploads.sample import Sample, Source, rest_of
from kdcore.uploads.shards import Shards

CHUNK = 2**20
IMBALANCED = 10.0


class _Logits:
    """Whose logits are there, and how many numbers each has; of the largest alone, of which classes."""

    def __init__(self) -> None:
        self.width: int | None = None
        self.count = self.samples = self.top = 0
        self._last, self._rest = -1, 0.0

    @property
    def spread(self) -> float:
        """The probability that was given to no class by name, on average."""
        return min(1.0, self._rest / max(1, self.count))

    def add(self, sample: Sample) -> None:
        self.samples += 1
        if sample.logits is not None:
            self.count += 1
            if sample.places is not None:
                self.top = max(self.top, len(sample.places))
                self._last = max(self._last, int(sample.places.max()))
                self._rest += max(0.0, rest_of(sample.logits))
                return
            self.width = self.width or len(sample.logits)
            if len(sample.logits) != self.width:
                message = f"{sample.name} has {len(sample.logits)} logits, the first sample {self.width}"
                raise DataError(message, "logits")

    def check(self, layout: Layout, task: TaskName) -> None:
        """Every sample has its logits or none has, one for each class or for classes that there are."""
        if self.count not in (0, self.samples):
            raise DataError(f"{self.samples - self.count:,} of {self.samples:,} samples have no logits", "logits")
        if self.top and task != "classification":
            raise DataError(f"of a {task} all logits must be there: its outputs share no probability", "logit_classes")
        if self.top and self._last >= len(layout.classes):
            message = f"there are logits of the class in place {self._last}, and {len(layout.classes)} classes"
            raise DataError(f"{message}; name all in `classes`", "classes")
        if self.width is not None and layout.classes and self.width != len(layout.classes):
            message = f"{self.width} logits a sample, and {len(layout.classes)} classes; name all in `classes`"
            raise DataError(message, "classes")


def check_dataset(
    path: Path, options: DatasetOptions, *, out: Path, poll: Callable[[], object] = lambda: None
) -> DatasetProfile:
    """Read a data set from beginning to end.

    Args:
        path: the file, whatever its name.
        options: how it is to be read.
        out: the folder that gets a page of samples: `rows.json`, and of pictures `thumbnails.png`.
        poll: called now and then; what it raises ends the check.

    Returns:
        All that a plan and its owner need to know of it.

    Raises:
        DataError: it cannot be a data set; the message says how to mend it, `field` names the option if one is wrong.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    source, format = open_source(path, options, poll, out.parent)
    ledger, gauge, page, logits = Ledger(options, source), _gauge(source, options), Page(), _Logits()

    def take(sample: Sample, key: int) -> None:
        logits.add(sample)
        page.add(sample, key, gauge.last if isinstance(gauge, PictureGauge) else None)

    read_all(source, ledger, take, gauge.check, poll)
    layout = ledger.finish()
    if options.task != "regression" and not layout.classes and logits.width is not None:
        layout = _named(layout, logits.width)
    logits.check(layout, options.task)
    if not layout.classes:
        message = "there are no labels, and nothing says what the classes are"
        raise DataError(f"{message}; name the column of labels in `labels`, or the classes in `classes`", "classes")
    duplicates, leaked = overlaps(layout)
    if len(layout.classes) > MOST_CLASSES:
        raise DataError(f"there are {len(layout.classes):,} classes, more than {MOST_CLASSES:,}", "labels")
    counts = layout.counts
    classes = _classes(layout, options)
    imbalance = _imbalance(classes) if options.task != "regression" else None
    return DatasetProfile(
        format=format,
        kind=source.kind,
        task=options.task,
        digest=_digest(path, poll),
        bytes=path.stat().st_size,
        options=options,
        samples=counts,
        labelled=labelled_counts(layout),
        classes=classes,
        imbalance=imbalance,
        duplicates=duplicates,
        leaked=leaked,
        unreadable=ledger.unreadable,
        unreadable_samples=ledger.listed,
        ignored=source.ignored,
        copied_bytes=source.copied if isinstance(source, Shards) else 0,
        logits=counts if logits.count else SplitCounts(),
        top_logits=logits.top,
        spread=logits.spread,
        pages=page.write(out),
        warnings=_warnings(leaked, imbalance, ledger.unreadable),
        **gauge.found(),
    )


def _gauge(source: Source, options: DatasetOptions) -> Gauge:
    if options.fields:
        return FieldsGauge(options.fields, source.integers)
    return gauge_of(source.kind, source.integers)


def _named(layout: Layout, width: int) -> Layout:
    """Classes that nobody names, as many as there are logits."""
    names = tuple(map(str, range(width)))
    return Layout(layout.places, layout.labels, names, layout.hashes)


def _classes(layout: Layout, options: DatasetOptions) -> list[ClassProfile]:
    if options.task == "regression":
        return [ClassProfile(name=name, samples=layout.counts) for name in layout.classes]
    counts = class_counts(layout)
    return [
        ClassProfile(name=name, samples=SplitCounts(**{part: counts[part][place] for part in SPLITS}))
        for place, name in enumerate(layout.classes)
    ]


def _imbalance(classes: list[ClassProfile]) -> float | None:
    found = [count for each in classes if (count := each.samples.train) > 0]
    return max(found) / min(found) if found else None


def _warnings(leaked: SplitCounts, imbalance: float | None, unreadable: int) -> list[str]:
    found = []
    if leaked.test or leaked.validation:
        message = f"{leaked.test:,} test and {leaked.validation:,} validation samples are in a split before theirs too"
        found.append(f"{message}: what is measured on them is too good")
    if imbalance is not None and imbalance > IMBALANCED:
        found.append(f"the largest class has {imbalance:,.0f} times the samples of the smallest; see class_weights")
    if unreadable:
        found.append(f"{unreadable:,} samples could not be read and were left out")
    return found


def _digest(path: Path, poll: Callable[[], Any]) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            poll()
    return f"sha256:{digest.hexdigest()}"
