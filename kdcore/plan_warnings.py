"""What can run but was hardly meant so."""

from collections.abc import Sequence

from kdcore.data import DataFacts
from kdcore.losses.schedules import LinearFactorConfig
from kdcore.models import AnswersConfig, LogitsConfig
from kdcore.optim import StepConfig
from kdcore.plan_cost import MemoryPlan, ModelPlan, StagePlan
from kdcore.spec import JobSpec
from kdcore.training import TrainConfig

MOST_COMPARISONS = 2**25
"""In a step: a batch of 323 samples compared by threes, of 5,793 by twos; a second or more on a CPU."""


def warnings(
    spec: JobSpec, teacher: ModelPlan | None, student: ModelPlan, memory: MemoryPlan, stages: Sequence[StagePlan]
) -> list[str]:
    """Sentences about a valid spec that whoever wrote it should read."""
    found = []
    if teacher is not None and 0 < teacher.parameters <= student.parameters:
        found.append(
            f"the student ({student.parameters:,} parameters) is not smaller than the teacher ({teacher.parameters:,})"
        )
    if spec.stages and not any(
        (loss.needs_teacher or loss.brings_teacher) and loss.weight for stage in spec.stages for loss in stage.losses
    ):
        found.append("no stage learns from the teacher: give a loss such as kd a weight above 0")
    if spec.limits.max_memory is not None and memory.total > spec.limits.max_memory:
        found.append(
            f"about {memory.total / 2**20:,.0f} MiB are needed, limits.max_memory allows"
            f" {spec.limits.max_memory / 2**20:,.0f} MiB: use a smaller batch_size or raise the limit"
        )
    found += [
        f"{stage.name}: {loss.type} makes {loss.comparisons:,} comparisons in each step of batch_size"
        f" {stage.batch_size}, which takes time and memory: use a smaller batch_size"
        for stage in stages
        for loss in stage.losses
        if loss.comparisons > MOST_COMPARISONS
    ]
    for number, taught in enumerate(spec.teachers, start=1):
        if isinstance(taught.model, AnswersConfig):
            if any(stage.augment.is_on for stage in spec.stages):
                found.append(f"teacher-{number} sees no augmented sample: its logits are of the samples as they are")
            if isinstance(taught.model, LogitsConfig):
                found += spread_logits(number, spec.data.facts())
        elif not taught.model.trainable:
            found.append(
                f"teacher-{number} is a file of type {taught.model.type}: its size, FLOPs and memory are not known"
                " before it is read, and are 0 here"
            )
        if taught.train is not None:
            found += _schedule(f"teacher-{number}", taught.train)
    for stage in spec.stages:
        found += _schedule(str(stage.name), stage)
        found += [
            f"{stage.name}: the weight of {loss.type} grows for {loss.weight_schedule.epochs:g} epochs, the stage has"
            f" {stage.epochs}: it never reaches its full height"
            for loss in stage.losses
            if isinstance(loss.weight_schedule, LinearFactorConfig) and loss.weight_schedule.epochs > stage.epochs
        ]
    return found


def spread_logits(number: int, facts: DataFacts) -> list[str]:
    """What is made up of a teacher's logits of which only the largest are there."""
    if not facts.top_logits:
        return []
    known = f"teacher-{number} is known by at most {facts.top_logits} of {len(facts.classes)} classes of each sample"
    return [f"{known}: the others share evenly what these leave, {facts.spread:.2%} of the probability on average"]


def _schedule(name: str, train: TrainConfig) -> list[str]:
    found = []
    schedule = train.schedule
    if schedule.warmup_epochs >= train.epochs:
        found.append(f"{name}: the warm-up of {schedule.warmup_epochs:g} epochs takes all {train.epochs} of them")
    if isinstance(schedule, StepConfig) and schedule.milestones[-1] >= train.epochs:
        found.append(
            f"{name}: the milestone {schedule.milestones[-1]} is never reached, the stage has {train.epochs} epochs"
        )
    return found
