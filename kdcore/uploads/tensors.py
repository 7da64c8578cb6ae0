"""Arrays in an `.npz` or `.safetensors` file: `inputs`, `labels`, and those of other splits, such as `test_inputs`."""

import re
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO, Any

import numpy as np
import safetensors
import torch

from kdcore.data.base import DataError
from kdcore.uploads.fields import joined, missing
from kdcore.uploads.options import DatasetOptions, Kind
from kdcore.uploads.sample import MOST_SAMPLES, PARTS, Array, Part, Sample, checked_logits, checked_places
from kdcore.uploads.zips import open_zip, shown

INPUTS = {"inputs": "inputs", "x": "inputs", "images": "inputs", "data": "inputs"}
BESIDE = {
    "labels": "labels",
    "y": "labels",
    "targets": "labels",
    "logits": "logits",
    "logit_classes": "logit_classes",
    "ids": "ids",
}
AT_ONCE = 2**22
"""Bytes of an array that are read together, or one row."""
MOST_ROW = 2**28
HEADER = 100 * 2**20
"""The most that safetensors itself reads as a header."""
NUMBERS = "buif"
UNREADABLE = (
    ValueError, TypeError, IndexError, OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error,
    tokenize.TokenError,
)  # fmt: skip
"""What numpy and zipfile raise for an array whose head is damaged or made up: it is a Python literal."""
MOST_ARRAYS = 100


