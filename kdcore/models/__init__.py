"""Every model family, as one explicit list: a new one is a file and its two names here."""

from typing import Annotated

from pydantic import Field

from kdcore.models.base import BaseModelConfig, ModelError, Network
from kdcore.models.cnn import CNNConfig
from kdcore.models.mlp import MLPConfig
from kdcore.models.recurrent import GRUConfig, LSTMConfig
from kdcore.models.resnet import ResNetConfig
from kdcore.models.text_cnn import TextCNNConfig
from kdcore.models.transformer import TextTransformerConfig, ViTConfig
from kdcore.models.wide_resnet import WideResNetConfig

ModelConfig = Annotated[
    MLPConfig
    | CNNConfig
    | ResNetConfig
    | WideResNetConfig
    | ViTConfig
    | LSTMConfig
    | GRUConfig
    | TextCNNConfig
    | TextTransformerConfig,
    Field(discriminator="type"),
]
MODELS: tuple[type[BaseModelConfig], ...] = (
    MLPConfig,
    CNNConfig,
    ResNetConfig,
    WideResNetConfig,
    ViTConfig,
    LSTMConfig,
    GRUConfig,
    TextCNNConfig,
    TextTransformerConfig,
)

__all__ = [
    "BaseModelConfig",
    "CNNConfig",
    "GRUConfig",
    "LSTMConfig",
    "MLPConfig",
    "MODELS",
    "ModelConfig",
    "ModelError",
    "Network",
    "ResNetConfig",
    "TextCNNConfig",
    "TextTransformerConfig",
    "ViTConfig",
    "WideResNetConfig",
]
