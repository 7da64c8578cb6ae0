"""Recurrent networks on texts and on sequences of vectors: LSTM and GRU."""

from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from kdcore.models.base import BaseModelConfig, Network
from kdcore.models.dropout import Dropout
from kdcore.models.sequences import Embedding, check_sequence, masked_mean, places_of


class RecurrentConfig(BaseModelConfig):
    """Base of both families."""

    embedding: int = Field(default=64, ge=1, le=8192)
    """Numbers that stand for a word; of texts only."""
    hidden: int = Field(default=128, ge=1, le=8192)
    """Numbers that each layer keeps, in each direction."""
    layers: int = Field(default=1, ge=1, le=16)
    """One on the other."""
    bidirectional: bool = False
    """Read it from both ends."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """After the embedding, between the layers and before the last layer."""

    def build(self, input_shape: tuple[int, ...], classes: int, vocabulary: int | None = None) -> Network:
        check_sequence(input_shape, vocabulary, self.type)
        return Recurrent(self, self.type, input_shape, self.classes or classes, vocabulary)


class LSTMConfig(RecurrentConfig):
    """Long short-term memory on a text's words or a sequence of vectors, then the mean over its places.

    Views: `layer_1`, … (channels, places, 1), `pooled` and `logits`. Padding takes no part in the mean.
    """

    title: ClassVar[str] = "Long short-term memory"
    source: ClassVar[str] = "Hochreiter, Schmidhuber: Long Short-Term Memory, Neural Computation 9(8), 1997"

    type: Literal["lstm"] = "lstm"


class GRUConfig(RecurrentConfig):
    """Gated recurrent units on a text's words or a sequence of vectors, then the mean over its places.

    Views: `layer_1`, … (channels, places, 1), `pooled` and `logits`. Padding takes no part in the mean.
    """

    title: ClassVar[str] = "Gated recurrent units"
    source: ClassVar[str] = "Cho et al.: Learning Phrase Representations using RNN Encoder-Decoder, arXiv 1406.1078"

    type: Literal["gru"] = "gru"


CELLS: dict[str, type[nn.LSTM] | type[nn.GRU]] = {"lstm": nn.LSTM, "gru": nn.GRU}


class Recurrent(Network):
    def __init__(
        self,
        config: RecurrentConfig,
        family: str,
        input_shape: tuple[int, ...],
        classes: int,
        vocabulary: int | None,
    ) -> None:
        super().__init__()
        self.embedding = Embedding(vocabulary, config.embedding) if vocabulary is not None else None
        width = config.embedding if vocabulary is not None else input_shape[1]
        outputs = config.hidden * (2 if config.bidirectional else 1)
        options: dict[str, Any] = {"batch_first": True, "bidirectional": config.bidirectional}
        sizes = [width, *[outputs] * (config.layers - 1)]
        self.layers = nn.ModuleList(CELLS[family](size, config.hidden, **options) for size in sizes)
        self.dropout = Dropout(config.dropout)
        self.head = nn.Linear(outputs, classes)

    def classifier(self) -> tuple[str, nn.Module]:
        return "pooled", self.head

    def views(self, inputs: Tensor) -> dict[str, Tensor]:
        views: dict[str, Tensor] = {}
        present = places_of(inputs, self.embedding is not None)  # (B, T)
        features = self.embedding(inputs) if self.embedding is not None else inputs  # (B, T, D)
        for number, layer in enumerate(self.layers, start=1):
            features, _ = layer(self.dropout(features))
            views[f"layer_{number}"] = features.transpose(1, 2).unsqueeze(3)  # (B, T, D) -> (B, D, T, 1)
        views["pooled"] = masked_mean(features, present)
        views["logits"] = self.head(self.dropout(views["pooled"]))
        return views
