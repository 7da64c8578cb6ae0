"""Pictures in an archive: a folder for each class, or a table of their names and labels beside them."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from kdcore.data.base import DataError
from kdcore.data.pictures import ENDINGS
from kdcore.uploads.archive import Archive, Member, Poll
from kdcore.uploads.columns import LABELS, Columns
from kdcore.uploads.options import DatasetOptions, Kind
from kdcore.uploads.sample import PARTS, Part, Sample
from kdcore.uploads.tables import ENDINGS as TABLES
from kdcore.uploads.tables import read_table
from kdcore.uploads.zips import shown

MOST_TABLE = 256 * 2**20
"""Bytes of a table beside the pictures, which is kept in memory."""
LOGITS = re.compile(r"logits\.(csv|tsv|jsonl)")
FILE_COLUMNS = ("file_name", "file", "filename", "path", "image")


class Pictures:
    """An archive of pictures.

    `<class>/…` or `train/<class>/…` and `test/<class>/…`; folders above them are looked through. With a table (CSV, TSV
    or JSONL) its rows say each picture's label, split and logits, by its path from the table's folder. One
    that is named `logits` and has no labels says no more than these: label and split are the folders', or another's.
    """

    kind: Kind = "picture"
    classes: tuple[str, ...] = ()
    integers = True

    def __init__(self, archive: Archive, options: DatasetOptions, poll: Poll) -> None:
        self._archive, self._options, self._poll = archive, options, poll
        self.ignored = 0
        self._rows: dict[str, Sample] | None = None
        self._said: dict[str, Sample] = {}
        self._skip = 0
        self._look_through()

    def _look_through(self) -> None:
        """The table, where there is one; and how many folders all pictures share."""
        shared: list[str] | None = None
        for member in self._archive.members():
            if member.name.lower().endswith(ENDINGS):
                folders = member.name.split("/")[:-1]
                shared = folders if shared is None else _common(shared, folders)
            elif member.name.lower().endswith(TABLES):
                self._add_table(member)
            else:
                self.ignored += 1
        if shared is None:
            raise DataError(f"there is no picture in the archive; pictures end in {', '.join(ENDINGS)}")
        if self._rows is None:
            part = next((place for place, name in enumerate(shared) if name.lower() in PARTS), None)
            self._skip = len(shared) if part is None else part

    def _add_table(self, member: Member) -> None:
        """Enter its rows by the path of their picture."""
        folder = member.name.rpartition("/")[0]
        rows: dict[str, Sample] = {}
        columns: Columns | None = None
        column = self._options.file
        if member.size > MOST_TABLE:
            raise DataError(f"{shown(member.name)} has {member.size:,} bytes, more than {MOST_TABLE:,}; split it")
        default = PARTS.get(member.name.rpartition("/")[2].partition(".")[0].lower())
        for where, row in read_table(member.file, member.name, poll=self._poll):
            if columns is None:
                column = column or next((name for name in FILE_COLUMNS if name in row), None)
                if column is None or column not in row:
                    raise DataError(f"{shown(member.name)} has no column {column or 'file_name'!r}", "file")
                columns, rows = self._columns(member.name, row, column)
            name = str(row.get(column or "")).removeprefix("./")
            path = f"{folder}/{name}" if folder else name
            if path in rows:
                raise DataError(f"{where}: {shown(path)} has a row already", "file")
            rows[path] = columns.sample(where, row, None, default)

    def _columns(self, table: str, row: Mapping[str, Any], file: str) -> tuple[Columns, dict[str, Sample]]:
        """Of the table that begins with this row; and where its rows belong."""
        labels = self._options.labels or LABELS
        if LOGITS.fullmatch(table.rpartition("/")[2].lower()) and not any(name in row for name in labels):
            options = self._options.model_copy(update={"labels": [], "split": None, "id": None})
            columns = Columns(options, list(row), without=(file,))
            if columns.logits is None:
                raise DataError(f"{shown(table)} has no column 'logits'", "logits")
            return columns, self._said
        self._rows = self._rows if self._rows is not None else {}
        return Columns(self._options, list(row), without=(file,)), self._rows

    def samples(self) -> Iterator[Sample]:
        left = {*(self._rows or ()), *self._said}
        for member in self._archive.members():
            if not member.name.lower().endswith(ENDINGS):
                continue
            left.discard(member.name)
            sample = self._by_folder(member) if self._rows is None else self._by_row(member, self._rows)
            if sample is not None:
                if (said := self._said.get(member.name)) is not None:
                    sample = replace(sample, logits=said.logits, places=said.places)
                yield sample
        if left:
            missing = ", ".join(shown(name) for name in sorted(left)[:5])
            raise DataError(f"{len(left):,} pictures of the table are not in the archive: {missing}", "file")

    @staticmethod
    def _by_row(member: Member, rows: Mapping[str, Sample]) -> Sample | None:
        if (row := rows.get(member.name)) is None:
            return None
        return replace(row, name=member.name, value=member.read(), id=row.id)

    def _by_folder(self, member: Member) -> Sample:
        folders = member.name.split("/")[self._skip : -1]
        part: Part | None = None
        if folders and folders[0].lower() in PARTS:
            part = PARTS[folders.pop(0).lower()]
        label: Any = folders[0] if folders else None
        return Sample(member.name, member.read(), part, label)


def _common(left: list[str], right: list[str]) -> list[str]:
    """The folders that both begin with."""
    same = 0
    while same < min(len(left), len(right)) and left[same] == right[same]:
        same += 1
    return left[:same]
