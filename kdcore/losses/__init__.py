"""Every loss, as one explicit list: a new one is a file and its two names here."""

from typing import Annotated

from pydantic import Field

from kdcore.losses.base import BaseLossConfig, Batch, Context, LossError, Rival, Shapes, Term, Views
from kdcore.losses.cross_entropy import CrossEntropyConfig, cross_entropy
from kdcore.losses.kd import KDConfig, kd
from kdcore.losses.logit_mse import LogitMSEConfig, logit_mse
from kdcore.losses.soft_cross_entropy import SoftCrossEntropyConfig, soft_cross_entropy

LossConfig = Annotated[
    CrossEntropyConfig | KDConfig | SoftCrossEntropyConfig | LogitMSEConfig, Field(discriminator="type")
]
LOSSES: tuple[type[BaseLossConfig], ...] = (CrossEntropyConfig, KDConfig, SoftCrossEntropyConfig, LogitMSEConfig)


def default_losses() -> list[LossConfig]:
    """0.1 · cross_entropy + 0.9 · kd at T 4: Hinton's loss with the weights of the CIFAR comparisons."""
    return [CrossEntropyConfig(weight=0.1), KDConfig(weight=0.9, temperature=4.0)]


__all__ = [
    "BaseLossConfig",
    "Batch",
    "Context",
    "CrossEntropyConfig",
    "KDConfig",
    "LOSSES",
    "LogitMSEConfig",
    "LossConfig",
    "LossError",
    "Rival",
    "Shapes",
    "SoftCrossEntropyConfig",
    "Term",
    "Views",
    "cross_entropy",
    "default_losses",
    "kd",
    "logit_mse",
    "soft_cross_entropy",
]
