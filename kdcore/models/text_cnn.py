"""Convolutions over the words of a text, side by side."""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from kdcore.models.base import BaseModelConfig, Network
from kdcore.models.dropout import Dropout
from kdcore.models.sequences import Embedding, check_sequence

Size = Annotated[int, Field(ge=1, le=31)]


class TextCNNConfig(BaseModelConfig):
    """Convolutions of several widths over the words, each followed by the largest value over the text.

    Views: `conv` (all channels, places, 1), `pooled` and `logits`.
    """

    title: ClassVar[str] = "Convolutional network for texts"
    source: ClassVar[str] = (
        "Kim: Convolutional Neural Networks for Sentence Classification, EMNLP 2014, arXiv 1408.5882"
    )

    type: Literal["text_cnn"] = "text_cnn"
    embedding: int = Field(default=64, ge=1, le=8192)
    """Numbers that stand for a word; of texts only."""
    channels: int = Field(default=64, ge=1, le=8192)
    """Of each width of convolution."""
    sizes: list[Size] = Field(default=[3, 5, 7], min_length=1, max_length=16)
    """Words that the convolutions span; odd ones keep the places aligned."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Before the last layer."""

    def build(self, input_shape: tuple[int, ...], classes: int, vocabulary: int | None = None) -> Network:
        check_sequence(input_shape, vocabulary, self.type)
        return TextCNN(self, input_shape, self.classes or classes, vocabulary)


class TextCNN(Network):
    def __init__(
        self, config: TextCNNConfig, input_shape: tuple[int, ...], classes: int, vocabulary: int | None
    ) -> None:
        super().__init__()
        self.embedding = Embedding(vocabulary, config.embedding) if vocabulary is not None else None
        width = config.embedding if vocabulary is not None else input_shape[1]
        self.convolutions = nn.ModuleList(
            nn.Conv1d(width, config.channels, size, padding="same") for size in config.sizes
        )
        self.dropout = Dropout(config.dropout)
        self.head = nn.Linear(config.channels * len(config.sizes), classes)

    def classifier(self) -> tuple[str, nn.Module]:
        return "pooled", self.head

    def views(self, inputs: Tensor) -> dict[str, Tensor]:
        features = self.embedding(inputs) if self.embedding is not None else inputs  # (B, T, D)
        features = features.transpose(1, 2)
        found = torch.cat([convolution(features) for convolution in self.convolutions], 1).relu()  # (B, C, T)
        pooled = found.amax(2)
        return {"conv": found.unsqueeze(3), "pooled": pooled, "logits": self.head(self.dropout(pooled))}
