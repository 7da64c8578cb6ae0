"""Tables of text, CSV, TSV and JSONL, line by line: each line is UTF-8, without a NUL, and of a bounded length."""

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from kdcore.data.base import DataError
from kdcore.uploads.columns import BESIDE, Columns
from kdcore.uploads.options import DatasetOptions, Format, Kind
from kdcore.uploads.sample import Sample
from kdcore.uploads.zips import FREE, MOST_RATIO, MOST_UNPACKED, shown

ENDINGS = (".csv", ".tsv", ".jsonl")
MOST_LINE = 2**20
MOST_COLUMNS = 10_000
Row = tuple[str, dict[str, Any]]


def read_table(file: IO[bytes], name: str, most: int = MOST_UNPACKED, *, poll: Callable[[], object]) -> Iterator[Row]:
    """The rows of a table with named columns, by where they are.

    Args:
        name: ends in the format.
        most: bytes that it may unpack to.
        poll: called before each line: not every one is a row.

    Raises:
        DataError: names the line that is wrong.
    """
    lines = _lines(file, name, most, poll)
    if name.lower().endswith(".jsonl"):
        return _objects(lines, name)
    return _cells(lines, name, "\t" if name.lower().endswith(".tsv") else ",")


def _lines(file: IO[bytes], name: str, most: int, poll: Callable[[], object]) -> Iterator[str]:
    number = total = 0
    try:
        while line := file.readline(MOST_LINE + 1):
            poll()
            number, total = number + 1, total + len(line)
            where = f"{name}, line {number}"
            if len(line) > MOST_LINE:
                raise DataError(f"{where} is longer than {MOST_LINE:,} bytes; is it a table of text?")
            if total > most:
                raise DataError(f"{name} unpacks to more than {most:,} bytes, as a bomb does; use a part of it")
            if b"\0" in line:
                raise DataError(f"{where} has a NUL; save the table as UTF-8 text")
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(f"{where} is no UTF-8 ({error.reason}); save the table as UTF-8") from error
    except (OSError, EOFError, zlib.error, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{name} cannot be read to its end ({error}); upload a whole copy") from error


def _cells(lines: Iterator[str], name: str, delimiter: str) -> Iterator[Row]:
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        header = next(reader, [])
        if len(set(header)) < len(header) or not all(header) or len(header) > MOST_COLUMNS:
            raise DataError(f"{name}: the first line names the columns, each by another name")
        for row in reader:
            where = f"{name}, line {reader.line_num}"
            if len(row) != len(header) and row:
                raise DataError(f"{where} has {len(row)} cells, the first line names {len(header)} columns")
            if row:
                yield where, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise DataError(f"{name}, line {reader.line_num}: {error}; quote cells as CSV does") from error


def _objects(lines: Iterator[str], name: str) -> Iterator[Row]:
    known: frozenset[str] | None = None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where} is no JSON ({str(error)[:200]}); write one object in each line") from error
        if not isinstance(value, dict) or len(value) > MOST_COLUMNS:
            raise DataError(f"{where} is no object with named values")
        known = frozenset(value) if known is None else known
        if late := BESIDE & value.keys() - known:  # the first line decides what the columns are
            raise DataError(
                f"{where} has {min(late)!r}, which the first line lacks; give it there too, null if unknown"
            )
        yield where, value


class Table:
    """A table in a file of its own, packed with gzip or not."""

    classes: tuple[str, ...] = ()
    ignored = 0
    integers = False

    def __init__(self, path: Path, options: DatasetOptions, format: Format, poll: Callable[[], object]) -> None:
        self._path, self._options, self._format, self._poll = path, options, format, poll
        where, row = next(self._rows(), ("", {}))
        if not row:
            raise DataError("there is no row in the table")
        self._columns = Columns(options, list(row))
        self.kind: Kind = (
            "vector"
            if options.fields
            else options.kind or _kind([row.get(name) for name in self._columns.inputs], format)
        )
        if self.kind == "picture":
            raise DataError(f"{shown(where)}: a table of text holds no pictures; pack them beside it", "kind")

    def _rows(self) -> Iterator[Row]:
        size = self._path.stat().st_size
        with self._path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            opened: Any = gzip.GzipFile(fileobj=file) if packed else file
            most = FREE + MOST_RATIO * size if packed else size
            yield from read_table(opened, f"table.{self._format}", most, poll=self._poll)

    def samples(self) -> Iterator[Sample]:
        for where, row in self._rows():
            yield self._columns.sample(where.partition(", ")[2], row, self.kind)


def _kind(values: list[Any], format: Format) -> Kind:
    """Of the first row: several values that are all numbers, and a list, make a vector; anything else is a text."""
    if len(values) == 1 and isinstance(values[0], str) and format != "jsonl":
        return "text"
    known = [value for value in values if value is not None and value != ""]  # an empty cell says nothing
    return "vector" if known and all(isinstance(value, list) or _is_number(value) for value in known) else "text"


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return True
