"""CIFAR-10 and CIFAR-100 from their binary versions; those for Python are made of pickles and never read."""

from pathlib import Path
from typing import ClassVar, Literal

import torch

from kdcore.data.base import DataError, DataFacts, Dataset, PictureDataConfig, Places, Split
from kdcore.data.splits import assemble, split_facts

PIXELS = 3 * 32 * 32
MOST_RECORDS = 100_000
ARCHIVES = "https://www.cs.toronto.edu/~kriz"


def read_records(path: Path, labels: int = 1) -> Split:
    """Read a file of the binary version: records of label bytes and 3 x 32 x 32 bytes, red first.

    Args:
        labels: bytes of labels in a record, of which the last one is taken.

    Raises:
        DataError: the file is empty, or holds no whole number of records.
    """
    record = labels + PIXELS
    try:
        size = path.stat().st_size
        if size == 0 or size % record or size > record * MOST_RECORDS:
            raise DataError(
                f"{path} has {size:,} bytes, no whole number of {record}-byte records"
                f" (1 to {MOST_RECORDS:,}); put a whole copy there"
            )
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error}); put a whole copy there") from error
    records = torch.frombuffer(bytearray(content), dtype=torch.uint8).reshape(-1, record)
    return Split(records[:, labels:].reshape(-1, 3, 32, 32), records[:, labels - 1].long())


class CifarDataConfig(PictureDataConfig):
    """Base of both: `train_files` and `test_file` of `folder`, of which some training files are enough."""

    folder: ClassVar[str]
    train_files: ClassVar[tuple[str, ...]]
    test_file: ClassVar[str]
    archive: ClassVar[str]
    label_bytes: ClassVar[int] = 1
    known: ClassVar[DataFacts]

    def facts(self) -> DataFacts:
        return split_facts(self, self.of_task(self.known), self.known.train)

    def load(self, places: Places) -> Dataset:
        folder = places.root / self.folder
        present = [folder / name for name in self.train_files if (folder / name).exists()]
        test = folder / self.test_file
        if not present or not test.exists():
            several = f"{self.train_files[0]} to {self.train_files[-1]}"
            wanted = several if len(self.train_files) > 1 else self.train_files[0]
            lacking = ([] if present else [wanted]) + ([] if test.exists() else [self.test_file])
            some = "; some of the data batches are enough" if len(self.train_files) > 1 else ""
            raise DataError(
                f"{self.title} is not complete: put {' and '.join(lacking)} into {folder}"
                f" (they are in {ARCHIVES}/{self.archive}{some})"
            )
        parts = [read_records(path, self.label_bytes) for path in present]
        training = Split(torch.cat([part.inputs[:] for part in parts]), torch.cat([part.labels for part in parts]))
        return assemble(self, self.of_task(self.known), training, read_records(test, self.label_bytes), scale=255.0)


class CIFAR10Config(CifarDataConfig):
    """60,000 photos of ten kinds of things, 32x32 RGB: 50,000 to train on, 10,000 to test.

    Read from `cifar-10-batches-bin` of the data directory, the binary version's layout: any of
    `data_batch_1.bin` to `data_batch_5.bin`, whole or cut at a record, and `test_batch.bin`. The plan
    counts the published 50,000 training samples; a partial copy trains on what is there.
    """

    title: ClassVar[str] = "CIFAR-10"
    source: ClassVar[str] = "Krizhevsky: Learning Multiple Layers of Features from Tiny Images, 2009"
    folder: ClassVar[str] = "cifar-10-batches-bin"
    train_files: ClassVar[tuple[str, ...]] = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
    test_file: ClassVar[str] = "test_batch.bin"
    archive: ClassVar[str] = "cifar-10-binary.tar.gz"
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


FINE_CLASSES = (
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle"
    " caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant"
    " flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man"
    " maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree"
    " plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper"
    " snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train"
    " trout tulip turtle wardrobe whale willow_tree wolf woman worm"
)


class CIFAR100Config(CifarDataConfig):
    """60,000 photos of a hundred kinds of things, 32x32 RGB: 50,000 to train on, 10,000 to test.

    Read from `cifar-100-binary` of the data directory: `train.bin` and `test.bin`, whole or cut at a record. The labels
    are the hundred fine classes.
    """

    title: ClassVar[str] = "CIFAR-100"
    source: ClassVar[str] = "Krizhevsky: Learning Multiple Layers of Features from Tiny Images, 2009"
    folder: ClassVar[str] = "cifar-100-binary"
    train_files: ClassVar[tuple[str, ...]] = ("train.bin",)
    test_file: ClassVar[str] = "test.bin"
    archive: ClassVar[str] = "cifar-100-binary.tar.gz"
    label_bytes: ClassVar[int] = 2
    """The coarse class, then the fine one."""
    known: ClassVar[DataFacts] = DataFacts(
        input_shape=(3, 32, 32),
        classes=tuple(FINE_CLASSES.split()),
        train=50_000,
        validation=0,
        test=10_000,
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
    )

    type: Literal["cifar100"] = "cifar100"
