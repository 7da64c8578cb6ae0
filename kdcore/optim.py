"""Optimizers and learning-rate schedules.

A schedule is a pure function of the step, so a resumed training needs none of its state: before each
update the loop sets every group's `lr` to the optimizer's `lr` times the schedule's factor. Optimizers are fused:
one pass over each tensor instead of one per operation.
"""

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, ValidationInfo, field_validator

from kdcore.config import Config

LearningRate = Annotated[float, Field(gt=0, le=1000)]
Decay = Annotated[float, Field(ge=0, le=100)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Parameters = Iterable[torch.nn.Parameter]


class SGDConfig(Config):
    """Stochastic gradient descent; the defaults are those of the CIFAR comparisons."""

    type: Literal["sgd"] = "sgd"
    lr: LearningRate = 0.05
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: Decay = 5e-4
    """Multiple of the weights that is added to their gradient."""

    @field_validator("nesterov")
    @classmethod
    def _needs_momentum(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("momentum") == 0:
            raise ValueError("nesterov needs a momentum above 0")
        return value

    def build(self, params: Parameters) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            params,
            lr=self.lr,
            momentum=self.momentum,
            nesterov=self.nesterov,
            weight_decay=self.weight_decay,
            fused=True,
        )


class AdamConfig(Config):
    """Adam (Kingma and Ba, arXiv 1412.6980)."""

    type: Literal["adam"] = "adam"
    lr: LearningRate = 1e-3
    betas: tuple[Beta, Beta] = Field(default=(0.9, 0.999), strict=False)
    """Decay rates of the averages of gradients and of their squares."""
    eps: float = Field(default=1e-8, gt=0, le=1)
    weight_decay: Decay = 0.0
    """Multiple of the weights that is added to their gradient."""

    def build(self, params: Parameters) -> torch.optim.Optimizer:
        return torch.optim.Adam(
            params, lr=self.lr, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay, fused=True
        )


class AdamWConfig(Config):
    """Adam with decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101)."""

    type: Literal["adamw"] = "adamw"
    lr: LearningRate = 1e-3
    betas: tuple[Beta, Beta] = Field(default=(0.9, 0.999), strict=False)
    """Decay rates of the averages of gradients and of their squares."""
    eps: float = Field(default=1e-8, gt=0, le=1)
    weight_decay: Decay = 1e-2
    """Share of the weights, times the learning rate, that each step takes off."""

    def build(self, params: Parameters) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            params, lr=self.lr, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay, fused=True
        )


OptimizerConfig = Annotated[SGDConfig | AdamConfig | AdamWConfig, Field(discriminator="type")]


class BaseScheduleConfig(Config):
    """A factor on the learning rate for every step of a stage."""

    type: Any
    warmup_epochs: float = Field(default=0.0, ge=0, le=100_000)
    """Epochs over which the rate grows linearly to its full height."""

    def factor(self, step: int, steps_per_epoch: int, total_steps: int) -> float:
        """The multiple of the optimizer's `lr` that one update uses.

        Args:
            step: updates already made in this stage: 0 for the first.
            steps_per_epoch, total_steps: updates in one epoch, and in the stage.
        """
        warmup = round(self.warmup_epochs * steps_per_epoch)
        rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
        return rise * self._height(step, warmup, steps_per_epoch, total_steps)

    def _height(self, step: int, warmup: int, steps_per_epoch: int, total_steps: int) -> float:
        raise NotImplementedError


class ConstantConfig(BaseScheduleConfig):
    """The same rate throughout."""

    type: Literal["constant"] = "constant"

    def _height(self, step: int, warmup: int, steps_per_epoch: int, total_steps: int) -> float:
        return 1.0


class StepConfig(BaseScheduleConfig):
    """The rate is multiplied by `gamma` after each milestone."""

    type: Literal["step"] = "step"
    milestones: list[Annotated[int, Field(ge=1, le=100_000)]] = Field(min_length=1, max_length=1000)
    """Finished epochs after which the rate changes, rising."""
    gamma: float = Field(default=0.1, gt=0, le=1)

    @field_validator("milestones")
    @classmethod
    def _rising(cls, value: list[int]) -> list[int]:
        if any(a >= b for a, b in pairwise(value)):
            raise ValueError("milestones must rise, each greater than the one before")
        return value

    def _height(self, step: int, warmup: int, steps_per_epoch: int, total_steps: int) -> float:
        epoch = step // steps_per_epoch
        return float(self.gamma ** sum(milestone <= epoch for milestone in self.milestones))


class CosineConfig(BaseScheduleConfig):
    """Half a cosine from the full rate, at the end of the warm-up, to `final_factor` of it at the stage's end."""

    type: Literal["cosine"] = "cosine"
    final_factor: float = Field(default=0.0, ge=0, le=1)

    def _height(self, step: int, warmup: int, steps_per_epoch: int, total_steps: int) -> float:
        done = max(0, step - warmup) / max(1, total_steps - warmup)
        return self.final_factor + (1 - self.final_factor) * (1 + math.cos(math.pi * min(1.0, done))) / 2


ScheduleConfig = Annotated[ConstantConfig | StepConfig | CosineConfig, Field(discriminator="type")]
