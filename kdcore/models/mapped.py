"""A teacher whose outputs are more classes than the data has, or in another order."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kdcore.models.base import Network


class Choose(nn.Module):
    """(B, C) -> (B, len(places)): the columns at these places."""

    places: Tensor

    def __init__(self, places: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("places", torch.tensor(places), persistent=False)

    def forward(self, logits: Tensor) -> Tensor:
        return logits.index_select(1, self.places)


class Mapped(Network):
    """A network whose logits are cut to the data's classes, in their order: whoever reads them sees only these."""

    def __init__(self, network: Network, places: Sequence[int]) -> None:
        super().__init__()
        self.network, self.choose = network, Choose(places)

    def views(self, inputs: Tensor) -> dict[str, Tensor]:
        views = self.network.views(inputs)
        return views | {"logits": self.choose(views["logits"])}

    def norm_before(self, layer: str) -> nn.BatchNorm2d | None:
        return self.network.norm_before(layer)

    def classifier(self) -> tuple[str, nn.Module] | None:
        found = self.network.classifier()
        return None if found is None else (found[0], nn.Sequential(found[1], self.choose))

    def output_bias(self) -> nn.Parameter | None:
        return None


def mapped(network: Network, theirs: Sequence[str] | None, ours: Sequence[str]) -> Network:
    """The network as it answers for the data's classes.

    Args:
        theirs: the names of its outputs, in order, every one of `ours` among them; None: its outputs are `ours`.
    """
    if theirs is None or list(theirs) == list(ours):
        return network
    return Mapped(network, [list(theirs).index(name) for name in ours])
