"""Texts as numbers: words and marks, the most frequent ones counted from 2; 0 is padding, 1 an unknown word."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdcore.data.base import PADDING

UNKNOWN = 1
PATTERN = r"[a-z0-9]+|[^\sa-z0-9]"
"""A run of letters and digits, or any other single sign; of the text in lower case."""


@dataclass(frozen=True)
class Tokenizer:
    """Cuts texts into the words it knows.

    Attributes:
        words: by token, from 2.
        length: tokens of a sample; longer texts lose their end, shorter ones are filled with padding.
    """

    words: tuple[str, ...]
    length: int

    @classmethod
    def of(cls, texts: Iterable[str], vocabulary: int, length: int) -> "Tokenizer":
        """The `vocabulary` - 2 most frequent words of some texts; of equally frequent ones the first by letter."""
        counts = Counter(word for text in texts for word in cut(text))
        ranked = sorted(counts, key=lambda word: (-counts[word], word))
        return cls(tuple(ranked[: vocabulary - 2]), length)

    def encode(self, texts: Sequence[str]) -> Tensor:
        """(N,) texts -> (N, length) int32."""
        numbers = {word: token for token, word in enumerate(self.words, start=2)}
        tokens = torch.full((len(texts), self.length), PADDING, dtype=torch.int32)
        for row, text in enumerate(texts):
            found = [numbers.get(word, UNKNOWN) for word in cut(text)[: self.length]] or [UNKNOWN]
            tokens[row, : len(found)] = torch.tensor(found, dtype=torch.int32)
        return tokens

    def document(self) -> dict[str, Any]:
        """What model.json says, enough to cut a text without this project."""
        return {
            "lowercase": True,
            "pattern": PATTERN,
            "padding": PADDING,
            "unknown": UNKNOWN,
            "first": 2,
            "length": self.length,
            "words": list(self.words),
        }


def cut(text: str) -> list[str]:
    """The words and marks of a text, in order."""
    return re.findall(PATTERN, text.lower())
