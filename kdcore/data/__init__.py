"""Every data source, as one explicit list: a new one is a file and its two names here. What
installed packages add is appended (`kdcore.plugins`)."""

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from kdcore.data.ag_news import AGNewsConfig
from kdcore.data.base import CACHE_BYTES, BaseDataConfig, DataError, DataFacts, Dataset, Places, Split
from kdcore.data.cifar import CIFAR10Config, CIFAR100Config
from kdcore.data.digits import DigitsConfig
from kdcore.data.fashion_mnist import FashionMNISTConfig
from kdcore.data.image_folder import ImageFolderConfig
from kdcore.data.mnist import MNISTConfig
from kdcore.data.sst2 import SST2Config
from kdcore.data.stored import StoredRows, rows_at
from kdcore.data.synthetic import SyntheticConfig
from kdcore.data.tokenizer import TokenizerConfig
from kdcore.data.upload import UploadConfig
from kdcore.data.views import VIEWS, BaseViewConfig, ViewConfig, ViewError
from kdcore.plugins import union, with_plugins

DataConfig = Annotated[
    DigitsConfig
    | MNISTConfig
    | FashionMNISTConfig
    | CIFAR10Config
    | CIFAR100Config
    | ImageFolderConfig
    | AGNewsConfig
    | SST2Config
    | SyntheticConfig
    | UploadConfig,
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
    UploadConfig,
)
if not TYPE_CHECKING:
    DATA = with_plugins("data", BaseDataConfig, DATA)
    DataConfig = union(DATA)

__all__ = [
    "AGNewsConfig",
    "BaseDataConfig",
    "BaseViewConfig",
    "CIFAR100Config",
    "CACHE_BYTES",
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
    "Places",
    "SST2Config",
    "Split",
    "StoredRows",
    "SyntheticConfig",
    "TokenizerConfig",
    "UploadConfig",
    "VIEWS",
    "ViewConfig",
    "ViewError",
    "rows_at",
]
