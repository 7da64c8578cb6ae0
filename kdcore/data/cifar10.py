"""CIFAR-10 from its binary version; the version for Python is made of pickles and never read."""

from pathlib import Path
from typing import ClassVar, Literal

import torch

from kdcore.data.base import BaseDataConfig, DataError, DataFacts, Dataset, Split, assemble, split_facts

FOLDER = "cifar-10-batches-bin"
RECORD = 1 + 3 * 32 * 32
MOST_RECORDS = 100_000
ARCHIVE = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"


def read_records(path: Path) -> Split:
    """Read a file of the binary version: records of one label byte and 3 x 32 x 32 bytes, red first.

    Raises:
        DataError: the file is empty, or holds no whole number of records.
    """
    try:
        size = path.stat().st_size
        if size == 0 or size % RECORD or size > RECORD * MOST_RECORDS:
            raise DataError(
                f"{path} has {size:,} bytes, no whole number of {RECORD}-byte records"
                f" (1 to {MOST_RECORDS:,}); put a whole copy there"
            )
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error}); put a whole copy there") from error
    records = torch.frombuffer(bytearray(content), dtype=torch.uint8).reshape(-1, RECORD)
    return Split(records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].long())


class CIFAR10Config(BaseDataConfig):
    """60,000 photos of ten kinds of things, 32x32 RGB: 50,000 to train on, 10,000 to test.

    Read from `cifar-10-batches-bin` of the data directory, the binary version's layout: any of
    `data_batch_1.bin` to `data_batch_5.bin`, whole or cut at a record, and `test_batch.bin`. The plan
    counts the published 50,000 training samples; a partial copy trains on what is there.
    """

    title: ClassVar[str] = "CIFAR-10"
    source: ClassVar[str] = "Krizhevsky: Learning Multiple Layers of Features from Tiny Images, 2009"
    known: ClassVar[DataFacts] = DataFacts(
        input_shape=(3, 32, 32),
        classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        train=50_000,
        validation=0,
        test=10_000,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
    )

    type: Literal["cifar10"] = "cifar10"

    def facts(self) -> DataFacts:
        return split_facts(self, self.known, self.known.train)

    def load(self, root: Path, *, download: bool) -> Dataset:
        folder = root / FOLDER
        batches = [folder / f"data_batch_{number}.bin" for number in range(1, 6)]
        present = [path for path in batches if path.exists()]
        test = folder / "test_batch.bin"
        if not present or not test.exists():
            lacking = ([] if present else ["data_batch_1.bin to data_batch_5.bin"]) + (
                [] if test.exists() else ["test_batch.bin"]
            )
            raise DataError(
                f"CIFAR-10 is not complete: put {' and '.join(lacking)} into {folder}"
                f" (they are in {ARCHIVE}; some of the data batches are enough)"
            )
        parts = [read_records(path) for path in present]
        training = Split(torch.cat([part.inputs for part in parts]), torch.cat([part.labels for part in parts]))
        return assemble(self, self.known, training, read_records(test), scale=255.0)
