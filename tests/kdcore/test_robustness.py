"""Noise, corruptions and attacks, against models whose answers are known."""

import time
from statistics import stdev
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdcore.plan import make_plan
from kdcore.report import robustness_sentence
from kdcore.robustness import (
    CHANGES,
    accuracies,
    attack,
    blur,
    brightness,
    compare_robustness,
    contrast,
    impulse,
    measure_robustness,
    pixelate,
)
from kdcore.spec import SpecError, parse_spec
from kdcore.teacher import freeze

GENERATOR = torch.Generator().manual_seed(0)


class Bright(nn.Module):
    """Says 1 where a picture's mean is above one half, the surer the brighter."""

    def forward(self, pictures: Tensor) -> Tensor:
        mean = pictures.mean((1, 2, 3))
        return torch.stack([0.5 - mean, mean - 0.5], 1) * 10


def measured(*of: Any, **options: Any) -> dict[str, Any]:
    """As the result has it."""
    return accuracies(measure_robustness(*of, **options))


def pictures(count: int = 6) -> Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def test_corruptions_by_hand() -> None:
    one = torch.zeros(1, 1, 4, 4)
    one[0, 0, 0, 0] = 1.0
    assert blur(one, GENERATOR)[0, 0, 1, 1].item() == pytest.approx(1 / 9)
    assert blur(one, GENERATOR)[0, 0, 0, 0].item() == pytest.approx(4 / 9)  # the border's pixels are repeated
    assert pixelate(one, GENERATOR)[0, 0, :2, :2].flatten().tolist() == [0.25] * 4
    assert contrast(one, GENERATOR)[0, 0, 0, 0].item() == pytest.approx(1 / 16 + 0.4 * 15 / 16)
    assert brightness(one, GENERATOR)[0, 0, 1, 1].item() == pytest.approx(0.2)
    changed = impulse(torch.full((50, 1, 20, 20), 0.5), GENERATOR)
    assert (changed != 0.5).float().mean().item() == pytest.approx(0.05, abs=0.01)
    assert set(changed.unique().tolist()) == {0.0, 0.5, 1.0}


@pytest.mark.parametrize("steps", [1, 10])
def test_an_attack_stays_within_its_bound_and_does_harm(steps: int) -> None:
    model, clean = freeze(Bright()), pictures()
    labels = model(clean).argmax(1)
    hostile = attack(model, clean, labels, 0.03, steps)
    assert (hostile - clean).abs().max().item() <= 0.03 + 1e-6
    assert 0 <= hostile.min().item() <= hostile.max().item() <= 1
    gap = model(clean).gather(1, labels[:, None]) - model(hostile).gather(1, labels[:, None])
    assert (gap > 0.2).all()  # 10 · 0.03, less what the border of [0, 1] keeps


def test_what_a_perfect_classifier_loses() -> None:
    bright, dark = torch.full((20, 1, 8, 8), 0.52), torch.full((20, 1, 8, 8), 0.45)
    found = measured(freeze(Bright()), torch.cat([bright, dark]), torch.tensor([1] * 20 + [0] * 20))
    assert found["samples"] == 40
    assert found["clean"] == found["blur"] == found["contrast"] == 1.0
    assert found["brightness"] == 0.5  # every dark picture becomes a bright one
    assert found["fgsm_2/255"] == found["pgd_2/255"] == 1.0  # 0.0078 is less than the 0.02 that are needed
    assert found["fgsm_8/255"] == found["pgd_8/255"] == 0.5  # 0.031: enough for the bright ones alone
    assert set(CHANGES) < set(found)
    assert found == measured(freeze(Bright()), torch.cat([bright, dark]), torch.tensor([1] * 20 + [0] * 20))


def first(count: int) -> Tensor:
    """Right on so many of a thousand."""
    return torch.arange(1000) < count


@pytest.mark.parametrize(("clean", "left"), [(0.9, 0.0), (0.9, 0.02), (0.7, 0.1), (0.9, 0.5)])
def test_the_interval_of_two_equal_models_holds_nothing_nineteen_times_in_twenty(clean: float, left: float) -> None:
    drawn, missed = torch.Generator().manual_seed(0), 0
    for _ in range(400):
        both = []
        for _ in range(2):
            right = torch.rand(1000, generator=drawn) < clean
            both.append({"clean": right, "blur": right & (torch.rand(1000, generator=drawn) < left / clean)})
        found = compare_robustness(*both)
        assert found is not None
        missed += not found["low"] <= 0 <= found["high"]
    assert 5 <= missed <= 40  # 20, within four standard deviations


