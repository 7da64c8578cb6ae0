"""Every model family, as one explicit list: a new one is a file and its two names here. What
installed packages add is appended (`kdcore.plugins`)."""

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from kdcore.models.base import FOREIGN, BaseModelConfig, ModelError, Network
from kdcore.models.cnn import CNNConfig
from kdcore.models.foreign import TorchvisionConfig
from kdcore.models.http import HttpConfig
from kdcore.models.mapped import mapped
from kdcore.models.mlp import MLPConfig
from kdcore.models.mobilenet import MobileNetV2Config
from kdcore.models.onnx import OnnxConfig, OnnxNetwork
from kdcore.models.precomputed import AnswersConfig, LogitsConfig, Precomputed
from kdcore.models.recurrent import GRUConfig, LSTMConfig
from kdcore.models.resnet import ResNetConfig
from kdcore.models.sequential import SequentialConfig
from kdcore.models.shufflenet import ShuffleNetConfig
from kdcore.models.text_cnn import TextCNNConfig
from kdcore.models.timm import TimmConfig
from kdcore.models.transformer import TextTransformerConfig, ViTConfig
from kdcore.models.vgg import VGGConfig
from kdcore.models.wide_resnet import WideResNetConfig
from kdcore.plugins import union, with_plugins

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
    | SequentialConfig
    | TorchvisionConfig
    | TimmConfig
    | OnnxConfig
    | LogitsConfig
    | HttpConfig,
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
    SequentialConfig,
    TorchvisionConfig,
    TimmConfig,
    OnnxConfig,
    LogitsConfig,
    HttpConfig,
)
if not TYPE_CHECKING:
    MODELS = with_plugins("model", BaseModelConfig, MODELS)
    ModelConfig = union(MODELS)

__all__ = [
    "AnswersConfig",
    "BaseModelConfig",
    "CNNConfig",
    "FOREIGN",
    "GRUConfig",
    "HttpConfig",
    "LSTMConfig",
    "LogitsConfig",
    "MLPConfig",
    "MODELS",
    "MobileNetV2Config",
    "ModelConfig",
    "ModelError",
    "Network",
    "OnnxConfig",
    "OnnxNetwork",
    "Precomputed",
    "ResNetConfig",
    "SequentialConfig",
    "ShuffleNetConfig",
    "TextCNNConfig",
    "TextTransformerConfig",
    "TimmConfig",
    "TorchvisionConfig",
    "VGGConfig",
    "ViTConfig",
    "WideResNetConfig",
    "mapped",
]
