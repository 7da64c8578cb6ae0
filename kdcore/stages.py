"""The stages of a job, in the order in which they run; the plan and the loop both read this list."""

from dataclasses import dataclass
from typing import Literal

from kdcore.data.base import TaskName
from kdcore.losses import BinaryCrossEntropyConfig, CrossEntropyConfig, LossConfig, MSEConfig
from kdcore.spec import JobSpec
from kdcore.training import StageConfig, TrainConfig


@dataclass(frozen=True)
class Stage:
    """Consecutive epochs with one set of losses and one optimizer.

    Attributes:
        name: unique within the job.
        role: what is trained: the teacher, the student on labels alone, or the student being distilled.
        index: of the teacher in `teachers`, or of the stage in `stages`.
        train: epochs, batch size, optimizer, …
        losses: the terms, with their weights.
        repeat: which of the job's `repeats` it belongs to, from 0.
    """

    name: str
    role: Literal["teacher", "baseline", "distill"]
    index: int
    train: TrainConfig
    losses: list[LossConfig]
    repeat: int = 0

    def teachers(self, count: int) -> list[int]:
        """Which of the job's `count` teachers its losses look at, from 0; a teacher's are those before it."""
        there = self.index if self.role == "teacher" else count
        return sorted(set().union(*(loss.reads(there) for loss in self.losses)))


def list_stages(spec: JobSpec) -> list[Stage]:
    """Teachers that are trained, then the baseline if wanted, then the distillation stages.

    With `repeats` the latter two come again, under other chance. The baseline has the epochs and optimizers of the
    distillation stages, and the task's label loss alone.
    """
    teachers = [
        Stage(
            f"teacher-{index + 1}",
            "teacher",
            index,
            teacher.train,
            teacher.train.losses or [label_loss(spec.data.task_name, teacher.train.label_smoothing)],
        )
        for index, teacher in enumerate(spec.teachers)
        if teacher.train is not None
    ]
    return [*teachers, *(stage for repeat in range(spec.repeats) for stage in _student_stages(spec, repeat))]


def _student_stages(spec: JobSpec, repeat: int) -> list[Stage]:
    """The baseline's and the student's stages of one repeat; each repeat has other chance, and the first no suffix."""
    suffix = f"-repeat-{repeat + 1}" if repeat else ""
    several = len(spec.stages) > 1
    baselines = [
        Stage(
            f"baseline-{index + 1}{suffix}" if several else f"baseline{suffix}",
            "baseline",
            index,
            stage,
            [_alone(spec, stage)],
            repeat,
        )
        for index, stage in enumerate(spec.stages)
        if spec.baseline and spec.transfer.labelled > 0 and spec.data.labelled > 0
    ]
    distillation = [
        Stage(f"{stage.name}{suffix}", "distill", index, stage, list(stage.losses), repeat)
        for index, stage in enumerate(spec.stages)
    ]
    return [*baselines, *distillation]


def _alone(spec: JobSpec, stage: StageConfig) -> LossConfig:
    """The baseline's loss: the task's on labels, with the weights of classes that the student's own has."""
    loss = label_loss(spec.data.task_name)
    for given in stage.losses:
        if isinstance(given, CrossEntropyConfig) and isinstance(loss, CrossEntropyConfig):
            return loss.model_copy(update={"class_weights": given.class_weights})
        if isinstance(given, BinaryCrossEntropyConfig) and isinstance(loss, BinaryCrossEntropyConfig):
            return loss.model_copy(update={"pos_weight": given.pos_weight})
    return loss


def label_loss(task: TaskName, label_smoothing: float = 0.0) -> LossConfig:
    """What a network learns its labels with, where nothing else is said."""
    if task == "multi_label":
        return BinaryCrossEntropyConfig()
    if task == "regression":
        return MSEConfig()
    return CrossEntropyConfig(label_smoothing=label_smoothing)