def test_whether_the_student_is_more_robust_is_said() -> None:
    student = {"clean": first(900), "blur": first(800), "fgsm_2/255": first(700), "pgd_8/255": first(100)}
    baseline = {"clean": first(900), "blur": first(700), "fgsm_2/255": first(600), "pgd_8/255": None}
    found = compare_robustness(student, baseline)
    assert found is not None
    assert (found["student"], found["baseline"]) == (pytest.approx(0.15), pytest.approx(0.25))
    each = [0.5] * 200 + [0.0] * 800  # 100 pictures more under each of two tests
    wide = 1.96 * stdev(each) / 1000**0.5
    assert (found["low"], found["high"]) == (pytest.approx(0.1 - wide), pytest.approx(0.1 + wide))
    assert "loses 15.0 points of accuracy on average" in robustness_sentence({"robustness_gain": found})
    assert "it is more robust (95% interval" in robustness_sentence({"robustness_gain": found})
    turned = compare_robustness(baseline, student)
    assert "it is less robust" in robustness_sentence({"robustness_gain": turned})
    assert "no more and no less" in robustness_sentence({"robustness_gain": compare_robustness(student, student)})
    assert compare_robustness({**student, "clean": None}, baseline) is None
    lost = {"clean": first(950), "blur": first(0)}, {"clean": first(960), "blur": first(0)}
    certain = compare_robustness(*lost)
    assert certain is not None
    assert certain["gain"] == pytest.approx(0.01)
    assert certain["low"] < 0.01 < certain["high"]
    assert robustness_sentence({"robustness_gain": None}) == ""


def test_what_there_is_no_time_for_is_none() -> None:
    begun = time.monotonic()
    found = measured(freeze(Bright()), pictures(), torch.zeros(6, dtype=torch.int64), seconds=0)
    assert found["clean"] is found["pgd_8/255"] is None
    assert found["left_out"] == [name for name in found if name not in ("samples", "left_out")]
    assert time.monotonic() - begun < 30


def test_time_ends_a_test_in_its_midst() -> None:
    class Slow(Bright):
        calls = 0

        def forward(self, pictures: torch.Tensor) -> torch.Tensor:
            Slow.calls += 1
            if Slow.calls == 2:
                time.sleep(2)
            return super().forward(pictures)

    many = torch.full((1000, 1, 8, 8), 0.52)
    found = measure_robustness(freeze(Slow()), many, torch.ones(1000, dtype=torch.int64), seconds=1.5)
    assert Slow.calls == 2  # of four batches
    assert (found["clean"], accuracies(found)["left_out"][0]) == (None, "clean")
    assert compare_robustness(found, found) is None


def test_time_ends_an_attack_between_its_steps() -> None:
    asked = []

    def poll() -> None:
        asked.append(None)
        if len(asked) == 3:
            raise TimeoutError

    with pytest.raises(TimeoutError):
        attack(freeze(Bright()), pictures(), torch.zeros(6, dtype=torch.int64), 8 / 255, 10, poll)
    assert len(asked) == 3


def test_without_a_gradient_there_is_no_attack() -> None:
    found = measured(freeze(Bright()), pictures(), torch.zeros(6, dtype=torch.int64), attacks=False)
    assert {name for name, value in found.items() if value is None} == {
        f"{name}_{size}/255" for name in ("fgsm", "pgd") for size in (2, 8)
    }
    assert found["left_out"] == []


def test_it_is_refused_where_there_are_no_pictures() -> None:
    document = {
        "data": {"type": "sst2"},
        "teachers": [{"model": {"type": "lstm"}}],
        "student": {"model": {"type": "gru"}},
        "evaluate": {"robustness": True},
    }
    with pytest.raises(SpecError, match="classifiers of pictures") as caught:
        make_plan(parse_spec(document))
    assert caught.value.errors[0][0] == ("evaluate", "robustness")
