"""MNIST: handwritten digits."""

from typing import ClassVar, Literal

from kdcore.data.base import DataFacts
from kdcore.data.idx import IdxDataConfig


class MNISTConfig(IdxDataConfig):
    """70,000 handwritten digits, 28x28 grey: 60,000 to train on, 10,000 to test.

    Read from `MNIST/raw` of the data directory, torchvision's layout, packed or not; downloaded where absent.
    """

    title: ClassVar[str] = "MNIST"
    source: ClassVar[str] = "LeCun, Cortes, Burges: The MNIST database of handwritten digits, 1998; CC BY-SA 3.0"
    folder: ClassVar[str] = "MNIST"
    known: ClassVar[DataFacts] = DataFacts(
        input_shape=(1, 28, 28),
        classes=("0", "1", "2", "3", "4", "5", "6", "7", "8", "9"),
        train=60_000,
        validation=0,
        test=10_000,
        mean=(0.1307,),
        std=(0.3081,),
    )

    type: Literal["mnist"] = "mnist"
