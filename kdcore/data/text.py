"""What the sources of texts share: their options, and the way from a file's rows to tokens."""

import csv
import gzip
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from pydantic import Field

from kdcore.data.base import BaseDataConfig, DataError, DataFacts, Dataset, Split
from kdcore.data.splits import assemble, split_facts, split_indices
from kdcore.data.tokenizer import Tokenizer, TokenizerConfig, encode_all

MOST_BYTES = 2**30
Rows = Sequence[tuple[str, int]]
"""Texts with their class."""


class TextDataConfig(BaseDataConfig):
    """Base of every source of texts."""

    vocabulary: int = Field(default=10_000, ge=3, le=1_000_000)
    """Tokens: padding, the unknown word, and the most frequent words of the samples that are trained on."""
    length: int = Field(default=64, ge=1, le=8192)
    """Tokens of a sample; longer texts lose their end."""

    def text_facts(self, classes: tuple[str, ...], train: int, test: int) -> DataFacts:
        """The facts of texts, with the published counts."""
        known = DataFacts(
            input_shape=(self.length,),
            classes=classes,
            train=train,
            validation=0,
            test=test,
            mean=(0.0,),
            std=(1.0,),
            vocabulary=self.vocabulary,
            bytes_each=4,
        )
        return split_facts(self, known, train)

    def of_rows(self, facts: DataFacts, training: Rows, test: Rows, others: Sequence[TokenizerConfig] = ()) -> Dataset:
        """The data set of the rows that were read; the vocabulary is of the samples that are trained on alone."""
        kept, _ = split_indices(self, len(training))
        tokenizer = Tokenizer.of((training[index][0] for index in kept.tolist()), self.vocabulary, self.length)
        all_of_them = [tokenizer, *(other.tokenizer() for other in others)]
        first, last = _split(training, all_of_them), _split(test, all_of_them)
        return assemble(self, facts, first, last, 1.0, tokenizer.document())


def _split(rows: Rows, tokenizers: Sequence[Tokenizer]) -> Split:
    labels = torch.tensor([label for _, label in rows], dtype=torch.int64)
    return Split(encode_all(tokenizers, [text for text, _ in rows]), labels)


def find_file(folder: Path, pattern: str, source: str) -> Path:
    """The one file that the pattern means, packed with gzip or not.

    Raises:
        DataError: there is none; or several, and none is preferred.
    """
    found = sorted(path for path in folder.glob(pattern) if path.name.endswith((".csv", ".tsv", ".csv.gz", ".tsv.gz")))
    if not found:
        raise DataError(f"{source} is not complete: put {pattern} into {folder}, packed with gzip or not")
    return found[0]


def read_rows(path: Path, delimiter: str, *, quoted: bool) -> Iterator[list[str]]:
    """The rows of a CSV or TSV file in UTF-8.

    Raises:
        DataError: it cannot be read, is no such text, or is larger than 1 GiB.
    """
    try:
        with open(path, "rb") as file:
            opened = gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file
            content = opened.read(MOST_BYTES + 1)
    except (OSError, EOFError, gzip.BadGzipFile) as error:
        raise DataError(f"{path} cannot be read ({error}); put a whole copy there") from error
    if len(content) > MOST_BYTES:
        raise DataError(f"{path} holds more than 1 GiB of text; use a part of it")
    try:
        lines = io.StringIO(content.decode("utf-8"), newline="")
        yield from csv.reader(
            lines, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE, strict=quoted
        )
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is no table of texts in UTF-8 ({error}); put a whole copy there") from error
