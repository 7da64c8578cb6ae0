"""From stored samples to what a model reads: scaling to [0, 1], its view of them, normalisation."""

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor, nn, tensor

from kdcore.data import BaseViewConfig, DataFacts, TokenizerConfig
from kdcore.models import Network


class Normalise(nn.Module):
    """Subtracts the mean and divides by the standard deviation, per channel or feature; leaves tokens alone."""

    mean: Tensor
    std: Tensor

    def __init__(self, facts: DataFacts) -> None:
        super().__init__()
        shape = facts.input_shape
        # (C, H, W) -> (C, 1, 1); of a sequence (T, D), one each of the D; one number is the same for all
        after = len(shape) - 1 if len(shape) == 3 else 0
        self.register_buffer("mean", tensor(facts.mean).view(-1, *[1] * after))
        self.register_buffer("std", tensor(facts.std).view(-1, *[1] * after))
        self.is_text = facts.vocabulary is not None

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, …) in [0, 1] -> (B, …) normalised."""
        return inputs if self.is_text else (inputs - self.mean) / self.std


class Reader(nn.Module):
    """What a network does with a sample before its first layer: its view of it, normalised.

    Attributes:
        facts: of the samples as the network sees them.
        normalise: the second half, which is exported with the network; the view is not.
        columns: which tokens of a stored text are the network's: teachers may have their own tokenizers.
    """

    def __init__(self, facts: DataFacts, view: BaseViewConfig | None, columns: slice = slice(None)) -> None:
        super().__init__()
        self.view, self.columns = view, columns
        self.facts = view.facts(facts) if view is not None else facts
        self.normalise = Normalise(self.facts)

    def seen(self, inputs: Tensor) -> Tensor:
        """(B, …) whole samples in [0, 1] -> (B, …) the view of them, which an exported network reads."""
        if self.columns != slice(None):
            inputs = inputs[:, self.columns]
        return self.view.apply(inputs, self.facts) if self.view is not None else inputs

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, …) whole samples in [0, 1] -> (B, …) what the network reads."""
        read: Tensor = self.normalise(self.seen(inputs))
        return read


def readers(
    facts: DataFacts,
    student: BaseViewConfig | None,
    teachers: Sequence[tuple[BaseViewConfig | None, TokenizerConfig | None]],
) -> tuple[Reader, list[Reader]]:
    """The student's and each teacher's, of whole samples as they are stored: of texts the tokens of the data's own
    tokenizer, then those of each teacher that has another.

    Args:
        facts: of the data, as its own tokenizer cuts it.
        teachers: the view and the tokenizer of each.
    """
    if all(tokenizer is None for _, tokenizer in teachers):
        return Reader(facts, student), [Reader(facts, view) for view, _ in teachers]
    end = facts.input_shape[0]
    own, found = slice(0, end), []
    for view, tokenizer in teachers:
        if tokenizer is None:
            found.append(Reader(facts, view, own))
        else:
            found.append(Reader(tokenizer.facts(facts), view, slice(end, end + tokenizer.length)))
            end += tokenizer.length
    return Reader(facts, student, own), found


class Classifier(nn.Module):
    """What is exported: a network with its normalisation inside, from [0, 1], or tokens, to logits."""

    def __init__(self, normalise: nn.Module, network: Network) -> None:
        super().__init__()
        self.normalise = normalise
        self.network = network

    def forward(self, input: Tensor) -> Tensor:  # the name is the ONNX input's
        """(B, C, …) float32 in [0, 1] or (B, T) int64 -> (B, classes) logits."""
        logits: Tensor = self.network(self.normalise(input))
        return logits


def unit(stored: Tensor, scale: float) -> Tensor:
    """Stored samples (B, …) -> float32 in [0, 1]; tokens, which are stored as int32, -> int64."""
    if stored.dtype == torch.int32:
        return stored.long()
    return stored.float().div_(scale) if scale != 1 else stored.float()


def example_inputs(facts: DataFacts, batch: int, generator: torch.Generator | None = None) -> Tensor:
    """Made-up samples as an exported model reads them: (batch, …), zeros where there is no generator."""
    shape = (batch, *facts.input_shape)
    if facts.vocabulary is not None:
        high = facts.vocabulary if generator is not None else 1
        return torch.randint(0, high, shape, generator=generator)
    return torch.rand(shape, generator=generator) if generator is not None else torch.zeros(shape)


@torch.no_grad()
def view_shapes(model: Network, facts: DataFacts) -> dict[str, tuple[int, ...]]:
    """The shapes of a model's views, without the batch; `facts` are of what it reads."""
    device = next(chain(model.parameters(), model.buffers())).device
    modes = [(module, module.training) for module in model.modules()]
    views = model.eval().views(example_inputs(facts, 1).to(device))
    for module, training in modes:
        module.training = training
    return {name: tuple(view.shape[1:]) for name, view in views.items()}
