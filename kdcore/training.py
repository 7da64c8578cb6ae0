"""How a network is trained, as a spec says it: epochs, optimizer, losses."""

from typing import Annotated

from pydantic import Field, StringConstraints, ValidationInfo, field_validator

from kdcore.config import Config
from kdcore.losses import LossConfig, default_losses
from kdcore.optim import AdamConfig, ConstantConfig, OptimizerConfig, ScheduleConfig

StageName = Annotated[str, StringConstraints(max_length=60, pattern=r"^[a-z][a-z0-9]*(-[a-z0-9]+)*$")]


class AugmentConfig(Config):
    """Augmentation of a batch of images, drawn per sample; only the training inputs are changed."""

    crop: int = Field(default=0, ge=0, le=64)
    """Pad every side by this many black pixels and cut the original size out at a random place."""
    flip: bool = False
    """Mirror left and right with probability one half."""
    jitter: int = Field(default=0, ge=0, le=64)
    """Shift by up to this many pixels in each direction; the border's pixels are repeated."""
    views: int | None = Field(default=None, ge=1, le=64)
    """An approximation: draw so many changed versions of each sample once, and see another of them in each epoch, in
    turn, so that what teachers say of them can be kept. None: draw anew in every step."""

    @field_validator("views")
    @classmethod
    def _of_something(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and not any(info.data.get(name) for name in ("crop", "flip", "jitter")):
            raise ValueError("nothing changes the samples; set `crop`, `flip` or `jitter` too, or leave it out")
        return value

    @property
    def is_on(self) -> bool:
        return bool(self.crop or self.flip or self.jitter)

    @property
    def versions(self) -> int | None:
        """How many versions of a sample there are; None: a new one in every step."""
        return self.views if self.is_on else 1


class EarlyStoppingConfig(Config):
    """Stop a stage when `select_by` has not become better for `patience` epochs."""

    patience: int = Field(default=5, ge=1, le=10_000)
    min_delta: float = Field(default=0.0, ge=0, le=100)


class TrainConfig(Config):
    """Consecutive epochs with one optimizer."""

    epochs: int = Field(default=10, ge=1, le=100_000)
    batch_size: int = Field(default=64, ge=1, le=1_048_576)
    optimizer: OptimizerConfig = AdamConfig()
    schedule: ScheduleConfig = ConstantConfig()
    gradient_clip: float | None = Field(default=None, gt=0, le=1e6)
    """Largest L2 norm of all gradients together; none: gradients are left as they are."""
    augment: AugmentConfig = AugmentConfig()
    early_stopping: EarlyStoppingConfig | None = None


class TeacherTrainConfig(TrainConfig):
    """How a teacher is trained: on the labels, unless `losses` say otherwise."""

    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Of the label loss that it has where `losses` are left out."""
    losses: list[LossConfig] | None = Field(default=None, min_length=1, max_length=32)
    """None: cross-entropy on the labels. A teacher may itself be distilled from those before it in `teachers`:
    an assistant between teacher and student, or the next generation of a born-again network."""


class StageConfig(TrainConfig):
    """One distillation stage."""

    name: StageName | None = None
    """Unique within the job; `distill-1`, `distill-2`, … where left out."""
    losses: list[LossConfig] = Field(default_factory=default_losses, min_length=1, max_length=32)
