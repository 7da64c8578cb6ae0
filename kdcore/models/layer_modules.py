"""The modules of a `sequential` model that torch does not have as they are needed: on sequences (B, T, D)."""

from collections.abc import Iterable
from typing import Literal

from torch import Tensor, nn

from kdcore.models.sequences import masked_mean


class SequenceConv(nn.Conv1d):
    def forward(self, input: Tensor) -> Tensor:  # the name is torch's
        """(B, T, D) -> (B, T', channels)."""
        return super().forward(input.transpose(1, 2)).transpose(1, 2)


class SequenceNorm(nn.BatchNorm1d):
    def forward(self, input: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        return super().forward(input.transpose(1, 2)).transpose(1, 2)


class OverPlaces(nn.Module):
    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, features: Tensor) -> Tensor:
        """(B, T, D) -> (B, T', D)."""
        pooled: Tensor = self.pool(features.transpose(1, 2))
        return pooled.transpose(1, 2)


class LSTM(nn.LSTM):
    def forward(self, features: Tensor) -> Tensor:  # type: ignore[override]
        """(B, T, D) -> (B, T, hidden)."""
        out: Tensor = super().forward(features)[0]
        return out


class GRU(nn.GRU):
    def forward(self, features: Tensor) -> Tensor:  # type: ignore[override]
        """(B, T, D) -> (B, T, hidden)."""
        out: Tensor = super().forward(features)[0]
        return out


class GlobalPool(nn.Module):
    def __init__(self, by: Literal["avg", "max"]) -> None:
        super().__init__()
        self.by = by

    def forward(self, features: Tensor, present: Tensor | None) -> Tensor:
        """(B, C, H, W) -> (B, C); (B, T, D), and (B, T) where words are, -> (B, D)."""
        places = (2, 3) if features.ndim == 4 else (1,)
        if self.by == "max":
            return features.amax(places)
        if present is not None and present.shape[1:] == features.shape[1:2] and features.ndim == 3:
            return masked_mean(features, present)
        return features.mean(places)


class Residual(nn.Module):
    """What some layers make of the features, and what the shortcut makes of them, added."""

    def __init__(self, layers: list[nn.Module], shortcut: list[nn.Module]) -> None:
        super().__init__()
        self.layers, self.shortcut = nn.ModuleList(layers), nn.ModuleList(shortcut)

    def forward(self, features: Tensor, present: Tensor | None) -> Tensor:
        """(B, …) -> (B, …)."""
        return run(self.layers, features, present) + run(self.shortcut, features, present)


class Chain(nn.Module):
    """Layers one after the other."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, features: Tensor, present: Tensor | None) -> Tensor:
        """(B, …) -> (B, …)."""
        return run(self.layers, features, present)


def run(layers: Iterable[nn.Module], features: Tensor, present: Tensor | None) -> Tensor:
    """(B, …) -> (B, …); `present`: (B, T), 1 where a text has a word, None of other data."""
    for layer in layers:
        features = layer(features, present) if isinstance(layer, (GlobalPool, Residual, Chain)) else layer(features)
    return features
