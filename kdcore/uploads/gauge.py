"""What is measured of samples as they pass: sizes, ranges, means and deviations."""

import io
from typing import Any, Protocol

import numpy as np

from kdcore.data.base import DataError
from kdcore.data.pictures import Picture, PictureError, read_picture
from kdcore.data.tokenizer import cut
from kdcore.uploads.options import Kind
from kdcore.uploads.profile import MOST_FEATURES, PictureSizes
from kdcore.uploads.sample import Array, Sample, SampleError


class Gauge(Protocol):
    """Measures samples of one kind."""

    def check(self, sample: Sample) -> None:
        """Measure it; raises `SampleError` where it cannot be read."""
        ...

    def found(self) -> dict[str, Any]:
        """The fields of the profile that it knows."""
        ...


class PictureGauge:
    """Pictures at their own size; their mean and deviation, in colour, from exact counts of each brightness."""

    def __init__(self) -> None:
        self._counts = np.zeros((3, 256), np.int64)
        self._sizes: list[int] = [2**31, 0, 2**31, 0]
        self._grey = 0
        self.last: Picture | None = None

    def check(self, sample: Sample) -> None:
        assert isinstance(sample.value, bytes)
        self.last = picture = open_bytes(sample.value)
        width, height = picture.size
        low_w, high_w, low_h, high_h = self._sizes
        self._sizes = [min(low_w, width), max(high_w, width), min(low_h, height), max(high_h, height)]
        counts = np.array(picture.histogram(), np.int64).reshape(3, 256)
        self._grey += int((counts[0] == counts[1]).all() and (counts[0] == counts[2]).all())
        self._counts += counts

    def found(self) -> dict[str, Any]:
        values = np.arange(256) / 255
        shares = self._counts / self._counts.sum(1, keepdims=True).clip(1)  # (3, 256)
        mean = shares @ values
        std = np.sqrt((shares * (values - mean[:, None]) ** 2).sum(1))
        low_w, high_w, low_h, high_h = self._sizes
        sizes = PictureSizes(min_width=low_w, max_width=high_w, min_height=low_h, max_height=high_h, grey=self._grey)
        return {"sizes": sizes, "mean": _floats(mean), "std": _deviations(std), "value_range": [0.0, 1.0]}


def open_bytes(content: bytes) -> Picture:
    """A picture in colour; raises `SampleError` where it is none."""
    try:
        return read_picture(io.BytesIO(content), grey=False)
    except PictureError as error:
        raise SampleError(f"it is no picture that can be read: {error}") from error


class Moments:
    """Mean and deviation of rows as they pass: per channel of pictures (N, C, H, W), else per number of the last
    dimension, or one for all where that is long.

    Attributes:
        unit: what stands for 1 in the rows: 255 of bytes.
    """

    def __init__(self, integers: bool) -> None:
        self.unit = 255.0 if integers else 1.0
        self._count = 0

    def add(self, rows: Array) -> None:
        """(N, …) rows of one shape, at least one."""
        table = self._table(rows)
        if not self._count:
            self._shift = table.mean(0)  # sums of small numbers lose less
            self._sums, self._squares = np.zeros_like(self._shift), np.zeros_like(self._shift)
        table -= self._shift
        self._count += len(table)
        self._sums += table.sum(0)
        self._squares += (table**2).sum(0)

    def _table(self, rows: Array) -> Array:
        """(N, …) -> (places, features) float64 in the unit of the models."""
        last = np.moveaxis(rows, 1, -1) if rows.ndim == 4 else rows  # (N, C, H, W) -> (N, H, W, C)
        features = last.shape[-1] if last.shape[-1] <= MOST_FEATURES else 1
        return last.reshape(-1, features).astype(np.float64) / self.unit

    def found(self) -> dict[str, list[float]]:
        mean = self._sums / self._count
        std = np.sqrt((self._squares / self._count - mean**2).clip(0))
        return {"mean": _floats(mean + self._shift), "std": _deviations(std)}


class VectorGauge:
    """Numbers of one shape."""

    def __init__(self, integers: bool) -> None:
        self._moments = Moments(integers)
        self._shape: tuple[int, ...] | None = None
        self._low, self._high = np.inf, -np.inf

    def check(self, sample: Sample) -> None:
        value = sample.value
        assert isinstance(value, np.ndarray)
        if not np.isfinite(value).all():
            raise SampleError("it holds NaN or infinity")
        self._shape = self._shape or value.shape
        if value.shape != self._shape:
            raise DataError(f"{sample.name} has shape {list(value.shape)}, the first one {list(self._shape)}", "inputs")
        self._moments.add(value[None])
        self._low, self._high = min(self._low, float(value.min())), max(self._high, float(value.max()))

    def found(self) -> dict[str, Any]:
        unit = self._moments.unit
        assert self._shape is not None
        return {
            "shape": list(self._shape),
            "integers": unit != 1.0,
            "value_range": [self._low / unit, self._high / unit],
            **self._moments.found(),
        }


class TextGauge:
    """How long texts are."""

    def __init__(self) -> None:
        self._words = self._longest = self._bytes = 0

    def check(self, sample: Sample) -> None:
        assert isinstance(sample.value, str)
        words = len(cut(sample.value))
        self._words += words
        self._longest = max(self._longest, words)
        self._bytes += len(sample.value.encode("utf-8", "replace"))

    def found(self) -> dict[str, Any]:
        about = {"words": self._words, "longest": self._longest, "text_bytes": self._bytes}
        return {**about, "mean": [0.0], "std": [1.0]}


def gauge_of(kind: Kind, integers: bool) -> Gauge:
    if kind == "picture":
        return PictureGauge()
    return TextGauge() if kind == "text" else VectorGauge(integers)


def _floats(values: Array) -> list[float]:
    return [float(value) for value in values]


def _deviations(values: Array) -> list[float]:
    """What never changes has no deviation to divide by: 1."""
    return [float(value) if value > 1e-6 else 1.0 for value in values]
