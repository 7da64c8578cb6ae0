"""How a term's weight or temperature changes over the epochs of its stage: a factor on it."""

import math
from typing import Annotated, Literal

from pydantic import Field

from kdcore.config import Config

Factor = Annotated[float, Field(ge=0, le=1000)]


class LinearFactorConfig(Config):
    """In a straight line from `start` to `end` over the first `epochs`, then `end`; by default a warm-up."""

    type: Literal["linear"] = "linear"
    start: Factor = 0.0
    end: Factor = 1.0
    epochs: float = Field(default=20.0, gt=0, le=100_000)

    def factor(self, epoch: float) -> float:
        return self.start + (self.end - self.start) * min(1.0, epoch / self.epochs)


class CosineFactorConfig(Config):
    """Along half a cosine from `start` to `end` over the first `epochs`, then `end`."""

    type: Literal["cosine"] = "cosine"
    start: Factor = 1.0
    end: Factor = 0.0
    epochs: float = Field(gt=0, le=100_000)

    def factor(self, epoch: float) -> float:
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * min(1.0, epoch / self.epochs))) / 2


class PerEpochFactorConfig(Config):
    """One factor for each epoch; the last one holds for all that follow."""

    type: Literal["per_epoch"] = "per_epoch"
    factors: list[Factor] = Field(min_length=1, max_length=10_000)

    def factor(self, epoch: float) -> float:
        return self.factors[min(int(epoch), len(self.factors) - 1)]


LossScheduleConfig = Annotated[
    LinearFactorConfig | CosineFactorConfig | PerEpochFactorConfig, Field(discriminator="type")
]
