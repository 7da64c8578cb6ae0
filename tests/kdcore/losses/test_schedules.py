"""How weights and temperatures change over a stage's epochs."""

from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from kdcore.losses import Batch, DKDConfig, KDConfig, kd
from kdcore.losses.schedules import LossScheduleConfig
from kdcore.losses.temperature import COLDEST, HOTTEST

ADAPTER: TypeAdapter[Any] = TypeAdapter(LossScheduleConfig)


def at(epoch: float) -> Batch:
    return Batch({}, [], None, torch.arange(2), torch.zeros(2, 1), epoch)


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        # By default a warm-up over 20 epochs.
        ({"type": "linear"}, {0: 0.0, 5: 0.25, 10.5: 0.525, 20: 1.0, 21: 1.0, 1000: 1.0}),
        ({"type": "linear", "start": 3.0, "end": 1.0, "epochs": 4.0}, {0: 3.0, 1: 2.5, 2: 2.0, 4: 1.0, 9: 1.0}),
        ({"type": "linear", "epochs": 0.5}, {0: 0.0, 0.25: 0.5, 0.5: 1.0, 1: 1.0}),
        # Half a cosine: a quarter of the way (1 + cos 45°) / 2 = 0.8535534, halfway 1/2, three quarters 0.1464466.
        ({"type": "cosine", "epochs": 8.0}, {0: 1.0, 2: 0.8535534, 4: 0.5, 6: 0.1464466, 8: 0.0, 9: 0.0}),
        ({"type": "cosine", "start": 0.0, "end": 10.0, "epochs": 2.0}, {0: 0.0, 1: 5.0, 2: 10.0, 3: 10.0}),
        ({"type": "per_epoch", "factors": [1.0, 0.5, 0.0]}, {0: 1.0, 0.99: 1.0, 1: 0.5, 1.5: 0.5, 2: 0.0, 50: 0.0}),
        ({"type": "per_epoch", "factors": [7.0]}, {0: 7.0, 3.3: 7.0}),
    ],
)
def test_factors(schedule: dict[str, Any], factors: dict[float, float]) -> None:
    config = ADAPTER.validate_python(schedule)
    for epoch, factor in factors.items():
        assert config.factor(epoch) == pytest.approx(factor, abs=1e-7), epoch


@pytest.mark.parametrize(
    "schedule",
    [
        {"type": "linear", "epochs": 0.0},
        {"type": "linear", "start": -1.0},
        {"type": "linear", "end": 1001.0},
        {"type": "cosine"},
        {"type": "cosine", "epochs": float("nan")},
        {"type": "per_epoch", "factors": []},
        {"type": "per_epoch"},
        {"type": "steps"},
        {"type": "linear", "milestones": [1]},
    ],
)
def test_what_is_no_schedule(schedule: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ADAPTER.validate_python(schedule)


def test_the_weight_is_multiplied_by_the_factor_of_its_time() -> None:
    assert KDConfig(weight=3.0).weight_at(17.0) == 3.0
    falling = KDConfig.model_validate(
        {"weight": 3.0, "weight_schedule": {"type": "linear", "start": 1, "end": 0, "epochs": 4}}
    )
    assert [falling.weight_at(epoch) for epoch in (0, 1, 3, 4, 99)] == [3.0, 2.25, 0.75, 0.0, 0.0]


def test_dkd_warms_up_unless_told_otherwise() -> None:
    assert [DKDConfig(weight=2.0).weight_at(epoch) for epoch in (0, 5, 20, 240)] == [0.0, 0.5, 2.0, 2.0]
    assert DKDConfig(weight=2.0, weight_schedule=None).weight_at(0) == 2.0


def test_the_temperature_is_multiplied_and_stays_in_its_bounds() -> None:
    def scheduled(temperature: float, *factors: float) -> KDConfig:
        schedule = {"type": "per_epoch", "factors": list(factors)}
        return KDConfig.model_validate({"temperature": temperature, "temperature_schedule": schedule})

    assert KDConfig(temperature=5.0).temperature_at(at(3.0)) == 5.0
    config = scheduled(5.0, 2.0, 0.5, 0.0, 1000.0)
    assert [config.temperature_at(at(epoch)) for epoch in (0.9, 1.0, 2.0, 3.0)] == [10.0, 2.5, COLDEST, HOTTEST]
    # At both bounds the loss is still finite, with a finite gradient.
    student, teacher = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3)
    for temperature in (COLDEST, HOTTEST):
        value = kd(student, teacher, temperature)
        (gradient,) = torch.autograd.grad(value, student)
        assert value.isfinite()
        assert gradient.isfinite().all()


@pytest.mark.parametrize("temperature", [0.0, 0.009, 1001.0, -1.0])
def test_temperatures_out_of_bounds_are_refused(temperature: float) -> None:
    with pytest.raises(ValidationError):
        KDConfig(temperature=temperature)
