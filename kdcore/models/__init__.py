"""Every model family, as one explicit list: a new one is a file and its two names here."""

from typing import Annotated

from pydantic import Field

from kdcore.models.base import FOREIGN, BaseModelConfig, ModelError, Network
from kdcore.models.cnn import CNNConfig
from kdcore.models.foreign import TorchvisionConfig
from kdcore.models.mlp import MLPConfig
from kdcore.models.mobilenet import MobileNetV2Config
from kdcore.models.recurrent import GRUConfig, LSTMConfig
from kdcore.models.resnet import ResNetConfig
from kdcore.models.shufflenet import ShuffleNetConfig
from kdcore.models.text_cnn import TextCNNConfig
from kdcore.models.transformer import TextTransformerConfig, ViTConfig
from kdcore.models.vgg import VGGConfig
from kdcore.models.wide_resnet import WideResNetConfig

ModelConfig = Annotated[
    MLPConfig
    | CNNConfig
    | ResNetConfig
    | WideResNetConfig
    | VGGConfig
    | MobileNetV2Config
    | ShuffleNetConfig
    | ViTConfig
    | LSTMConfig
    | GRUConfig
    | TextCNNConfig
    | TextTransformerConfig
    | TorchvisionConfig,
    Field(discriminator="type"),
]
MODELS: tuple[type[BaseModelConfig], ...] = (
    MLPConfig,
    CNNConfig,
    ResNetConfig,
    WideResNetConfig,
    VGGConfig,
    MobileNetV2Config,
    ShuffleNetConfig,
    ViTConfig,
    LSTMConfig,
    GRUConfig,
    TextCNNConfig,
    TextTransformerConfig,
    TorchvisionConfig,
)

__all__ = [
    "BaseModelConfig",
    "CNNConfig",
    "FOREIGN",
    "GRUConfig",
    "LSTMConfig",
    "MLPConfig",
    "MODELS",
    "MobileNetV2Config",
    "ModelConfig",
    "ModelError",
    "Network",
    "ResNetConfig",
    "ShuffleNetConfig",
    "TextCNNConfig",
    "TextTransformerConfig",
    "TorchvisionConfig",
    "VGGConfig",
    "ViTConfig",
    "WideResNetConfig",
]
