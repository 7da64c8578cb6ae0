"""Texts as numbers: words and marks, the most frequent ones counted from 2; 0 is padding, 1 an unknown word."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, StringConstraints, ValidationInfo, field_validator
from torch import Tensor

from kdcore.config import Config
from kdcore.data.base import PADDING, DataFacts

UNKNOWN = 1
PATTERN = r"[a-z0-9]+|[^\sa-z0-9]"
"""A run of letters and digits, or any other single sign; of the text in lower case."""
Word = Annotated[str, StringConstraints(min_length=1, max_length=1000)]


@dataclass(frozen=True)
class Tokenizer:
    """Cuts texts into the words it knows.

    Attributes:
        words: by token, from 2.
        length: tokens of a sample; longer texts lose their end, shorter ones are filled with padding.
        vocabulary: tokens that networks know: padding, the unknown word, at least as many words, and perhaps more.
    """

    words: tuple[str, ...]
    length: int
    vocabulary: int

    @classmethod
    def of(cls, texts: Iterable[str], vocabulary: int, length: int) -> "Tokenizer":
        """The `vocabulary` - 2 most frequent words of some texts; of equally frequent ones the first by letter."""
        return cls.of_counts(Counter(word for text in texts for word in cut(text)), vocabulary, length)

    @classmethod
    def of_counts(cls, counts: Mapping[str, int], vocabulary: int, length: int) -> "Tokenizer":
        """The same, of words that were counted."""
        ranked = sorted(counts, key=lambda word: (-counts[word], word))
        return cls(tuple(ranked[: vocabulary - 2]), length, vocabulary)

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
            "vocabulary": self.vocabulary,
            "words": list(self.words),
        }


class TokenizerConfig(Config):
    """Another tokenizer than the data's own, as the `model.json` of a job holds it: `preprocessing.tokenizer`.

    Texts are cut by the same rule; which words it knows, in which order, and how many it reads of a text is its own.
    """

    lowercase: Literal[True] = True
    pattern: str = PATTERN
    padding: Literal[0] = 0
    unknown: Literal[1] = 1
    first: Literal[2] = 2
    length: int = Field(ge=1, le=8192)
    """Tokens of a sample; longer texts lose their end."""
    words: list[Word] = Field(min_length=1, max_length=1_000_000)
    """By token, from 2; in lower case, each as it is cut from a text."""
    vocabulary: int | None = Field(default=None, ge=3, le=1_000_002, validate_default=False)
    """Tokens that the network knows; left out: as many as there are words, and two."""

    @field_validator("pattern")
    @classmethod
    def _the_one(cls, value: str) -> str:
        if value != PATTERN:
            raise ValueError(f"texts are cut by {PATTERN} alone; another tokenizer cannot be read")
        return value

    @field_validator("words")
    @classmethod
    def _as_cut(cls, value: list[str]) -> list[str]:
        for place, word in enumerate(value):
            if cut(word) != [word]:
                raise ValueError(f"{word!r} (at {place}) is no word as this tokenizer cuts them: {cut(word)}")
        if len(set(value)) < len(value):
            raise ValueError(f"{Counter(value).most_common(1)[0][0]!r} is there twice; each word has one token")
        return value

    @field_validator("vocabulary")
    @classmethod
    def _room_for_all(cls, value: int | None, info: ValidationInfo) -> int | None:
        words = info.data.get("words", [])
        if value is not None and value < len(words) + 2:
            raise ValueError(
                f"{len(words)} words, padding and the unknown word are {len(words) + 2} tokens; allow as many"
            )
        return value

    @property
    def tokens(self) -> int:
        """How many there are."""
        return self.vocabulary or len(self.words) + 2

    def tokenizer(self) -> Tokenizer:
        return Tokenizer(tuple(self.words), self.length, self.tokens)

    def facts(self, facts: DataFacts) -> DataFacts:
        """What is known of texts that it has cut."""
        return replace(facts, input_shape=(self.length,), vocabulary=self.tokens)


def encode_all(tokenizers: Sequence[Tokenizer], texts: Sequence[str]) -> Tensor:
    """(N,) texts -> (N, all lengths together) int32: the tokens of each tokenizer side by side."""
    return torch.cat([tokenizer.encode(texts) for tokenizer in tokenizers], 1)


def cut(text: str) -> list[str]:
    """The words and marks of a text, in order."""
    return re.findall(PATTERN, text.lower())
