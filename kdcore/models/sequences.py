"""Pieces that the families on texts and sequences share. A sequence is (B, T, D); its view is (B, D, T, 1)."""

import torch
from torch import Tensor, nn

from kdcore.data.base import PADDING
from kdcore.models.base import ModelError


def check_sequence(input_shape: tuple[int, ...], vocabulary: int | None, family: str) -> None:
    """Raise `ModelError` unless samples are texts (T,) or sequences of vectors (T, D)."""
    if vocabulary is None and len(input_shape) != 2:
        message = f"{family} reads texts (T,) or sequences (T, D), the samples are {input_shape}"
        raise ModelError("type", f"{message}; of pictures, the view rows is a sequence")


class Embedding(nn.Module):
    """(B, T) int64 tokens -> (B, T, D); padding is a vector of zeros that nothing trains."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocabulary, width))
        nn.init.normal_(self.weight, std=width**-0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        found: Tensor = nn.functional.embedding(tokens, self.weight)
        return found * (tokens != PADDING).unsqueeze(2).to(found.dtype)


def places_of(inputs: Tensor, is_text: bool) -> Tensor:
    """(B, T) float32: 1 where a sample has something, 0 at padding; sequences of vectors have no padding."""
    return (inputs != PADDING).float() if is_text else inputs.new_ones(inputs.shape[:2])


def masked_mean(features: Tensor, present: Tensor) -> Tensor:
    """(B, T, D) and (B, T) -> (B, D): the mean over the places that are there."""
    weights = (present / present.sum(1, keepdim=True).clamp(min=1)).unsqueeze(2)
    return (features * weights.to(features.dtype)).sum(1)
