"""From stored samples to what a model reads: scaling to [0, 1] and normalisation."""

from torch import Tensor, nn, tensor

from kdcore.data import DataFacts
from kdcore.models import Network


class Normalise(nn.Module):
    """Subtracts the mean and divides by the standard deviation, per channel."""

    mean: Tensor
    std: Tensor

    def __init__(self, facts: DataFacts) -> None:
        super().__init__()
        shape = (-1, *[1] * (len(facts.input_shape) - 1))  # (C, H, W) -> (C, 1, 1)
        self.register_buffer("mean", tensor(facts.mean).view(shape))
        self.register_buffer("std", tensor(facts.std).view(shape))

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, C, …) in [0, 1] -> (B, C, …) normalised."""
        return (inputs - self.mean) / self.std


class Classifier(nn.Module):
    """What is exported: a network with its normalisation inside, from [0, 1] to logits."""

    def __init__(self, normalise: Normalise, network: Network) -> None:
        super().__init__()
        self.normalise = normalise
        self.network = network

    def forward(self, input: Tensor) -> Tensor:  # the name is the ONNX input's
        """(B, C, …) float32 in [0, 1] -> (B, classes) logits."""
        logits: Tensor = self.network(self.normalise(input))
        return logits


def unit(stored: Tensor, scale: float) -> Tensor:
    """Stored samples (B, …) uint8 -> float32 in [0, 1]."""
    return stored.float().div_(scale)
