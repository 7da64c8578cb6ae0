"""Samples of several fields, such as a picture and a sound of the same thing: kept as one row, one after the other.

Teacher and student can then read different fields of a sample (Gupta, Hoffman, Malik: Cross Modal Distillation for
Supervision Transfer, arXiv 1507.00448), each through its view `{type: field, field: …}`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kdcore.data.base import DataError
from kdcore.uploads.gauge import VectorGauge
from kdcore.uploads.options import DatasetOptions
from kdcore.uploads.profile import FieldProfile
from kdcore.uploads.sample import Array, Sample

Shape = tuple[int, ...]


def check_fields(options: DatasetOptions, format: str) -> None:
    """Raise `DataError` where the options' fields cannot be those of such a file."""
    if not options.fields:
        return
    if format in ("zip", "tar"):
        raise DataError("fields are columns or arrays, an archive of pictures has none; leave them out", "fields")
    if options.inputs or options.kind not in (None, "vector"):
        raise DataError("the fields are the sample; leave `inputs` and `kind` out", "fields")
    if len({name.lower() for name in options.fields}) < max(2, len(options.fields)):
        raise DataError("a sample has two fields or more, each of a name of its own", "fields")


def joined(fields: Mapping[str, Array]) -> tuple[Array, tuple[Shape, ...]]:
    """One row of all fields, (D,), and the shape of each: bytes where all are, else float32, bytes as parts of 255.

    Args:
        fields: as they are stored: bytes (uint8) or float32, NaN for what is not there.
    """
    integers = all(value.dtype == np.uint8 for value in fields.values())
    flat = [value.ravel() if integers or value.dtype != np.uint8 else value.ravel() / np.float32(255)
            for value in fields.values()]  # fmt: skip
    row = np.concatenate(flat)
    return row if integers else row.astype(np.float32), tuple(value.shape for value in fields.values())


def missing(fields: Mapping[str, Array | None]) -> str | None:
    """Why a sample cannot be read, where a field of it is not there."""
    for name, value in fields.items():
        if value is None or value.size == 0:
            return f"it has no {name!r}, and a pair is learned from whole"
        if not np.isfinite(value).all():
            return f"its {name!r} holds NaN, infinity, or what is no number"
    return None


class FieldsGauge:
    """Each field measured as if it were alone."""

    def __init__(self, names: Sequence[str], integers: bool) -> None:
        self._names, self._integers = names, integers
        self._gauges = [VectorGauge(integers) for _ in names]
        self._shapes: tuple[Shape, ...] | None = None

    def check(self, sample: Sample) -> None:
        assert isinstance(sample.value, np.ndarray)
        shapes = sample.shapes
        assert shapes is not None, "whoever reads fields says their shapes"
        self._shapes = self._shapes or shapes
        for name, shape, wanted in zip(self._names, shapes, self._shapes, strict=True):
            if shape != wanted:
                message = f"{name!r} of {sample.name} has shape {list(shape)}, the first one {list(wanted)}"
                raise DataError(message, "fields")
        ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
        parts = np.split(sample.value, ends[:-1])
        for gauge, shape, part in zip(self._gauges, shapes, parts, strict=True):
            gauge.check(Sample(sample.name, part.reshape(shape)))

    def found(self) -> dict[str, Any]:
        """Of the whole row, which no network reads, its size and range; of each field all."""
        each = [gauge.found() for gauge in self._gauges]
        fields = [
            FieldProfile(name=name, **{key: found[key] for key in ("shape", "mean", "std", "value_range")})
            for name, found in zip(self._names, each, strict=True)
        ]
        return {
            "shape": [sum(int(np.prod(field.shape)) for field in fields)],
            "integers": self._integers,
            "mean": [0.0],
            "std": [1.0],
            "value_range": [min(field.value_range[0] for field in fields),
                            max(field.value_range[1] for field in fields)],
            "fields": fields,
        }  # fmt: skip
