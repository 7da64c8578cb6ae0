"""Parquet, as Hugging Face lays it out: a column of pictures, texts or vectors, and one of labels."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kdcore.data.base import DataError
from kdcore.uploads.columns import Columns
from kdcore.uploads.options import MOST_CLASSES, DatasetOptions, Kind
from kdcore.uploads.sample import MOST_SAMPLES, Sample

BUDGET = 2**29
"""Bytes that a batch of rows may unpack to, each row as large as its whole column's part in the row group."""
MOST_GROUP = 2**31
"""Bytes that the columns of a row group unpack to; the reader holds a part of it at a time."""
MOST_ROWS = 1024
MOST_THRIFT = 64 * 2**20
"""Bytes, and entries, of the file's own description."""


class Parquet:
    """A Parquet file, read some rows at a time."""

    ignored = 0

    def __init__(self, path: Path, options: DatasetOptions) -> None:
        self._path, self._options = path, options
        with _readable():
            file = self._open()
            self._schema = file.schema_arrow
            self._metadata = file.metadata
            self._columns = Columns(options, list(self._schema.names))
            self._wanted = [name for name in self._schema.names if name in self._used()]
            self.kind: Kind = self._kind()
            self.integers = self.kind == "picture"
            self.classes = self._class_names()
            self._at_once = self._bounded()
            file.close()

    def _open(self) -> Any:
        from pyarrow import parquet

        return parquet.ParquetFile(
            self._path,
            pre_buffer=False,
            buffer_size=2**20,
            thrift_string_size_limit=MOST_THRIFT,
            thrift_container_size_limit=1_000_000,
        )

    def _used(self) -> set[str | None]:
        found = self._columns
        return {*found.inputs, *found.labels, found.id, found.split, found.logits, found.places}

    def _kind(self) -> Kind:
        """What the column of the sample is; a nested type is none."""
        from pyarrow import types

        if self._options.fields:
            for name in self._columns.inputs:
                if _simple(self._schema.field(name).type) not in ("number", "list"):
                    raise DataError(f"column {name!r} holds neither numbers nor lists of them; leave it out", "fields")
            return "vector"
        if len(self._columns.inputs) > 1:
            kinds = {_simple(self._schema.field(name).type) for name in self._columns.inputs}
            if kinds not in ({"text"}, {"number"}):
                raise DataError("several columns are a sample where all are texts, or all numbers", "inputs")
            return "text" if kinds == {"text"} else "vector"
        name = self._columns.inputs[0]
        type = self._schema.field(name).type
        if types.is_struct(type) and any(type.field(at).name == "bytes" for at in range(type.num_fields)):
            type = type.field("bytes").type
        found = {"binary": "picture", "text": "text", "list": "vector", "number": "vector"}.get(_simple(type) or "")
        if found is None:
            message = f"column {name!r} is {str(type)[:100]}, which is no picture, text or list of numbers"
            raise DataError(f"{message}; name another in `inputs`", "inputs")
        return found  # type: ignore[return-value]

    def _class_names(self) -> tuple[str, ...]:
        """Of the label column, where Hugging Face's description of the columns has them."""
        try:
            described: Any = json.loads((self._schema.metadata or {}).get(b"huggingface", b"{}"))
            feature = described["info"]["features"][self._columns.labels[0]]
            names = feature.get("names") or feature["feature"]["names"]
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            return ()
        right = isinstance(names, list) and all(isinstance(name, str) and 0 < len(name) <= 200 for name in names)
        return tuple(names) if right and len(names) <= MOST_CLASSES else ()

    def _bounded(self) -> int:
        """Rows to read together."""
        if self._metadata.num_rows > MOST_SAMPLES:
            raise DataError(f"{self._metadata.num_rows:,} rows are more than {MOST_SAMPLES:,}; upload fewer")
        largest = 1
        for group in range(self._metadata.num_row_groups):
            row_group = self._metadata.row_group(group)
            columns = [row_group.column(at) for at in range(row_group.num_columns)]
            size = sum(c.total_uncompressed_size for c in columns if c.path_in_schema.split(".")[0] in self._wanted)
            largest = max(largest, size)
        if largest > MOST_GROUP:
            raise DataError(f"a row group has {largest:,} bytes, more than {MOST_GROUP:,}; write smaller row groups")
        return min(MOST_ROWS, max(1, BUDGET // largest))

    def samples(self) -> Iterator[Sample]:
        number = 0
        with _readable():
            file = self._open()
            try:
                for batch in file.iter_batches(self._at_once, columns=self._wanted, use_threads=False):
                    columns = {name: batch.column(name) for name in batch.schema.names}
                    for row in range(batch.num_rows):
                        number += 1
                        values = {name: column[row].as_py() for name, column in columns.items()}
                        yield self._sample(f"row {number}", values)
            finally:
                file.close()

    def _sample(self, where: str, values: dict[str, Any]) -> Sample:
        if self.kind == "picture":
            name = self._columns.inputs[0]
            value = values[name]
            values[name] = value.get("bytes") if isinstance(value, dict) else value
        return self._columns.sample(where, values, self.kind)


def _simple(type: Any) -> str | None:
    from pyarrow import types

    if types.is_string(type) or types.is_large_string(type):
        return "text"
    if types.is_binary(type) or types.is_large_binary(type):
        return "binary"
    if types.is_integer(type) or types.is_floating(type) or types.is_boolean(type):
        return "number"
    lists = types.is_list(type) or types.is_large_list(type) or types.is_fixed_size_list(type)
    return "list" if lists and _simple(type.value_type) == "number" else None


@contextmanager
def _readable() -> Iterator[None]:
    """Turns what pyarrow raises for a damaged file into a `DataError`."""
    import pyarrow

    try:
        yield
    except DataError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError) as error:  # of text that is not UTF-8, of nanoseconds
        raise DataError(f"the Parquet file cannot be read ({str(error)[:200]}); write it again") from error
