"""Digits: scikit-learn's small handwritten digits, which come with its installation."""

from pathlib import Path
from typing import ClassVar, Literal

import torch

from kdcore.data.base import BaseDataConfig, DataError, DataFacts, Dataset, Split, assemble, split_facts

SAMPLES, TEST = 1797, 360


class DigitsConfig(BaseDataConfig):
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
        return split_facts(self, self.known, self.known.train)

    def load(self, root: Path, *, download: bool) -> Dataset:
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise DataError("digits come with scikit-learn; install it: pip install scikit-learn") from error
        images, labels = load_digits(return_X_y=True)
        samples = Split(
            torch.from_numpy(images).reshape(-1, 1, 8, 8).to(torch.uint8),  # (N, 64) -> (N, 1, 8, 8)
            torch.from_numpy(labels).long(),
        )
        order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(0))
        test, rest = order[:TEST].sort().values, order[TEST:].sort().values
        training = Split(samples.inputs[rest], samples.labels[rest])
        return assemble(self, self.known, training, Split(samples.inputs[test], samples.labels[test]), scale=16.0)
