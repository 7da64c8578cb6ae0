"""How often a running job saves itself, and when it deletes what it saved before."""

from collections.abc import Callable, Mapping
from itertools import chain, repeat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kdcore import checkpoint, session
from kdcore.reporter import RecordingReporter, SavedCheckpoint


class Clock(RecordingReporter):
    """Half a second passes at every step, `costs` while checkpoints are written, `wait` while one is reported."""

    def __init__(self, *costs: float, wait: float = 0.0) -> None:
        super().__init__()
        self.costs, self.wait, self.now = chain(costs, repeat(costs[-1])), wait, 0.0
        self.began: list[float] = []
        self.ended: list[float] = []

    def requested(self) -> None:
        self.now += 0.5

    def save(self, folder: Path, content: Mapping[str, Any]) -> tuple[Path, str]:
        self.began.append(self.now)
        self.now += next(self.costs)
        return checkpoint.save(folder, content)

    def checkpoint(self, saved: SavedCheckpoint) -> None:
        self.now += self.wait
        self.ended.append(self.now)
        super().checkpoint(saved)


Pauses = Callable[[Clock], list[float]]


@pytest.fixture
def pauses(light: Any, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Pauses:
    """Runs a job that is to save itself every 2 s: the seconds between its checkpoints within the student's stage."""
    tiny |= {"baseline": False, "checkpoint": {"every_seconds": 2.0}}
    tiny["stages"][0] |= {"epochs": 40}

    def run(clock: Clock) -> list[float]:
        monkeypatch.setattr(session, "time", SimpleNamespace(monotonic=lambda: clock.now))
        monkeypatch.setattr(session, "checkpoint", SimpleNamespace(save=clock.save, prune=checkpoint.prune))
        light(tiny, clock)
        stages = [saved.stage for saved in clock.checkpoints]
        first = stages.index("distill-1")
        between = [
            clock.began[n + 1] - clock.ended[n] for n in range(first, len(stages) - 2)
        ]  # the last ends the stage
        assert len(between) >= 2
        return between

    return run


@pytest.mark.parametrize(("cost", "wanted"), [(0.0, 2.0), (0.02, 2.0), (0.2, 10.0), (0.3, 15.0)])
def test_checkpoints_cost_at_most_a_fiftieth_of_the_time(pauses: Pauses, cost: float, wanted: float) -> None:
    assert all(wanted - 1e-6 <= pause < wanted + 2 for pause in pauses(Clock(cost)))


def test_however_slow_the_disk_is_ten_times_the_asked_for_interval_is_the_longest(pauses: Pauses) -> None:
    assert all(20.0 <= pause < 22.0 for pause in pauses(Clock(30.0)))


def test_a_checkpoint_that_was_slow_for_once_does_not_put_off_the_next(pauses: Pauses) -> None:
    assert all(2.0 <= pause < 4.0 for pause in pauses(Clock(0.0, 0.0, 0.0, 30.0, 0.0)))


def test_waiting_for_whoever_is_told_of_a_checkpoint_is_no_cost_of_it(pauses: Pauses) -> None:
    assert all(2.0 <= pause < 4.0 for pause in pauses(Clock(0.0, wait=20.0)))


class Keeper(RecordingReporter):
    """Looks which files there are whenever it is told of one more; fails at the fourth."""

    def __init__(self) -> None:
        super().__init__()
        self.there: list[int] = []

    def checkpoint(self, saved: SavedCheckpoint) -> None:
        super().checkpoint(saved)
        self.there.append(len(list(saved.path.parent.glob("*.pt"))))
        if len(self.there) == 4:
            raise ConnectionError


def test_older_checkpoints_stay_until_the_new_one_is_reported(light: Any, tiny: dict[str, Any]) -> None:
    keeper = Keeper()
    with pytest.raises(ConnectionError):
        light({**tiny, "checkpoint": {"every_steps": 2}}, keeper)
    assert keeper.there == [1, 2, 3, 3]
    assert [saved.path.exists() for saved in keeper.checkpoints] == [False, True, True, True]
