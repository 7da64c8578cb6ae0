"""Uploads of strangers: refused with a sentence, nothing executed, nothing written beside the pages."""

import gzip
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from safetensors.numpy import save_file

from kdcore.data import DataError
from kdcore.uploads import DatasetOptions, DatasetProfile, check_dataset, zips


def picture(shade: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(file, "PNG")
    return file.getvalue()


GOOD = {f"{name}/{n}.png": picture(n + 100 * (name == "b")) for name in "ab" for n in range(6)}


def check(path: Path, **options: Any) -> DatasetProfile:
    return check_dataset(path, DatasetOptions(**options), out=path.parent / "page")


def refused(path: Path, words: str, **options: Any) -> DataError:
    """The check says so, and leaves nothing: no page, no file beside the upload."""
    before = sorted(path.parent.rglob("*"))
    with pytest.raises(DataError, match=words) as caught:
        check(path, **options)
    assert sorted(path.parent.rglob("*")) == before
    return caught.value


def zipped(path: Path, *extra: tuple[str | zipfile.ZipInfo, bytes], packed: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", packed) as archive:
        for name, content in (*GOOD.items(), *extra):
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("../evil.png", "leads out of the archive"),
        ("a/../../evil.png", "leads out of the archive"),
        ("/tmp/evil.png", "leads out of the archive"),
        ("C:/evil.png", "leads out of the archive"),
        ("a\\evil.png", "plain names"),
        ("a/\x1b[2Jevil.png", "plain names"),
        ("A/1.PNG", "in another case"),
        ("a/more.zip", "an archive within the archive"),
        ("a/more.tar.gz", "an archive within the archive"),
    ],
)
def test_names_that_no_honest_archive_has(name: str, words: str, tmp_path: Path) -> None:
    refused(zipped(tmp_path / "upload", (name, picture())), words)
    with tarfile.open(tmp_path / "tar", "w") as archive:
        for each in (*GOOD, name):
            info = tarfile.TarInfo(each)
            info.size = len(picture())
            archive.addfile(info, io.BytesIO(picture()))
    refused(tmp_path / "tar", words)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_twice(tmp_path: Path) -> None:
    refused(zipped(tmp_path / "upload", ("a/1.png", picture())), "there twice")


def test_links_and_devices(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("a/link.png")
    link.external_attr = 0o120777 << 16
    refused(zipped(tmp_path / "upload", (link, b"/etc/passwd")), "link or a device")
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
        with tarfile.open(tmp_path / "tar", "w") as archive:
            info = tarfile.TarInfo("a/link.png")
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        refused(tmp_path / "tar", "link, a device")


def test_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zips, "FREE", 2**16)
    refused(zipped(tmp_path / "upload", ("a/zeros.png", bytes(2**22))), "zip bomb")
    with tarfile.open(tmp_path / "tar", "w:gz") as archive:
        info = tarfile.TarInfo("a/zeros.png")
        info.size = 2**24
        archive.addfile(info, io.BytesIO(bytes(2**24)))
    refused(tmp_path / "tar", "zip bomb")
    (tmp_path / "table").write_bytes(gzip.compress(b"text,label\n" + b"a,b\n" * 2**20))
    monkeypatch.setattr("kdcore.uploads.tables.FREE", 2**16)
    refused(tmp_path / "table", "as a bomb does")


def test_more_files_than_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zips, "MOST_MEMBERS", 11)
    refused(zipped(tmp_path / "upload"), "12 files are more than 11")


def test_a_zip_that_announces_millions_of_files_is_refused_before_its_list_is_read(tmp_path: Path) -> None:
    path = zipped(tmp_path / "upload")
    content = bytearray(path.read_bytes())
    end = content.rfind(b"PK\x05\x06")
    content[end + 12 : end + 16] = struct.pack("<I", 2**31)
    path.write_bytes(content)
    refused(path, "its list of files has 2,147,483,648 bytes")


