"""What a job would be, before anything is read or trained; and all that only this can find wrong."""

import math
from collections.abc import Sequence

import torch

from kdcore.config import Config, Loc, SpecError
from kdcore.data import DataError, DataFacts
from kdcore.losses import Context, LossError
from kdcore.models import ModelConfig, ModelError
from kdcore.plan_cost import Costs, MemoryPlan, ModelPlan, StagePlan, TermPlan, model_costs, plan_memory, sample_flops
from kdcore.plan_warnings import warnings
from kdcore.spec import JobSpec, StageConfig, TeacherTrainConfig, TrainConfig
from kdcore.stages import Stage, list_stages

MOST_BYTES = 2**31 - 2**24
"""Of a model's weights: an ONNX file, by which every model is timed and the student exported, is below 2 GiB."""

__all__ = ["Compression", "MemoryPlan", "ModelPlan", "Plan", "StagePlan", "TermPlan", "make_plan"]

Errors = list[tuple[Loc, str]]


class Compression(Config):
    """How many times smaller the student is than the first teacher."""

    parameters: float
    flops: float
    bytes: float


class Plan(Config):
    """A job's sizes and steps."""

    teachers: list[ModelPlan]
    student: ModelPlan
    compression: Compression
    stages: list[StagePlan]
    """In the order in which they run."""
    total_steps: int
    training_flops: int
    """Of all forward and backward passes of training, a backward pass counted as two forward ones."""
    memory: MemoryPlan
    warnings: list[str]


def make_plan(spec: JobSpec) -> Plan:
    """Check a spec as far as shapes go, and count what it costs.

    Reads no data and makes no weights: everything happens on torch's meta device. Safe to call in threads.

    Raises:
        SpecError: every error that was found, each with its place in the spec.
    """
    errors: Errors = []
    facts = _facts(spec, errors)
    if facts is None:
        raise SpecError(errors)
    teachers = [
        _model(teacher.model, facts, ("teachers", index, "model"), errors)
        for index, teacher in enumerate(spec.teachers)
    ]
    student = _model(spec.student.model, facts, ("student", "model"), errors)
    for index, teacher in enumerate(spec.teachers):
        if teacher.train is not None:
            loc = ("teachers", index, "train")
            _check_training(teacher.train, facts, loc, errors)
            if teacher.train.losses is not None:
                _check_losses(teacher.train, loc, teachers[index], teachers[:index], facts, errors)
    for index, stage in enumerate(spec.stages):
        _check_training(stage, facts, ("stages", index), errors)
        _check_losses(stage, ("stages", index), student, teachers, facts, errors)
    known = [teacher for teacher in teachers if teacher is not None]
    if errors or student is None or len(known) < len(teachers):
        raise SpecError(errors)
    return _plan(spec, facts, known, student)


def _plan(spec: JobSpec, facts: DataFacts, teachers: list[Costs], student: Costs) -> Plan:
    stages = list_stages(spec)
    planned = [_stage(stage, facts, teachers, student) for stage in stages]
    first, small = teachers[0].plan, student.plan
    memory = plan_memory(stages, facts, teachers, student)
    return Plan(
        teachers=[teacher.plan for teacher in teachers],
        student=small,
        compression=Compression(
            parameters=first.parameters / small.parameters,
            flops=first.flops / small.flops,
            bytes=first.bytes / small.bytes,
        ),
        stages=planned,
        total_steps=sum(stage.steps for stage in planned),
        training_flops=sum(
            sample_flops(stage, [teacher.plan for teacher in teachers], small) * facts.train * stage.train.epochs
            for stage in stages
        ),
        memory=memory,
        warnings=warnings(spec, first, small, memory),
    )


def _stage(stage: Stage, facts: DataFacts, teachers: list[Costs], student: Costs) -> StagePlan:
    per_epoch = math.ceil(facts.train / stage.train.batch_size)
    return StagePlan(
        name=stage.name,
        epochs=stage.train.epochs,
        steps_per_epoch=per_epoch,
        steps=per_epoch * stage.train.epochs,
        samples=facts.train,
        batch_size=stage.train.batch_size,
        losses=_terms(stage, facts, teachers, student),
    )


def _terms(stage: Stage, facts: DataFacts, teachers: list[Costs], student: Costs) -> list[TermPlan]:
    trained = teachers[stage.index] if stage.role == "teacher" else student
    with torch.device("meta"):
        terms = [loss.build(_context(stage.train, facts, teachers, trained)) for loss in stage.losses]
    return [
        TermPlan(
            type=loss.type,
            layers=list(term.layers),
            parameters=sum(parameter.numel() for parameter in term.parameters()),
        )
        for loss, term in zip(stage.losses, terms, strict=True)
    ]


def _context(train: TrainConfig, facts: DataFacts, teachers: Sequence[Costs], trained: Costs) -> Context:
    return Context(
        student=trained.shapes,
        teachers=[teacher.shapes for teacher in teachers],
        input_shape=facts.input_shape,
        classes=len(facts.classes),
        samples=facts.train,
        epochs=train.epochs,
        teacher_networks=[teacher.network for teacher in teachers],
    )


def _facts(spec: JobSpec, errors: Errors) -> DataFacts | None:
    try:
        return spec.data.facts()
    except DataError as error:
        errors.append((("data", error.field) if error.field else ("data",), str(error)))
        return None


def _model(config: ModelConfig, facts: DataFacts, loc: Loc, errors: Errors) -> Costs | None:
    classes = len(facts.classes)
    if config.classes not in (None, classes):
        message = f"the model has {config.classes} classes, the data has {classes}; leave `classes` out"
        errors.append(((*loc, "classes"), message))
        return None
    try:
        costs = model_costs(config, facts)
    except ModelError as error:
        errors.append(((*loc, error.field), str(error)))
        return None
    if costs.plan.bytes + costs.buffers > MOST_BYTES:
        weights = f"{costs.plan.parameters:,} parameters ({costs.plan.bytes / 2**30:,.1f} GiB)"
        errors.append((loc, f"{weights} are more than an ONNX file can hold (2 GiB); use fewer or narrower layers"))
    return costs


def _check_training(config: TrainConfig, facts: DataFacts, loc: Loc, errors: Errors) -> None:
    if config.batch_size > facts.train:
        message = f"{config.batch_size} is more than the {facts.train} training samples; use at most {facts.train}"
        errors.append(((*loc, "batch_size"), message))
    size = min(facts.input_shape[1:])
    for field, pixels in (("crop", config.augment.crop), ("jitter", config.augment.jitter)):
        if pixels >= size:
            message = f"{pixels} pixels can push the whole {size}-pixel image out; use less, an eighth is usual"
            errors.append(((*loc, "augment", field), message))


def _check_losses(
    train: StageConfig | TeacherTrainConfig,
    loc: Loc,
    trained: Costs | None,
    teachers: list[Costs | None],
    facts: DataFacts,
    errors: Errors,
) -> None:
    losses = train.losses or []
    if not any(loss.weight for loss in losses):
        errors.append(((*loc, "losses"), "every weight is 0, so nothing would train; raise one above 0"))
    known = [teacher for teacher in teachers if teacher is not None]
    if trained is None or len(known) < len(teachers):
        return  # what is wrong with the models is said already
    context = _context(train, facts, known, trained)
    for number, loss in enumerate(losses):
        try:
            with torch.device("meta"):
                loss.build(context)
        except LossError as error:
            errors.append(((*loc, "losses", number, error.field), str(error)))
