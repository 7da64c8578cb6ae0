"""The temperature that many losses share, and its schedule."""

from typing import Annotated

from pydantic import Field

from kdcore.config import Config
from kdcore.losses.base import Batch
from kdcore.losses.schedules import LossScheduleConfig

HOTTEST, COLDEST = 1000.0, 0.01
Kelvin = Annotated[float, Field(ge=COLDEST, le=HOTTEST)]


class Temperature(Config):
    """Mixed into the Config of a loss that softens logits."""

    temperature: Kelvin = 4.0
    """T: the higher, the more the small probabilities count."""
    temperature_schedule: LossScheduleConfig | None = None
    """A factor on T that changes over the stage's epochs; none: 1 throughout."""

    def temperature_at(self, batch: Batch) -> float:
        """T in this step; a factor never takes it out of its bounds."""
        if self.temperature_schedule is None:
            return self.temperature
        return min(HOTTEST, max(COLDEST, self.temperature * self.temperature_schedule.factor(batch.epoch)))
