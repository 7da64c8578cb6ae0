"""Which format a file has, by its content, and who reads it."""

import gzip
import zlib
from collections.abc import Callable
from pathlib import Path

from kdcore.data.base import DataError
from kdcore.uploads.archive import Tar, Zip
from kdcore.uploads.fields import check_fields
from kdcore.uploads.options import DatasetOptions, Format
from kdcore.uploads.parquet import Parquet
from kdcore.uploads.pictures import Pictures
from kdcore.uploads.sample import Source
from kdcore.uploads.shards import Shards, has_only_tables
from kdcore.uploads.tables import Table
from kdcore.uploads.tensors import Tensors
from kdcore.uploads.zips import open_zip

HEAD = 4096
GZIP = b"\x1f\x8b"


def format_of(path: Path, options: DatasetOptions) -> Format:
    """The format that the options say, or that the file begins like.

    Raises:
        DataError: it begins like none that is read.
    """
    if options.format is not None:
        return options.format
    with path.open("rb") as file:
        head = file.read(HEAD)
    if head.startswith(GZIP):
        head = _unpacked_head(path)
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        with open_zip(path) as opened:
            names = opened.namelist()
        return "npz" if names and all(name.endswith(".npy") for name in names) else "zip"
    if head[257:262] == b"ustar":
        return "tar"
    if head.startswith(b"PAR1"):
        return "parquet"
    if len(head) > 8 and head[8:9] == b"{":
        return "safetensors"
    return _table(head)


def _table(head: bytes) -> Format:
    if b"\0" in head.split(b"\n", 1)[0]:
        raise DataError("this is no file of a format that is read; give its `format` if you are sure of it", "format")
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
        return "jsonl"
    first = head.split(b"\n", 1)[0]
    return "tsv" if first.count(b"\t") > first.count(b",") else "csv"


def _unpacked_head(path: Path) -> bytes:
    try:
        with gzip.open(path) as file:
            return file.read(HEAD)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"the file cannot be unpacked ({error}); upload a whole copy") from error


def open_source(
    path: Path, options: DatasetOptions, poll: Callable[[], object] = lambda: None, folder: Path | None = None
) -> tuple[Source, Format]:
    """Whoever reads the file, and its format.

    Args:
        poll: called now and then, also between samples that are left out; what it raises ends the reading.
        folder: where a table of an archive is copied to while it is read; none: where the system keeps such files.

    Raises:
        DataError: it cannot be read as a data set.
    """
    format = format_of(path, options)
    check_fields(options, format)
    if format in ("npz", "safetensors"):
        return Tensors(path, options, format), format
    if format == "parquet":
        return Parquet(path, options), format
    if format in ("zip", "tar"):
        archive = Zip(path, poll) if format == "zip" else Tar(path, poll)
        if has_only_tables(archive):
            return Shards(archive, options, poll, folder), format
        return Pictures(archive, options, poll), format
    return Table(path, options, format, poll), format
