"""The compact form of a data set: arrays in the order in which jobs read them, decoded once."""

import hashlib
import json
import os
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from pydantic import Field

from kdcore.config import Config
from kdcore.data.base import DataError
from kdcore.data.pictures import Fit, fit_picture, pixels
from kdcore.data.stored import StoredRows
from kdcore.data.tokenizer import Tokenizer, TokenizerConfig, cut, encode_all
from kdcore.uploads.formats import open_source
from kdcore.uploads.gauge import Moments, open_bytes
from kdcore.uploads.ledger import Layout, Ledger, read_all
from kdcore.uploads.profile import DatasetProfile
from kdcore.uploads.sample import Array, Sample, spread

FORM = 2
"""Of the folder's content; another number, another folder."""
AT_ONCE = 2**21
"""Bytes that are put into order, and measured, together."""
TEXTS_AT_ONCE = 1024
MOST_WORDS = 5_000_000
"""Different words that are counted; of more, the rarer half is forgotten."""


class Rule(Config):
    """How samples become rows of one shape; what of it does not matter for their kind has its default."""

    size: int = 0
    fit: Fit = "crop"
    grey: bool = False
    vocabulary: int = 0
    length: int = 0
    skip: int = 0
    """Training samples that are held out for validation, whose words the vocabulary does not know."""
    train: int = 0
    """Training samples after those, whose words it knows."""
    tokenizers: list[TokenizerConfig] = Field(default_factory=list)
    """Of teachers that have their own: their tokens come after the data's, in the same rows."""


class _Rows:
    """A `.npy` file that grows row by row; its header is completed in the end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("wb")
        self._count = 0
        self._shape: tuple[int, ...] = ()
        self._dtype = np.dtype("u1")
        self._header = 0
        self._digest = hashlib.sha256()

    def add(self, row: Array) -> None:
        self.extend(row[None])

    def extend(self, rows: Array) -> None:
        if not self._header:
            self._shape, self._dtype = rows.shape[1:], rows.dtype
            self._write_header()
            self._header = self._file.tell()
        assert (rows.shape[1:], rows.dtype) == (self._shape, self._dtype)
        content = np.ascontiguousarray(rows).tobytes()
        self._digest.update(content)
        self._file.write(content)
        self._count += len(rows)

    def close(self) -> str:
        """Make the file whole; returns the digest of its numbers."""
        self._file.seek(0)
        self._write_header()
        assert self._file.tell() == self._header, "numpy leaves room for the count"
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return self._digest.hexdigest()

    def _write_header(self) -> None:
        description = np.lib.format.dtype_to_descr(self._dtype)
        head = {"descr": description, "fortran_order": False, "shape": (self._count, *self._shape)}
        np.lib.format.write_array_header_1_0(self._file, head)


class _Texts:
    """Texts in one file, one after the other."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w+b")
        self._ends = array("Q", [0])

    def add(self, text: str) -> None:
        self._file.write(text.encode("utf-8", "replace"))
        self._ends.append(self._file.tell())

    def read(self, places: Array) -> Iterator[str]:
        self._file.flush()
        for place in places.tolist():
            begin, end = self._ends[place], self._ends[place + 1]
            yield os.pread(self._file.fileno(), end - begin, begin).decode()

    def close(self) -> None:
        self._file.close()


