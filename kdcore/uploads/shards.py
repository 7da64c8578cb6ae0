"""Tables in an archive without pictures: the shards of one data set, as Hugging Face stores large ones."""

import re
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, cast

from kdcore.data.base import DataError
from kdcore.data.pictures import ENDINGS as PICTURES
from kdcore.uploads.archive import DAMAGED, Archive, Member, Poll
from kdcore.uploads.options import DatasetOptions, Format, Kind
from kdcore.uploads.parquet import Parquet
from kdcore.uploads.sample import PARTS, Part, Sample, Source
from kdcore.uploads.tables import Table
from kdcore.uploads.zips import shown

ENDINGS = (".parquet", ".csv", ".tsv", ".jsonl")
MOST_SHARD = 4 * 2**30
COPIED_AT_ONCE = 2**20


def has_only_tables(archive: Archive) -> bool:
    """Whether there are tables in an archive, and no picture that they could be about."""
    found = False
    for member in archive.members():
        if member.name.lower().endswith(PICTURES):
            return False
        found = found or member.name.lower().endswith(ENDINGS)
    return found


class Shards:
    """The tables of an archive, one after the other, all of one kind and with the same classes.

    A folder or a name that begins with a split's puts a table into it, such as `data/train-00000-of-00004.parquet`.
    Each is copied to a temporary file while it is read: Parquet begins at its end.
    """

    def __init__(self, archive: Archive, options: DatasetOptions, poll: Poll, folder: Path | None) -> None:
        self._archive, self._options, self._poll, self._folder = archive, options, poll, folder
        self.ignored = self.copied = 0
        _, first = next(self._sources())
        self.kind: Kind = first.kind
        self.integers, self.classes = first.integers, first.classes

    def samples(self) -> Iterator[Sample]:
        self.ignored = 0
        for name, source in self._sources():
            if (source.kind, source.classes) != (self.kind, self.classes):
                raise DataError(f"{shown(name)} has samples or classes of another kind than the first table")
            part = _part_of(name)
            try:
                for sample in source.samples():
                    yield replace(sample, name=f"{name}, {sample.name}", part=sample.part or part)
            except DataError as error:
                raise DataError(f"{shown(name)}: {error}", error.field) from error

    def _sources(self) -> Iterator[tuple[str, Source]]:
        """Each table by its name, there until the next is asked for."""
        for member in self._archive.members():
            if not member.name.lower().endswith(ENDINGS):
                self.ignored += 1
                continue
            with tempfile.NamedTemporaryFile(dir=self._folder) as copy:
                self._copy(member, copy)
                try:
                    source = self._open(Path(copy.name), member.name.lower().rpartition(".")[2])
                except DataError as error:
                    raise DataError(f"{shown(member.name)}: {error}", error.field) from error
                yield member.name, source

    def _open(self, path: Path, ending: str) -> Source:
        if ending == "parquet":
            return Parquet(path, self._options)
        return Table(path, self._options, cast(Format, ending), self._poll)

    def _copy(self, member: Member, copy: IO[bytes]) -> None:
        if member.size > MOST_SHARD:
            raise DataError(f"{shown(member.name)} has {member.size:,} bytes, more than {MOST_SHARD:,}; split it")
        left = member.size
        while left:
            self._poll()
            try:
                chunk = member.file.read(min(left, COPIED_AT_ONCE))
            except DAMAGED as error:
                raise DataError(f"{shown(member.name)} is damaged ({error}); upload a whole archive") from error
            if not chunk:
                raise DataError(f"{shown(member.name)} ends early; upload a whole archive")
            copy.write(chunk)
            left -= len(chunk)
        copy.flush()
        self.copied = max(self.copied, member.size)


def _part_of(name: str) -> Part | None:
    """The split that a folder of the table, or its own name, begins with."""
    words = (re.split(r"[^a-z]", step, maxsplit=1)[0] for step in name.lower().split("/"))
    return next((PARTS[word] for word in words if word in PARTS), None)
