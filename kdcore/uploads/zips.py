"""Zip files as strangers make them: what their directory says is bounded before it is read."""

import struct
import zipfile
from pathlib import Path

from kdcore.data.base import DataError

MOST_MEMBERS = 500_000
MOST_DIRECTORY = 256 * 2**20
"""Bytes of the list of members, which is read into memory."""
MOST_UNPACKED = 2**40
MOST_RATIO = 200
"""Unpacked bytes for each packed one, above `FREE`."""
FREE = 64 * 2**20
END, END64, LOCATOR = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"


def open_zip(path: Path) -> zipfile.ZipFile:
    """Open a zip file whose members are few, honest and unpack to a bounded size.

    Raises:
        DataError: it is damaged, or made to exhaust whoever reads it.
    """
    members, directory = announced(path)
    check_members(members)
    if directory > MOST_DIRECTORY:
        raise DataError(f"its list of files has {directory:,} bytes, more than {MOST_DIRECTORY:,}; use shorter names")
    try:
        opened = zipfile.ZipFile(path)
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError, RecursionError) as error:
        raise DataError(f"this is no zip file that can be read ({error}); upload a whole copy") from error
    infos = opened.infolist()
    check_members(len(infos))
    packed, unpacked = sum(info.compress_size for info in infos), sum(info.file_size for info in infos)
    if packed > path.stat().st_size:
        raise DataError("its files lie over each other, as in a zip bomb; pack them anew")
    check_unpacked(unpacked, packed)
    for info in infos:
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DataError(f"{shown(info.filename)} is packed in a rare way; use deflate, which every packer knows")
        if info.flag_bits & 1:
            raise DataError(f"{shown(info.filename)} is encrypted; pack it without a password")
    return opened


def check_members(count: int) -> None:
    if count > MOST_MEMBERS:
        raise DataError(f"{count:,} files are more than {MOST_MEMBERS:,}; use Parquet, or split the data set")


def check_unpacked(unpacked: int, packed: int) -> None:
    """Raise `DataError` for a bomb: little that unpacks to much."""
    if unpacked > MOST_UNPACKED:
        raise DataError(f"it would unpack to {unpacked:,} bytes, more than {MOST_UNPACKED:,}; split the data set")
    if unpacked > FREE + MOST_RATIO * packed:
        raise DataError(f"{packed:,} bytes would unpack to {unpacked:,}, as in a zip bomb; pack pictures or numbers")


def shown(name: str) -> str:
    """A name from a file, for an error: short, and with nothing in it that a terminal obeys."""
    return repr(name if len(name) <= 100 else f"{name[:97]}...")


def announced(path: Path) -> tuple[int, int]:
    """How many members the end of a zip file announces, and the bytes of their list, which `zipfile` would read.

    Raises:
        DataError: there is no such end, or it has two of them, of which readers may take either.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        start = file.seek(max(0, size - 65_557))  # the end record, and a comment of at most 64 KiB
        tail = file.read()
        at = tail.rfind(END)
        if at < 0 or len(tail) < at + 22:
            raise DataError("this is no whole zip file: its list of files is missing; upload a whole copy")
        members, directory = struct.unpack("<HI", tail[at + 10 : at + 16])
        end = start + at
        begin = file.seek(max(0, end - 76))
        before = file.read(end - begin)
    record, locator = before[:-20], before[-20:]
    if locator.startswith(LOCATOR):
        # Python reads the record that lies before the locator, other readers the one that it leads to.
        if len(record) < 56 or not record.startswith(END64) or locator[8:16] != struct.pack("<Q", begin):
            raise DataError("the end of this zip file leads elsewhere than to its list of files; pack it anew")
        members, directory = struct.unpack("<QQ", record[32:48])
    return members, directory
