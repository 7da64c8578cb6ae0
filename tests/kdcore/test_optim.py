"""Optimizers are torch's; schedules are pure functions of the step."""

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from kdcore.optim import (
    AdamConfig,
    AdamWConfig,
    ConstantConfig,
    CosineConfig,
    OptimizerConfig,
    ScheduleConfig,
    SGDConfig,
    StepConfig,
)


def parameter() -> nn.Parameter:
    return nn.Parameter(torch.tensor([2.0]))


def test_sgd_by_hand() -> None:
    weight = parameter()
    optimizer = SGDConfig(lr=0.1, momentum=0.5, weight_decay=0.25).build([weight])
    for _ in range(2):
        optimizer.zero_grad()
        (3 * weight).sum().backward()
        optimizer.step()
    # Step 1: gradient 3 + 0.25·2 = 3.5, w = 2 - 0.35 = 1.65.
    # Step 2: gradient 3 + 0.25·1.65 = 3.4125, velocity 0.5·3.5 + 3.4125 = 5.1625, w = 1.65 - 0.51625 = 1.13375.
    assert weight.item() == pytest.approx(1.13375, abs=1e-6)


def test_adam_and_adamw_differ_in_weight_decay() -> None:
    # The first Adam step is lr in the gradient's direction; AdamW also takes lr · decay · w = 0.1 · 0.5 · 2 off.
    for config, expected in [(AdamConfig, 1.9), (AdamWConfig, 1.8)]:
        weight = parameter()
        optimizer = config(lr=0.1, weight_decay=0.5).build([weight])
        weight.sum().backward()
        optimizer.step()
        assert weight.item() == pytest.approx(expected, abs=1e-6)


def test_settings_reach_torch() -> None:
    group = SGDConfig(lr=0.2, momentum=0.8, nesterov=True, weight_decay=0.1).build([parameter()]).param_groups[0]
    assert (group["lr"], group["momentum"], group["nesterov"], group["weight_decay"]) == (0.2, 0.8, True, 0.1)
    for config in (AdamConfig, AdamWConfig):
        built = config(lr=0.2, betas=(0.5, 0.6), eps=1e-3, weight_decay=0.1).build([parameter()]).param_groups[0]
        assert (built["lr"], built["betas"], built["eps"], built["weight_decay"]) == (0.2, (0.5, 0.6), 1e-3, 0.1)


def test_defaults_are_the_usual_ones() -> None:
    assert SGDConfig() == SGDConfig(lr=0.05, momentum=0.9, nesterov=False, weight_decay=5e-4)
    assert AdamConfig() == AdamConfig(lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0)
    assert AdamWConfig().weight_decay == 0.01


def test_betas_come_back_from_json() -> None:
    adapter: TypeAdapter[OptimizerConfig] = TypeAdapter(OptimizerConfig)
    config = AdamConfig(betas=(0.5, 0.6))
    assert adapter.validate_python(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    "bad",
    [
        {"type": "sgd", "lr": 0},
        {"type": "sgd", "lr": float("nan")},
        {"type": "sgd", "momentum": 1.0},
        {"type": "sgd", "momentum": 0, "nesterov": True},
        {"type": "adam", "betas": [0.9]},
        {"type": "adam", "betas": [0.9, 1.0]},
        {"type": "adam", "betas": ["0.9", 0.99]},
        {"type": "adam", "momentum": 0.9},
        {"type": "lion"},
    ],
)
def test_bad_optimizers(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(OptimizerConfig).validate_python(bad)


def test_constant() -> None:
    assert {ConstantConfig().factor(step, 10, 50) for step in range(50)} == {1.0}


def test_step_changes_after_whole_epochs() -> None:
    schedule = StepConfig(milestones=[1, 3], gamma=0.1)
    factors = [schedule.factor(step, 2, 8) for step in range(8)]
    assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01])


def test_cosine() -> None:
    schedule = CosineConfig()
    factors = [schedule.factor(step, 2, 4) for step in range(5)]
    assert factors == pytest.approx([1, 0.853553, 0.5, 0.146447, 0], abs=1e-6)  # (1 + cos(π·k/4)) / 2
    assert CosineConfig(final_factor=0.2).factor(2, 2, 4) == pytest.approx(0.6)  # 0.2 + 0.8 / 2
    assert CosineConfig(final_factor=0.2).factor(9, 2, 4) == pytest.approx(0.2)


def test_warm_up_rises_in_a_line_and_meets_the_schedule() -> None:
    constant = ConstantConfig(warmup_epochs=2)
    assert [constant.factor(step, 2, 10) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert ConstantConfig(warmup_epochs=0.5).factor(0, 4, 8) == 0.5
    cosine = CosineConfig(warmup_epochs=1)
    assert cosine.factor(2, 2, 6) == 1.0  # the descent begins when the warm-up is over
    assert cosine.factor(4, 2, 6) == pytest.approx(0.5)
    assert 0 <= CosineConfig(warmup_epochs=9).factor(5, 2, 6) <= 1  # a warm-up longer than the stage


def test_milestones_must_rise() -> None:
    adapter: TypeAdapter[ScheduleConfig] = TypeAdapter(ScheduleConfig)
    for milestones in ([], [2, 2], [3, 1], [0]):
        with pytest.raises(ValidationError):
            adapter.validate_python({"type": "step", "milestones": milestones})
