"""Fashion-MNIST: pieces of clothing."""

from typing import ClassVar, Literal

from kdcore.data.base import DataFacts
from kdcore.data.idx import IdxDataConfig


class FashionMNISTConfig(IdxDataConfig):
    """70,000 pieces of clothing, 28x28 grey: 60,000 to train on, 10,000 to test.

    Read from `FashionMNIST/raw` of the data directory, torchvision's layout, packed or not; downloaded where absent.
    """

    title: ClassVar[str] = "Fashion-MNIST"
    source: ClassVar[str] = "Xiao, Rasul, Vollgraf 2017, arXiv 1708.07747; MIT"
    folder: ClassVar[str] = "FashionMNIST"
    known: ClassVar[DataFacts] = DataFacts(
        input_shape=(1, 28, 28),
        classes=(
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
        train=60_000,
        validation=0,
        test=10_000,
        mean=(0.2860,),
        std=(0.3530,),
    )

    type: Literal["fashion_mnist"] = "fashion_mnist"