def test_a_zip_with_two_ends_of_which_one_announces_little_is_refused(tmp_path: Path) -> None:
    """Readers differ in which they take: the one that the end leads to, or the one that lies before it."""
    content = zipped(tmp_path / "upload").read_bytes()
    at = content.rfind(b"PK\x05\x06")
    members, size, offset = struct.unpack("<HII", content[at + 10 : at + 20])

    def ending(members: int, size: int, offset: int, leads_to: int, behind: bytes = b"") -> bytes:
        record = b"PK\x06\x06" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, members, members, size, offset)
        locator = b"PK\x06\x07" + struct.pack("<IQI", 0, leads_to, 1)
        last = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 1, 1, 46, 0, len(behind))
        return record + locator + last + behind

    little = ending(1, 46, 0, 0)[:56]
    (tmp_path / "upload").write_bytes(little + content[:at] + ending(members, size, offset, 0))
    refused(tmp_path / "upload", "leads elsewhere than to its list", format="zip")
    (tmp_path / "upload").write_bytes(content[:at] + ending(10**9, size, offset, at, b" " * 65_535))
    refused(tmp_path / "upload", "1,000,000,000 files are more than 500,000")
    (tmp_path / "upload").write_bytes(content[:at] + ending(members, size, offset, at, b" " * 65_535))
    assert sum(check(tmp_path / "upload").samples.model_dump().values()) == len(GOOD)


def test_a_tar_whose_name_claims_to_be_gigabytes_long(tmp_path: Path) -> None:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2**32
    (tmp_path / "upload").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    refused(tmp_path / "upload", "damaged", format="tar")


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_archives_that_end_early(share: float, tmp_path: Path) -> None:
    whole = zipped(tmp_path / "whole").read_bytes()
    (tmp_path / "upload").write_bytes(whole[: int(len(whole) * share)])
    refused(tmp_path / "upload", "whole")
    with tarfile.open(tmp_path / "tar", "w:gz") as archive:
        for name in GOOD:
            info = tarfile.TarInfo(name)
            info.size = 4096
            archive.addfile(info, io.BytesIO(os.urandom(4096)))
    cut = (tmp_path / "tar").read_bytes()
    (tmp_path / "tar").write_bytes(cut[: int(len(cut) * share)])
    refused(tmp_path / "tar", "whole")


def large_picture(side: int) -> bytes:
    """A PNG that says it has so many pixels a side."""
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks)
    return b"\x89PNG\r\n\x1a\n" + body


def noise(format: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(file, format)
    return file.getvalue()


def postscript() -> bytes:
    return b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(touched) (w) file closefile\n"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (large_picture(60_000), "pixels"),
        (large_picture(20_000), "pixels"),
        (noise("PNG")[:9000], "no picture"),
        (noise("JPEG")[:2000], "no picture"),
        (b"not a picture", "no picture"),
        (postscript(), "no picture"),
        (b"", "no picture"),
    ],
    ids=["60000", "20000", "half-png", "half-jpeg", "text", "postscript", "empty"],
)
def test_pictures_that_cannot_be_read(content: bytes, reason: str, tmp_path: Path) -> None:
    path = zipped(tmp_path / "upload", ("a/bad.png", content))
    error = refused(path, f"1 of 13 samples cannot be read .a/bad.png: .*{reason}")
    assert error.field == "unreadable"
    profile = check(path, unreadable=0.1)
    assert (profile.unreadable, profile.unreadable_samples[0].name) == (1, "a/bad.png")
    assert profile.samples.train + profile.samples.test == 12
    assert refused(path, "1 of 13", unreadable=0.05)


