"""Which column of a table is what, and a row as a sample."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kdcore.data.base import DataError
from kdcore.uploads.fields import joined, missing
from kdcore.uploads.options import DatasetOptions, Kind
from kdcore.uploads.sample import Array, Part, Sample, checked_logits, checked_places, part_of

PICTURES, TEXTS = ("image", "img", "picture"), ("text", "sentence", "content", "review", "question")
VECTORS = ("vector", "features", "embedding", "embeddings", "inputs")
LABELS = ("label", "labels", "class", "target", "targets", "fine_label", "category")
BESIDE = frozenset({"id", "split", "logits", "logit_classes", *LABELS})
"""What a column beside the sample is called where no option names it."""
SEPARATOR = ";"
"""Between the classes of a sample of several, in a table of text; and between numbers of a list."""
MOST_VALUES = 2**24


class Columns:
    """The columns of a table by what they are.

    Raises:
        DataError: a column that the options name is not there, or none can be the sample.
    """

    def __init__(self, options: DatasetOptions, names: Sequence[str], without: Sequence[str] = ()) -> None:
        self._options = options
        self.id = self._one("id", options.id, names, ("id",))
        self.split = self._one("split", options.split, names, ("split",))
        self.logits = self._one("logits", options.logits, names, ("logits",))
        self.places = self._one("logit_classes", options.logit_classes, names, ("logit_classes",))
        usual = [name for name in LABELS if name in names and name not in options.inputs]
        self.labels = list(options.labels) or usual[:1]
        for name in self.labels:
            self._one("labels", name, names, ())
        used = {self.id, self.split, self.logits, self.places, *self.labels, *without}
        self.inputs = [] if without else self._inputs(names, [name for name in names if name not in used])

    def _inputs(self, names: Sequence[str], others: list[str]) -> list[str]:
        for name in self._options.inputs:
            self._one("inputs", name, names, ())
        for name in self._options.fields:
            self._one("fields", name, names, ())
        found = list(self._options.inputs or self._options.fields)
        usual = [name for name in (*PICTURES, *TEXTS, *VECTORS) if name in others]
        found = found or usual[:1] or others
        if not found:
            raise DataError("there is no column beside the label; name those of the sample in `inputs`", "inputs")
        return found

    @staticmethod
    def _one(field: str, wanted: str | None, names: Sequence[str], usual: Sequence[str]) -> str | None:
        if wanted is not None and wanted not in names:
            raise DataError(f"there is no column {wanted!r}; there are {', '.join(names)[:500]}", field)
        return wanted or next((name for name in usual if name in names), None)

    def sample(self, where: str, row: Mapping[str, Any], kind: Kind | None, part: Part | None = None) -> Sample:
        """A row as a sample; of no kind, without a value: it belongs to a picture."""
        value = problem = shapes = None
        if self._options.fields:
            fields = {name: _field(row.get(name), where) for name in self.inputs}
            problem = missing(fields)
            if problem is None:
                value, shapes = joined(fields)
        elif kind is not None:
            value = self._value(where, row, kind)
            if isinstance(value, np.ndarray) and not np.isfinite(value).all():
                value, problem = None, "it holds NaN, infinity, or what is no number"
            elif value is None:
                problem = "it is empty"
        if self.split is not None:
            part = part_of(row.get(self.split), where)
        id = str(row[self.id]) if self.id is not None and row.get(self.id) is not None else None
        logits = checked_logits(_numbers(row.get(self.logits)), where) if self.logits is not None else None
        places = None
        if self.places is not None:
            places = checked_places(_numbers(row.get(self.places)), logits, where)
        return Sample(where, value, part, self._label(row), id, logits, problem, places, shapes)

    def _value(self, where: str, row: Mapping[str, Any], kind: Kind) -> Any:
        values = [row.get(name) for name in self.inputs]
        if kind == "picture":
            return values[0]
        if kind == "text":
            texts = [value for value in values if isinstance(value, str)]
            return " ".join(texts) if texts else None
        if len(values) == 1:
            return _vector(_numbers(values[0]), where)
        return _vector([math.nan if value in (None, "") else value for value in values], where)

    def _label(self, row: Mapping[str, Any]) -> Any:
        if not self.labels:
            return None
        values = [row.get(name) for name in self.labels]
        if self._options.task == "regression":
            return tuple(_flat(values))
        if self._options.task != "multi_label":
            return values[0]
        if len(values) > 1:
            return tuple(values)
        if isinstance(values[0], str):
            return [name.strip() for name in values[0].split(SEPARATOR) if name.strip()]
        return values[0]


def _field(value: Any, where: str) -> Array:
    """(D,) float32 of a cell, which is a number or a list of them; of an empty one, nothing."""
    if value is None or value == "":
        return np.empty(0, np.float32)
    found = _numbers(value)
    return _vector(found if isinstance(found, (list, tuple, np.ndarray)) else [found], where)


def _flat(values: list[Any]) -> list[Any]:
    return list(values[0]) if len(values) == 1 and isinstance(values[0], (list, tuple, np.ndarray)) else values


def _numbers(value: Any) -> Any:
    """A list of numbers; of text, those between separators or in brackets."""
    if isinstance(value, str):
        text = value.strip().strip("[]").replace(",", SEPARATOR)
        return [part.strip() for part in text.split(SEPARATOR)]
    return value


def _vector(values: Any, where: str) -> Array:
    """(D,) float32; what is no number is NaN."""
    try:
        found = np.asarray(values, dtype=np.float32)
    except (TypeError, ValueError, OverflowError):
        return np.array([math.nan], np.float32)
    if found.ndim != 1 or not 1 <= found.size <= MOST_VALUES:
        raise DataError(f"{where}: a sample is one list of numbers, here it has shape {list(found.shape)}", "inputs")
    return found
