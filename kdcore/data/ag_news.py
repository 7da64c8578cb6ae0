"""AG News: the topics of short news."""

from pathlib import Path
from typing import ClassVar, Literal

from kdcore.data.base import DataError, DataFacts, Dataset, Places
from kdcore.data.text import Rows, TextDataConfig, find_file, read_rows

CLASSES = ("World", "Sports", "Business", "Sci/Tech")


class AGNewsConfig(TextDataConfig):
    """120,000 + 7,600 news, title and description, of four topics.

    Read from `ag_news` of the data directory, in the original form: `train*.csv` and `test.csv`, packed with gzip or
    not, without a header: class from 1, title, description. A partial copy trains on what is there.
    """

    title: ClassVar[str] = "AG News"
    source: ClassVar[str] = (
        "Zhang, Zhao, LeCun: Character-level Convolutional Networks for Text Classification, NeurIPS 2015,"
        " arXiv 1509.01626; for research and other non-commercial use"
    )

    type: Literal["ag_news"] = "ag_news"

    def facts(self) -> DataFacts:
        return self.text_facts(CLASSES, 120_000, 7_600)

    def load(self, places: Places) -> Dataset:
        folder = places.root / "ag_news"
        rows = [_read(find_file(folder, pattern, self.title)) for pattern in ("train*", "test*")]
        return self.of_rows(self.facts(), rows[0], rows[1], places.tokenizers)


def _read(path: Path) -> Rows:
    rows = []
    for number, row in enumerate(read_rows(path, ",", quoted=True), start=1):
        if len(row) != 3 or row[0] not in ("1", "2", "3", "4"):
            raise DataError(f"{path}, row {number}: a class from 1 to 4, a title and a description are wanted")
        rows.append((f"{row[1]} {row[2]}", int(row[0]) - 1))
    return rows
