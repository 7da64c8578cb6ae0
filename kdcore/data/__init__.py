"""Every data source, as one explicit list: a new one is a file and its two names here."""

from typing import Annotated

from pydantic import Field

from kdcore.data.ag_news import AGNewsConfig
from kdcore.data.base import BaseDataConfig, DataError, DataFacts, Dataset, Split
from kdcore.data.cifar import CIFAR10Config, CIFAR100Config
from kdcore.data.digits import DigitsConfig
from kdcore.data.fashion_mnist import FashionMNISTConfig
from kdcore.data.image_folder import ImageFolderConfig
from kdcore.data.mnist import MNISTConfig
from kdcore.data.sst2 import SST2Config
from kdcore.data.synthetic import SyntheticConfig
from kdcore.data.views import VIEWS, BaseViewConfig, ViewConfig, ViewError

DataConfig = Annotated[
    DigitsConfig
    | MNISTConfig
    | FashionMNISTConfig
    | CIFAR10Config
    | CIFAR100Config
    | ImageFolderConfig
    | AGNewsConfig
    | SST2Config
    | SyntheticConfig,
    Field(discriminator="type"),
]
DATA: tuple[type[BaseDataConfig], ...] = (
    DigitsConfig,
    MNISTConfig,
    FashionMNISTConfig,
    CIFAR10Config,
    CIFAR100Config,
    ImageFolderConfig,
    AGNewsConfig,
    SST2Config,
    SyntheticConfig,
)

__all__ = [
    "AGNewsConfig",
    "BaseDataConfig",
    "BaseViewConfig",
    "CIFAR100Config",
    "CIFAR10Config",
    "DATA",
    "DataConfig",
    "DataError",
    "DataFacts",
    "Dataset",
    "DigitsConfig",
    "FashionMNISTConfig",
    "ImageFolderConfig",
    "MNISTConfig",
    "SST2Config",
    "Split",
    "SyntheticConfig",
    "VIEWS",
    "ViewConfig",
    "ViewError",
]
