"""The batches of an epoch: samples are gathered, scaled and read for several steps at once.

For a small network these few operations, each on little, would take longer than its forward pass.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

from torch import Tensor

from kdcore.data import Dataset, rows_at
from kdcore.inputs import Reader, unit

Change = Callable[[Tensor, Tensor], Tensor]

FLOAT = 4
AT_ONCE = 2 * 2**20
"""Bytes of samples that are gathered at once, at most, unless one batch is larger: they stay in a CPU's cache."""


class Drawn(NamedTuple):
    """One step's samples.

    Attributes:
        places: (B,) in the training split.
        inputs: (B, …) float32 in [0, 1].
        read: (B, …) as the trained network reads them.
        labels: (B, …) theirs.
    """

    places: Tensor
    inputs: Tensor
    read: Tensor
    labels: Tensor


def batches(
    data: Dataset, labels: Tensor, reader: Reader, order: Tensor, size: int, change: Change | None = None
) -> Iterator[Drawn]:
    """The training samples at the places `order`, `size` at a time, the last batch being what is left.

    Every value is computed of its own sample alone: it does not matter which are gathered together.

    Args:
        labels: (N, …) of all training samples, as the stage sees them.
        change: (B, …) in [0, 1], and their places (B,) -> (B, …), what a step does to its samples, called when it is
            due.
    """
    stored = data.train.inputs
    sample = FLOAT * max(stored[:1].numel(), math.prod(reader.facts.input_shape))
    together = max(1, AT_ONCE // (sample * size)) * size if change is None else size
    for start in range(0, len(order), together):
        some = order[start : start + together]
        inputs = unit(rows_at(stored, some), data.scale)
        if change is not None:
            inputs = change(inputs, some)
        found = (some, inputs, reader(inputs), rows_at(labels, some))
        yield from map(Drawn, *(each.split(size) for each in found))
