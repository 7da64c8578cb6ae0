"""Noise, corruptions and attacks, against models whose answers are known."""

import time

import pytest
import torch
from torch import Tensor, nn

from kdcore.plan import make_plan
from kdcore.robustness import CHANGES, attack, blur, brightness, contrast, impulse, measure_robustness, pixelate
from kdcore.spec import SpecError, parse_spec
from kdcore.teacher import freeze

GENERATOR = torch.Generator().manual_seed(0)


class Bright(nn.Module):
    """Says 1 where a picture's mean is above one half, the surer the brighter."""

    def forward(self, pictures: Tensor) -> Tensor:
        mean = pictures.mean((1, 2, 3))
        return torch.stack([0.5 - mean, mean - 0.5], 1) * 10


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
    found = measure_robustness(freeze(Bright()), torch.cat([bright, dark]), torch.tensor([1] * 20 + [0] * 20))
    assert found["samples"] == 40
    assert found["clean"] == found["blur"] == found["contrast"] == 1.0
    assert found["brightness"] == 0.5  # every dark picture becomes a bright one
    assert found["fgsm_2/255"] == found["pgd_2/255"] == 1.0  # 0.0078 is less than the 0.02 that are needed
    assert found["fgsm_8/255"] == found["pgd_8/255"] == 0.5  # 0.031: enough for the bright ones alone
    assert set(CHANGES) < set(found)
    assert found == measure_robustness(freeze(Bright()), torch.cat([bright, dark]), torch.tensor([1] * 20 + [0] * 20))


def test_what_there_is_no_time_for_is_none() -> None:
    begun = time.monotonic()
    found = measure_robustness(freeze(Bright()), pictures(), torch.zeros(6, dtype=torch.int64), seconds=0)
    assert found["pgd_8/255"] is None
    assert time.monotonic() - begun < 30


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