class Tensors:
    """The arrays of a file, by split and field, read some rows at a time."""

    kind: Kind = "vector"
    classes: tuple[str, ...] = ()
    ignored = 0

    def __init__(self, path: Path, options: DatasetOptions, format: str) -> None:
        self._path, self._options = path, options
        named = {name.lower(): name for name in options.fields}
        self._meanings = BESIDE | (named or INPUTS)
        self._wanted = options.fields or ["inputs"]
        meanings = "|".join(map(re.escape, self._meanings))
        self._name = re.compile(rf"^(?:(?P<part>{'|'.join(PARTS)})[_.])?(?P<field>{meanings})$")
        self._opened = _Npz if format == "npz" else _Safetensors
        with self._opened(path) as file:
            self._fields = self._named(file)
            self._check(file)
            self.integers = all(
                file.dtype(name).kind == "u" and file.dtype(name).itemsize == 1 for name in self._inputs
            )

    @property
    def _inputs(self) -> list[str]:
        return [fields[name] for fields in self._fields.values() for name in self._wanted]

    def _named(self, file: "_Arrays") -> dict[Part | None, dict[str, str]]:
        """The file's arrays by split and field; others are left alone."""
        found: dict[Part | None, dict[str, str]] = {}
        for name in file.names():
            if not (match := self._name.match(name.lower())):
                self.ignored += 1
                continue
            part = PARTS[match["part"]] if match["part"] else None
            meaning = self._meanings[match["field"]]
            if meaning in found.setdefault(part, {}):
                raise DataError(f"{name!r} is the second array of its kind; keep one")
            found[part][meaning] = name
        if None in found and any(part != None for part in found):  # noqa: E711 - `inputs` beside `test_inputs`
            if "train" in found:
                raise DataError("there are both `inputs` and `train_inputs`; keep one of them")
            found["train"] = found.pop(None)
        return found

    def _check(self, file: "_Arrays") -> None:
        if not self._fields:
            wanted = "` nor `".join(self._wanted)
            raise DataError(f"there is no array `{wanted}`; name the samples so, and their classes `labels`")
        shapes: dict[str, set[tuple[int, ...]]] = {name: set() for name in self._wanted}
        for part, fields in self._fields.items():
            lengths = {name: file.shape(name)[:1] for name in fields.values()}
            if missing := [name for name in self._wanted if name not in fields]:
                add = f"{part}_{missing[0]}" if part else missing[0]
                raise DataError(f"{next(iter(lengths))!r} has no {missing[0]} beside it; add `{add}`")
            if len(set(lengths.values())) > 1 or () in lengths.values():
                raise DataError(f"arrays of one split have one row a sample, here are {lengths}")
            for field, name in fields.items():
                if file.dtype(name).kind not in (NUMBERS if field != "ids" else NUMBERS + "U"):
                    raise DataError(f"{name!r} holds {file.dtype(name)}, which is no number; store numbers")
                if field in self._wanted:
                    shapes[field].add(file.shape(name)[1:])
        for name, found in shapes.items():
            if len(found) > 1:
                raise DataError(f"the {name} of the splits have different shapes: {sorted(found)}; give all the same")
            (shape,) = found
            if not 0 <= len(shape) <= 3 or 0 in shape or (not shape and not self._options.fields):
                raise DataError(f"a sample of shape {list(shape)} cannot be read; use (D), (T, D), (H, W) or (C, H, W)")

    def samples(self) -> Iterator[Sample]:
        with self._opened(self._path) as file:
            for part, fields in self._fields.items():
                yield from self._rows(file, part, fields)

    def _rows(self, file: "_Arrays", part: Part | None, fields: dict[str, str]) -> Iterator[Sample]:
        first = fields[self._wanted[0]]
        count = file.shape(first)[0]
        if count > MOST_SAMPLES:
            raise DataError(f"{count:,} samples are more than {MOST_SAMPLES:,}; upload fewer")
        row_bytes = max(1, sum(map(file.row_bytes, fields.values())))
        if row_bytes > MOST_ROW:
            raise DataError(f"a sample of {row_bytes:,} bytes is more than {MOST_ROW:,}; make it smaller")
        chunks = file.rows(list(fields.values()), max(1, AT_ONCE // row_bytes))
        place = 0
        for arrays in chunks:
            held = dict(zip(fields, arrays, strict=True))
            for row in range(len(held[self._wanted[0]])):
                name = f"{first}[{place}]"
                yield self._sample(name, part, {field: array[row] for field, array in held.items()})
                place += 1

    def _sample(self, name: str, part: Part | None, held: dict[str, Any]) -> Sample:
        values, shapes = {each: self._value(np.asarray(held[each])) for each in self._wanted}, None
        label = held["labels"].tolist() if "labels" in held else None
        label = tuple(label) if isinstance(label, list) else label  # a row of numbers, no list of classes
        logits = checked_logits(held["logits"], name) if "logits" in held else None
        if self._options.fields:
            problem = missing(values)
            value, shapes = joined(values)
        else:
            value = values["inputs"]
            problem = None if np.isfinite(value).all() else "it holds NaN or infinity"
        id = str(held["ids"]) if "ids" in held else None
        places = checked_places(held["logit_classes"], logits, name) if "logit_classes" in held else None
        return Sample(name, value if problem is None else None, part, label, id, logits, problem, places, shapes)

    def _value(self, stored: Array) -> Array:
        """As it is kept; of several fields one may be bytes and another not."""
        if self._options.fields:
            return np.atleast_1d(_as_picture(stored, stored.dtype == np.uint8 and stored.ndim > 1))
        return _as_picture(stored, self.integers)


def _as_picture(value: Array, integers: bool) -> Array:
    """Bytes (H, W) and (H, W, C) as (C, H, W); other numbers as float32."""
    if not integers:
        return value.astype(np.float32)
    if value.ndim == 2:
        return value[None]
    last = value.ndim == 3 and value.shape[2] in (1, 3) and value.shape[0] not in (1, 3)
    return np.ascontiguousarray(value.transpose(2, 0, 1)) if last else value


class _Arrays(AbstractContextManager["_Arrays"]):
    """What both formats can: name their arrays, and read rows of several of them side by side."""

    def names(self) -> list[str]:
        raise NotImplementedError

    def shape(self, name: str) -> tuple[int, ...]:
        raise NotImplementedError

    def dtype(self, name: str) -> "np.dtype[Any]":
        raise NotImplementedError

    def row_bytes(self, name: str) -> int:
        return int(np.prod(self.shape(name)[1:], dtype=np.float64)) * self.dtype(name).itemsize

    def rows(self, names: list[str], at_once: int) -> Iterator[list[Array]]:
        raise NotImplementedError


class _Npz(_Arrays):
    """numpy's archive; each array is unpacked as it is read, and no pickled object ever is."""

    def __init__(self, path: Path) -> None:
        self._zip = open_zip(path)
        self._heads: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}
        if len(self._zip.infolist()) > MOST_ARRAYS:
            raise DataError(f"more than {MOST_ARRAYS} arrays are in the file; keep `inputs`, `labels` and the like")
        for info in self._zip.infolist():
            if info.filename.endswith(".npy"):
                name = info.filename.removesuffix(".npy")
                if name in self._heads:  # one of them would be read, and nobody could say which was meant
                    raise DataError(f"there are two arrays {shown(name)} in the file; keep one of them")
                with self._member(name) as (_, shape, dtype):
                    self._heads[name] = shape, dtype

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    def names(self) -> list[str]:
        return list(self._heads)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._heads[name][0]

    def dtype(self, name: str) -> "np.dtype[Any]":
        return self._heads[name][1]

    def _member(self, name: str) -> AbstractContextManager[tuple[IO[bytes], tuple[int, ...], "np.dtype[Any]"]]:
        """An array's file after its header, with what the header says."""
        try:
            file = self._zip.open(f"{name}.npy")
            version = np.lib.format.read_magic(file)
            if version not in ((1, 0), (2, 0)):
                raise ValueError(f"it has version {version}")
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(file)
            if any(size < 0 for size in shape):
                raise ValueError(f"its shape is {shape}")
        except UNREADABLE as error:
            raise DataError(f"{name!r} is no array that can be read ({error}); save it with numpy.savez") from error
        if dtype.hasobject:
            raise DataError(f"{name!r} holds pickled objects, which are never loaded; save numbers")
        if fortran and len(shape) > 1:
            raise DataError(f"{name!r} is stored by columns; save numpy.ascontiguousarray of it")
        return nullcontext((file, shape, dtype))

    def rows(self, names: list[str], at_once: int) -> Iterator[list[Array]]:
        files = []
        for name in names:
            with self._member(name) as opened:
                files.append(opened)
        count = files[0][1][0]
        try:
            for start in range(0, count, at_once):
                yield [_read(*file, min(at_once, count - start), name) for file, name in zip(files, names, strict=True)]
        except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(f"the archive is damaged ({error}); upload a whole copy") from error
        finally:
            for file, _, _ in files:
                file.close()


def _read(file: IO[bytes], shape: tuple[int, ...], dtype: "np.dtype[Any]", count: int, name: str) -> Array:
    wanted = count * int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
    content = file.read(wanted)
    if len(content) < wanted:
        raise DataError(f"{name!r} ends early; upload a whole copy")
    return np.frombuffer(content, dtype).reshape(count, *shape[1:])


class _Safetensors(_Arrays):
    """Mapped, and read some rows at a time."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
        if length > min(HEADER, path.stat().st_size):
            raise DataError(f"the header says that it has {length:,} bytes, more than the file; save it again")
        try:
            self._context = safetensors.safe_open(path, "pt")
            self._file = self._context.__enter__()  # type: ignore[no-untyped-call]
        except (OSError, safetensors.SafetensorError) as error:
            raise DataError(f"this is no safetensors file that can be read ({error}); save it again") from error

    def __exit__(self, *_: object) -> None:
        self._context.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def names(self) -> list[str]:
        return list(self._file.keys())

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._file.get_slice(name).get_shape())

    def dtype(self, name: str) -> "np.dtype[Any]":
        stored = self._file.get_slice(name).get_dtype()
        kinds = {"U8": "u1", "I8": "i1", "I16": "i2", "I32": "i4", "I64": "i8", "BOOL": "?", "F64": "f8", "F16": "f2"}
        return np.dtype(kinds.get(stored, "f4" if stored in ("F32", "BF16") else "V1"))

    def rows(self, names: list[str], at_once: int) -> Iterator[list[Array]]:
        count = self.shape(names[0])[0]
        slices = [self._file.get_slice(name) for name in names]
        for start in range(0, count, at_once):
            found = [each[start : start + at_once] for each in slices]
            yield [(each.float() if each.dtype == torch.bfloat16 else each).numpy() for each in found]
