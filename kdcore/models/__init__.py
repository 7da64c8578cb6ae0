"""Every model family, as one explicit list: a new one is a file and its two names here."""

from typing import Annotated

from pydantic import Field

from kdcore.models.base import BaseModelConfig, ModelError, Network
from kdcore.models.cnn import CNNConfig
from kdcore.models.mlp import MLPConfig

ModelConfig = Annotated[MLPConfig | CNNConfig, Field(discriminator="type")]
MODELS: tuple[type[BaseModelConfig], ...] = (MLPConfig, CNNConfig)

__all__ = ["BaseModelConfig", "CNNConfig", "MLPConfig", "MODELS", "ModelConfig", "ModelError", "Network"]