def prepare(
    path: Path, profile: DatasetProfile, rule: Rule, folder: Path, poll: Callable[[], object] = lambda: None
) -> None:
    """Write the prepared form of a checked data set into an empty folder.

    `inputs.npy` (N, …), `labels.npy` and, where there are a teacher's, `logits.npy` (N, C): the training samples, then
    those of validation, then those of the test; and `form.json` with counts, a digest, of texts the tokenizer,
    and of others the mean and deviation of the training samples as they are stored.

    Args:
        poll: called now and then; what it raises ends it.

    Raises:
        DataError: the file is not the one that was checked.
        OSError: the disk is full.
    """
    if path.stat().st_size != profile.bytes:
        raise DataError("the data set's file is not the one that was checked", "dataset")
    source, _ = open_source(path, profile.options, poll, folder)
    ledger = Ledger(profile.options, source)
    texts = _Texts(folder / "texts") if source.kind == "text" else None
    rows, logits = _Rows(folder / "unordered.npy"), _Rows(folder / "unordered-logits.npy")

    held: list[Array] = [np.empty(0)]

    def encode(sample: Sample) -> None:
        if isinstance(sample.value, bytes):
            picture = open_bytes(sample.value)
            held[0] = pixels(fit_picture(picture.convert("L") if rule.grey else picture, rule.size, rule.fit)).numpy()
        elif isinstance(sample.value, np.ndarray):
            held[0] = sample.value

    def take(sample: Sample, _: int) -> None:
        if texts is not None:
            texts.add(str(sample.value))
        else:
            rows.add(held[0])
        if sample.logits is not None:
            there = sample.places
            logits.add(sample.logits if there is None else spread(sample.logits, there, len(profile.classes)))

    read_all(source, ledger, take, encode, poll)
    layout = ledger.finish()
    if layout.counts != profile.samples:
        raise DataError("the data set's file is not read as it was checked; upload it again", "dataset")
    _write(folder, profile, rule, layout, rows, logits, texts, poll)


def _write(
    folder: Path,
    profile: DatasetProfile,
    rule: Rule,
    layout: Layout,
    rows: _Rows,
    logits: _Rows,
    texts: _Texts | None,
    poll: Callable[[], object],
) -> None:
    """Everything into its order, and the notes of it."""
    order, tokenizer, digests = layout.order, None, []
    moments = Moments(profile.kind == "picture" or profile.integers)
    if texts is not None:
        tokenizer = _tokenizer(texts, layout, rule, poll)
        others = [each.tokenizer() for each in rule.tokenizers]
        digests.append(_tokens(folder / "inputs.npy", texts, order, [tokenizer, *others], poll))
        texts.close()
        (folder / "texts").unlink()
    else:
        digests.append(_ordered(rows, order, folder / "inputs.npy", poll, moments, layout.counts.train))
    digests.append(_saved(folder / "labels.npy", layout.labels[order]))
    if profile.logits.train:
        digests.append(_ordered(logits, order, folder / "logits.npy", poll))
    for left in ("unordered.npy", "unordered-logits.npy"):
        (folder / left).unlink(missing_ok=True)
    form = {
        "form": FORM,
        "samples": profile.samples.model_dump(),
        "digest": hashlib.sha256(" ".join(digests).encode()).hexdigest(),
        "tokenizer": tokenizer.document() if tokenizer is not None else None,
        **({} if texts is not None else moments.found()),
    }
    with (folder / "form.json").open("w", encoding="utf-8") as file:
        json.dump(form, file, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())


def _ordered(
    rows: _Rows,
    order: Array,
    path: Path,
    poll: Callable[[], object],
    moments: Moments | None = None,
    measured: int = 0,
) -> str:
    """The rows of a file in another order, in a new file; its digest. The first rows are measured."""
    rows.close()
    stored = StoredRows(rows.path)
    at_once = max(1, AT_ONCE * len(stored) // max(1, stored.nbytes))
    found = _Rows(path)
    for start in range(0, len(order), at_once):
        poll()
        part = stored.rows(order[start : start + at_once])
        if moments is not None and start < measured:
            moments.add(part[: measured - start])
        found.extend(part)
    return found.close()


def _saved(path: Path, values: Array) -> str:
    found = _Rows(path)
    found.extend(values)
    return found.close()


def _tokenizer(texts: _Texts, layout: Layout, rule: Rule, poll: Callable[[], object]) -> Tokenizer:
    """Of the words of the samples that are trained on alone."""
    counts: Counter[str] = Counter()
    for text in texts.read(layout.places["train"][rule.skip : rule.skip + rule.train]):
        poll()
        counts.update(cut(text))
        if len(counts) > MOST_WORDS:
            counts = Counter(dict(counts.most_common(MOST_WORDS // 2)))
    return Tokenizer.of_counts(counts, rule.vocabulary, rule.length)


def _tokens(path: Path, texts: _Texts, order: Array, tokenizers: list[Tokenizer], poll: Callable[[], object]) -> str:
    found = _Rows(path)
    for start in range(0, len(order), TEXTS_AT_ONCE):
        poll()
        batch = list(texts.read(order[start : start + TEXTS_AT_ONCE]))
        found.extend(encode_all(tokenizers, batch).numpy())
    return found.close()
