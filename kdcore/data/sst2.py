"""SST-2: whether a sentence about a film is in favour of it."""

from pathlib import Path
from typing import ClassVar, Literal

from kdcore.data.base import DataError, DataFacts, Dataset, Places
from kdcore.data.text import Rows, TextDataConfig, find_file, read_rows


class SST2Config(TextDataConfig):
    """67,349 phrases and sentences to train on, 1,821 sentences to test with.

    Read from `sst2` of the data directory, in GLUE's form: `train.tsv` and, with labels, `test.tsv`, packed with gzip
    or not, with a header: sentence, label (0 against, 1 in favour). Where there is no `test.tsv`, `dev.tsv` is taken.
    """

    title: ClassVar[str] = "SST-2"
    source: ClassVar[str] = (
        "Socher et al.: Recursive Deep Models for Semantic Compositionality Over a Sentiment Treebank, EMNLP 2013;"
        " Wang et al.: GLUE, arXiv 1804.07461"
    )

    type: Literal["sst2"] = "sst2"

    def facts(self) -> DataFacts:
        return self.text_facts(("negative", "positive"), 67_349, 1_821)

    def load(self, places: Places) -> Dataset:
        folder = places.root / "sst2"
        tested = "test*" if any(folder.glob("test*")) else "dev*"
        rows = [_read(find_file(folder, pattern, self.title)) for pattern in ("train*", tested)]
        return self.of_rows(self.facts(), rows[0], rows[1], places.tokenizers)


def _read(path: Path) -> Rows:
    rows = []
    for number, row in enumerate(read_rows(path, "\t", quoted=False), start=1):
        if number == 1 and row == ["sentence", "label"]:
            continue
        if len(row) != 2 or row[1] not in ("0", "1"):
            raise DataError(f"{path}, row {number}: a sentence and a label, 0 or 1, are wanted")
        rows.append((row[0], int(row[1])))
    return rows
