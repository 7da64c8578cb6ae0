"""How often a running job saves itself."""

from types import SimpleNamespace
from typing import Any

import pytest

from kdcore import session
from kdcore.reporter import RecordingReporter, SavedCheckpoint


class Clock(RecordingReporter):
    """Half a second passes at every step, and `cost` seconds in every checkpoint."""

    def __init__(self, cost: float) -> None:
        super().__init__()
        self.cost, self.now = cost, 0.0
        self.began: list[float] = []
        self.ended: list[float] = []

    def requested(self) -> None:
        self.now += 0.5

    def checkpoint(self, saved: SavedCheckpoint) -> None:
        self.began.append(self.now)
        self.now += self.cost
        self.ended.append(self.now)
        super().checkpoint(saved)


@pytest.mark.parametrize(("cost", "wanted"), [(0.0, 2.0), (0.02, 2.0), (1.0, 50.0)])
def test_checkpoints_cost_at_most_a_fiftieth_of_the_time(
    light: Any, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch, cost: float, wanted: float
) -> None:
    tiny |= {"baseline": False, "checkpoint": {"every_seconds": 2.0}}
    tiny["stages"][0] |= {"epochs": 40}
    clock = Clock(cost)
    monkeypatch.setattr(session, "time", SimpleNamespace(monotonic=lambda: clock.now))
    light(tiny, clock)
    stages = [saved.stage for saved in clock.checkpoints]
    first = stages.index("distill-1")
    inside = [clock.began[n + 1] - clock.ended[n] for n in range(first, len(stages) - 2)]  # the last ends the stage
    assert len(inside) >= 2
    assert all(wanted - 1e-6 <= pause < wanted + 2 for pause in inside)
