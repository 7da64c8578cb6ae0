"""Repeats: the same job under other chance, and what its gain is over them."""

from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest, ttest_1samp

from kdcore.compare import spread, wilson_interval
from kdcore.report import over_repeats
from kdcore.spec import parse_spec
from kdcore.stages import list_stages
from kdcore.tasks import TASKS


def test_repeats_come_after_one_another_and_the_first_has_no_suffix(tiny: dict[str, Any]) -> None:
    names = [stage.name for stage in list_stages(parse_spec(tiny | {"repeats": 3}))]
    assert names == [
        *("teacher-1", "baseline", "distill-1", "baseline-repeat-2", "distill-1-repeat-2"),
        *("baseline-repeat-3", "distill-1-repeat-3"),
    ]


def test_the_first_is_the_job_without_repeats_and_each_is_another(light: Any, tiny: dict[str, Any]) -> None:
    alone, _ = light(tiny)
    several, _ = light(tiny | {"repeats": 3})
    digests = several["digests"]
    assert {name: digests[name] for name in alone["digests"]} == alone["digests"]
    assert len({digests[name] for name in ("student", "student-2", "student-3")}) == 3
    assert len({digests[name] for name in ("baseline", "baseline-2", "baseline-3")}) == 3


def test_a_pause_within_a_repeat_changes_nothing(light: Any, tiny: dict[str, Any]) -> None:
    document = tiny | {"repeats": 2, "checkpoint": {"every_steps": 3}}
    wanted, whole = light(document)
    middle = next(saved for saved in whole.checkpoints if saved.stage == "distill-1-repeat-2" and saved.path.exists())
    found, _ = light(document, resume=middle.path)
    assert found["digests"] == wanted["digests"]


def test_spread_against_another() -> None:
    gains = [0.012, 0.03, -0.004, 0.021]
    found, other = spread(gains), ttest_1samp(gains, 0).confidence_interval(0.95)
    assert found["mean"] == pytest.approx(np.mean(gains))
    assert found["std"] == pytest.approx(np.std(gains, ddof=1))
    assert found["interval"] == pytest.approx([other.low, other.high], rel=1e-5)
    assert spread([0.5]) == {"mean": 0.5, "std": None, "interval": None}


@pytest.mark.parametrize(("hits", "samples"), [(0, 10), (10, 10), (37, 100), (9_912, 10_000)])
def test_wilson_against_another(hits: int, samples: int) -> None:
    other = binomtest(hits, samples).proportion_ci(0.95, method="wilson")
    assert wilson_interval(hits, samples) == pytest.approx((other.low, other.high), abs=1e-9)


def test_gain_of_an_error_is_by_how_much_it_is_less() -> None:
    found = over_repeats(TASKS["regression"], [{"student": 1.0, "baseline": 3.0}, {"student": 2.0, "baseline": 3.0}])
    assert found["gain"]["mean"] == pytest.approx(1.5)
    assert over_repeats(TASKS["regression"], [{"student": 1.0}, {"student": 2.0}])["gain"] is None