def test_one_class_only(tmp_path: Path) -> None:
    (tmp_path / "upload").write_text("text,label\n" + "good,pos\n" * 20)
    refused(tmp_path / "upload", "one class, 'pos'")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"text,label\na\0b,x\n", "line 2 has a NUL"),
        ("text,label\ncafé,x\n".encode("latin-1"), "line 2 is no UTF-8"),
        ("text,label\nx,y\n".encode("utf-16"), "format that is read|NUL|UTF-8"),
        (b"text,label\n" + b"a" * 10_000_000 + b",x\n", "line 2 is longer than 1,048,576 bytes"),
        (b"text,label\n" + b'"' + b"word\n" * 100_000, "line"),
        (b"text,label\na,b,c\n", "line 2 has 3 cells"),
        (b"text,text\na,b\n", "each by another name"),
        (b"text,label\n", "no row"),
        (b"split,text,label\nsomewhere,a,b\n", "'somewhere' is no split"),
        (b"split,text,label\ntest,a,b\n", "no sample in the train split"),
        (b'{"text": "a", "label": 1}\n{"text": ', "line 2 is no JSON"),
        (b'{"text": "a", "label": 1}\n' + b"[" * 100_000 + b"\n", "line 2 is no JSON"),
        (b'{"text": "a", "label": {"b": 1}}\n', "is no class"),
    ],
)
def test_tables_that_cannot_be_read(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "upload").write_bytes(content)
    refused(tmp_path / "upload", words)


def test_parquet_with_nested_types_and_damaged(tmp_path: Path) -> None:
    table = pyarrow.table({"deep": [[[1.0]], [[2.0]]], "label": [0, 1]})
    parquet.write_table(table, tmp_path / "upload")
    refused(tmp_path / "upload", "no picture, text or list of numbers")
    (tmp_path / "cut").write_bytes((tmp_path / "upload").read_bytes()[:-20])
    refused(tmp_path / "cut", "cannot be read")


