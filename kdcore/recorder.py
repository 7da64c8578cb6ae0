"""The training metrics of a stage: evenly thinned, and checked to be finite at every step."""

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from types import MappingProxyType

import torch
from torch import Tensor

from kdcore.errors import diverged
from kdcore.losses import LossConfig
from kdcore.reporter import Reporter

READ_SECONDS = 0.1
READ_STEPS = 64
"""Between two reads, whichever comes first: a GPU waits for each, and a small step on a CPU is lengthened by it."""


def term_names(losses: Sequence[LossConfig]) -> list[str]:
    """The losses' types; from the second of a type on with a number: `kd`, `kd-2`."""
    seen: Counter[str] = Counter()
    names = []
    for loss in losses:
        seen[loss.type] += 1
        names.append(loss.type if seen[loss.type] == 1 else f"{loss.type}-{seen[loss.type]}")
    return names


class Recorder:
    """Reports each term raw and weighted, their sum, the learning rate and the gradient norm.

    Every `ceil(steps / points)`-th step is kept, and the last; which ones depends on nothing else,
    so a resumed stage keeps the same. Values stay on the device until `flush`.
    """

    def __init__(
        self, reporter: Reporter, stage: str, losses: Sequence[LossConfig], *, steps: int, points: int
    ) -> None:
        self._reporter = reporter
        self._stage = stage
        self._terms = term_names(losses)
        self._steps = steps
        self._stride = math.ceil(steps / points)
        self._read = time.monotonic()
        self._pending: list[tuple[int, float, Sequence[float], list[Tensor], list[str]]] = []

    def add(
        self,
        step: int,
        rate: float,
        weights: Sequence[float],
        values: Sequence[Tensor],
        extras: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> None:
        """Note one step.

        Args:
            step: counted within the stage, from 1.
            rate: the learning rate that was used.
            weights: of each term in this step.
            values: scalars: each term's raw loss, and the gradient norm where it is clipped.
            extras: what else the terms want watched, scalars by name.

        Raises:
            TrainingError: `diverged`, once a noted value is not finite.
        """
        watched = [value.detach().clone() for value in extras.values()]  # a term writes over what it keeps
        scalars = [*(value.detach() for value in values), *watched]
        self._pending.append((step, rate, weights, scalars, list(extras)))
        if len(self._pending) >= READ_STEPS or time.monotonic() - self._read >= READ_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Read what is pending from the device in one go, check it and report the kept steps."""
        if not self._pending:
            return
        pending, self._pending, self._read = self._pending, [], time.monotonic()
        read = iter(torch.stack([value for _, _, _, scalars, _ in pending for value in scalars]).tolist())
        for step, rate, weights, scalars, extras in pending:
            row = list(islice(read, len(scalars)))
            core = row[: len(row) - len(extras)]
            self._check(step, core)
            if step % self._stride == 0 or step == self._steps:
                named = self._named(rate, weights, core)
                named |= {f"train/{name}": value for name, value in zip(extras, row[len(core) :], strict=True)}
                self._reporter.metrics(self._stage, step, named)

    def _check(self, step: int, row: list[float]) -> None:
        what = [*(f"the loss term {name!r}" for name in self._terms), "the gradient"]
        for name, value in zip(what, row, strict=False):
            if not math.isfinite(value):
                raise diverged(self._stage, step, name, value)

    def _named(self, rate: float, weights: Sequence[float], row: list[float]) -> dict[str, float]:
        values: dict[str, float] = {}
        for name, weight, value in zip(self._terms, weights, row, strict=False):
            values[f"train/{name}"] = value
            values[f"train/{name}/weighted"] = weight * value
        values["train/loss"] = sum(weight * value for weight, value in zip(weights, row, strict=False))
        values["train/lr"] = rate
        if len(row) > len(self._terms):
            values["train/gradient_norm"] = row[-1]
        return values
