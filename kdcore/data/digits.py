"""Digits: scikit-learn's small handwritten digits, which come with its installation."""

import importlib.util
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch

from kdcore.data.base import DataError, DataFacts, Dataset, PictureDataConfig, Places, Split
from kdcore.data.splits import assemble, split_facts

SAMPLES, TEST = 1797, 360


def _read() -> "np.ndarray[tuple[int, int], np.dtype[np.uint8]]":
    """(N, 65) pixels and label. The file alone is read: to import scikit-learn for it takes a second."""
    package = importlib.util.find_spec("sklearn")
    if package is None or package.origin is None:
        raise DataError("digits come with scikit-learn; install it: pip install scikit-learn")
    path = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    try:
        return np.loadtxt(path, delimiter=",", dtype=np.uint8)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); install scikit-learn again") from error


class DigitsConfig(PictureDataConfig):
    """1,797 handwritten digits, 8x8 grey, in scikit-learn's installation: no file, no download.

    There is no official test set: 360 samples (20%), drawn once by a fixed permutation, are the test split,
    the same for every job and seed.
    """

    title: ClassVar[str] = "Digits"
    source: ClassVar[str] = (
        "E. Alpaydin, C. Kaynak: Optical Recognition of Handwritten Digits, UCI 1998 (its test set); CC BY 4.0"
    )
    known: ClassVar[DataFacts] = DataFacts(
        input_shape=(1, 8, 8),
        classes=("0", "1", "2", "3", "4", "5", "6", "7", "8", "9"),
        train=SAMPLES - TEST,
        validation=0,
        test=TEST,
        mean=(0.3056,),
        std=(0.3761,),
    )

    type: Literal["digits"] = "digits"

    def facts(self) -> DataFacts:
        return split_facts(self, self.of_task(self.known), self.known.train)

    def load(self, places: Places) -> Dataset:
        rows = torch.from_numpy(_read())
        samples = Split(rows[:, :-1].reshape(-1, 1, 8, 8), rows[:, -1].long())  # (N, 64) -> (N, 1, 8, 8)
        order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(0))
        test, rest = order[:TEST].sort().values, order[TEST:].sort().values
        training = Split(samples.inputs[rest], samples.labels[rest])
        return assemble(
            self, self.of_task(self.known), training, Split(samples.inputs[test], samples.labels[test]), scale=16.0
        )