class Touch:
    """Unpickled, it would make a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self._path),)


def test_a_pickle_in_an_npz_is_never_loaded(tmp_path: Path) -> None:
    trap = tmp_path / "executed"
    array = np.array([Touch(trap)] * 12, dtype=object)
    with (tmp_path / "upload").open("wb") as file:
        np.savez(file, inputs=array, labels=np.arange(12))
    refused(tmp_path / "upload", "pickled objects, which are never loaded")
    (tmp_path / "named").write_bytes(pickle.dumps(Touch(trap)))
    for kind in ("npz", "safetensors", "parquet", "zip", "tar"):
        refused(tmp_path / "named", ".", format=kind)
    assert not trap.exists()


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_named_safetensors_is_never_loaded(tmp_path: Path, protocol: int) -> None:
    trap = tmp_path / "executed"
    content = pickle.dumps({"inputs": Touch(trap), "labels": Touch(trap)}, protocol)
    (tmp_path / "weights.safetensors").write_bytes(content)
    refused(tmp_path / "weights.safetensors", ".")
    refused(tmp_path / "weights.safetensors", "header says", format="safetensors")
    torch.save({"inputs": Touch(trap)}, tmp_path / "saved.safetensors", pickle_protocol=max(2, protocol))
    refused(tmp_path / "saved.safetensors", ".")
    refused(tmp_path / "saved.safetensors", "header says", format="safetensors")
    with zipfile.ZipFile(tmp_path / "alone", "w") as archive:
        archive.writestr("data/inputs.safetensors", content)
    refused(tmp_path / "alone", "there is no picture in the archive")
    beside = check(zipped(tmp_path / "beside", ("a/inputs.safetensors", content)))
    assert (beside.ignored, beside.samples.train + beside.samples.test) == (1, len(GOOD))  # it is left alone, unread
    assert not trap.exists()


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ["inputs.npy", "labels.npy", "others.npy"])
def test_two_arrays_of_one_name_are_refused(tmp_path: Path, name: str) -> None:
    """numpy and zipfile read the last one, silently."""
    arrays = {"inputs.npy": np.zeros((12, 3), np.float32), "labels.npy": np.arange(12) % 2}
    with zipfile.ZipFile(tmp_path / "upload", "w") as archive:
        for each, array in (*arrays.items(), (name, np.ones(12)), *[("others.npy", np.ones(12))] * (name[0] == "o")):
            file = io.BytesIO()
            np.save(file, array)
            archive.writestr(each, file.getvalue())
    refused(tmp_path / "upload", f"there are two arrays '{name.removesuffix('.npy')}' in the file; keep one of them")


def test_safetensors_with_a_header_of_four_gigabytes(tmp_path: Path) -> None:
    (tmp_path / "upload").write_bytes(struct.pack("<Q", 2**32) + b"{" + b" " * 100)
    refused(tmp_path / "upload", "header says that it has 4,294,967,296 bytes")


def test_arrays_that_are_no_data_set(tmp_path: Path) -> None:
    inputs, labels = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32), np.arange(40) % 4

    def saved(**arrays: Any) -> Path:
        save_file(arrays, tmp_path / "upload")
        return tmp_path / "upload"

    holes = inputs.copy()
    holes[3, 1], holes[5, 0] = np.nan, np.inf
    refused(saved(inputs=holes, labels=labels), "2 of 40 samples .* NaN or infinity")
    assert check(saved(inputs=holes, labels=labels), unreadable=0.05).unreadable == 2
    refused(saved(inputs=inputs, labels=labels - 3), "labels reach from -3")
    refused(saved(inputs=inputs, labels=labels), "none of the 3 classes", classes=["a", "b", "c"])
    refused(saved(inputs=inputs, labels=labels[:39]), "one row a sample")
    refused(saved(inputs=inputs[:0], labels=labels[:0]), "no sample")
    refused(saved(labels=labels), "has no inputs")
    refused(saved(weights=inputs), "no array `inputs`")
    refused(saved(inputs=inputs, labels=labels, logits=inputs), "3 logits a sample, and 4 classes")
    refused(saved(inputs=inputs, labels=labels, test_inputs=inputs[:, :2]), "different shapes")


def test_what_is_no_data_at_all(tmp_path: Path) -> None:
    (tmp_path / "upload").write_bytes(b"\0" + os.urandom(500))
    refused(tmp_path / "upload", "format")
    (tmp_path / "empty").write_bytes(b"")
    refused(tmp_path / "empty", "row|columns")


def test_a_check_can_be_stopped(tmp_path: Path) -> None:
    (tmp_path / "upload").write_text("\n".join(json.dumps({"vector": [n], "label": n % 2}) for n in range(500)))
    asked = []

    def stop() -> None:
        asked.append(1)
        if len(asked) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check_dataset(tmp_path / "upload", DatasetOptions(), out=tmp_path / "page", poll=stop)
    assert not (tmp_path / "page").exists()


HEAD = b"{'descr': '<f4', 'fortran_order': False, 'shape': (6, 2), }"


@pytest.mark.parametrize(
    "head", [b"{'descr': (", b"{'descr': [], }", HEAD.replace(b"6", b"-6"), HEAD.replace(b"'<f4'", b"[1]")]
)
def test_an_array_s_made_up_head_is_refused(head: bytes, tmp_path: Path) -> None:
    head = head.ljust(117) + b"\n"
    member = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + bytes(48)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("inputs.npy", member)
    refused(tmp_path / "a.npz", "no array that can be read")


def test_a_packed_array_whose_first_bytes_are_damaged_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, inputs=np.arange(4000.0).reshape(1000, 4), labels=np.arange(1000) % 2)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("inputs.npy").header_offset + 30 + len("inputs.npy") + 20
    content[start : start + 8] = b"\xff" * 8
    path.write_bytes(content)
    refused(path, "no array that can be read|is damaged|is not a zip")


@pytest.mark.parametrize(
    "labels",
    [
        pyarrow.array([b"\xff\xfe"] * 12, pyarrow.binary()).view(pyarrow.string()),
        pyarrow.array([1] * 12, pyarrow.timestamp("ns")),
    ],
    ids=["no UTF-8", "nanoseconds"],
)
def test_a_column_of_parquet_that_python_cannot_hold_is_refused(labels: Any, tmp_path: Path) -> None:
    table = pyarrow.table({"text": [f"word {n}" for n in range(12)], "label": labels})
    parquet.write_table(table, tmp_path / "a.parquet")
    refused(tmp_path / "a.parquet", "cannot be read|label")


def test_a_label_that_begins_after_the_first_line_is_not_dropped(tmp_path: Path) -> None:
    rows = [{"text": "first"}, *({"text": f"word {n}", "label": n % 2} for n in range(12))]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    refused(tmp_path / "a.jsonl", "line 2 has 'label', which the first line lacks", classes=["no", "yes"])
