"""What a job would be, before anything is read or trained; and all that only this can find wrong."""

import math
from collections.abc import Sequence

import torch

from kdcore.config import Config, Loc, SpecError
from kdcore.data import DataError, DataFacts, ViewError
from kdcore.losses import Context, LossError, Term
from kdcore.models import ModelError
from kdcore.plan_cost import Costs, MemoryPlan, ModelPlan, StagePlan, TermPlan, model_costs, plan_memory, sample_flops
from kdcore.plan_warnings import warnings
from kdcore.spec import JobSpec, StageConfig, StudentConfig, TeacherConfig, TeacherTrainConfig, TrainConfig
from kdcore.stages import Stage, list_stages
from kdcore.targets import kept_bytes, views_read
from kdcore.tasks import TASKS
from kdcore.transfer import expected_samples, transfer_errors

MOST_PEERS = 16
"""In a spec: each is a network that the plan has to build."""
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
    compression: Compression | None
    """None without a teacher."""
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
    errors = _too_many_peers(spec)
    facts = _facts(spec, errors)
    if facts is None or errors:
        raise SpecError(errors)
    teachers = [_model(teacher, facts, ("teachers", index), errors) for index, teacher in enumerate(spec.teachers)]
    student = _model(spec.student, facts, ("student",), errors)
    if spec.select_by not in (scores := TASKS[facts.task].scores):
        errors.append((("select_by",), f"{spec.select_by} is no score of a {facts.task}; use {', '.join(scores)}"))
    for index, teacher in enumerate(spec.teachers):
        if teacher.train is not None:
            loc = ("teachers", index, "train")
            _check_training(teacher.train, facts, loc, errors)
            if teacher.train.losses is not None:
                _check_losses(teacher.train, loc, teachers[index], teachers[:index], facts, errors)
    if spec.evaluate.robustness and not (facts.task == "classification" and len(facts.input_shape) == 3):
        errors.append((("evaluate", "robustness"), "it is measured of classifiers of pictures; leave it out"))
    errors += [(("transfer", *loc), message) for loc, message in transfer_errors(spec.transfer, facts)]
    _check_labels(spec, facts, errors)
    if spec.student.offset_classes and student is not None and student.network.output_bias() is None:
        message = "nothing is added last to the logits of this model, so that it can have no offset; use another model"
        errors.append((("student", "offset_classes"), message))
    for index, stage in enumerate(spec.stages):
        _check_training(stage, facts, ("stages", index), errors)
        _check_losses(stage, ("stages", index), student, teachers, facts, errors)
    known = [teacher for teacher in teachers if teacher is not None]
    if errors or student is None or len(known) < len(teachers):
        raise SpecError(errors)
    return _plan(spec, facts, known, student)


def _plan(spec: JobSpec, facts: DataFacts, teachers: list[Costs], student: Costs) -> Plan:
    stages = list_stages(spec)
    planned = [_stage(stage, spec, facts, teachers, student) for stage in stages]
    first, small = teachers[0].plan if teachers else None, student.plan
    memory = plan_memory(stages, planned, facts, teachers, student)
    return Plan(
        teachers=[teacher.plan for teacher in teachers],
        student=small,
        compression=_compression(first, small) if first is not None else None,
        stages=planned,
        total_steps=sum(stage.steps for stage in planned),
        training_flops=sum(
            sample_flops(stage, [teacher.plan for teacher in teachers], small) * each.samples * each.epochs
            for stage, each in zip(stages, planned, strict=True)
        ),
        memory=memory,
        warnings=warnings(spec, first, small, memory, planned),
    )


def _compression(teacher: ModelPlan, student: ModelPlan) -> Compression:
    return Compression(
        parameters=teacher.parameters / student.parameters,
        flops=teacher.flops / student.flops,
        bytes=teacher.bytes / student.bytes,
    )


def stage_samples(stage: Stage, spec: JobSpec, facts: DataFacts) -> int:
    """How many samples an epoch of the stage has, as far as that is known without the data."""
    return facts.train if stage.role == "teacher" else expected_samples(spec.transfer, facts)


def _stage(stage: Stage, spec: JobSpec, facts: DataFacts, teachers: list[Costs], student: Costs) -> StagePlan:
    samples = stage_samples(stage, spec, facts)
    terms = _terms(stage, facts, teachers, student)
    per_epoch = math.ceil(samples / stage.train.batch_size)
    return StagePlan(
        name=stage.name,
        epochs=stage.train.epochs,
        steps_per_epoch=per_epoch,
        steps=per_epoch * stage.train.epochs,
        samples=samples,
        batch_size=stage.train.batch_size,
        losses=[
            TermPlan(
                type=loss.type,
                layers=list(term.layers),
                comparisons=term.comparisons(stage.train.batch_size),
                parameters=sum(parameter.numel() for parameter in term.parameters()),
                buffers=sum(buffer.numel() * buffer.element_size() for buffer in term.buffers()),
            )
            for loss, term in zip(stage.losses, terms, strict=True)
        ],
        target_bytes=_target_bytes(stage, terms, spec, facts, teachers),
    )


def _target_bytes(
    stage: Stage, terms: list[Term], spec: JobSpec, facts: DataFacts, teachers: list[Costs]
) -> int | None:
    read = views_read(stage.losses, terms, stage.index if stage.role == "teacher" else len(teachers))
    if stage.train.augment.is_on or not spec.keep_targets:
        return None if read else 0
    return kept_bytes(read, [teacher.shapes for teacher in teachers], facts.train)


def _terms(stage: Stage, facts: DataFacts, teachers: list[Costs], student: Costs) -> list[Term]:
    taught = stage.role == "teacher"
    trained, before = (teachers[stage.index], teachers[: stage.index]) if taught else (student, teachers)
    with torch.device("meta"):
        return [loss.build(_context(stage.train, facts, before, trained)) for loss in stage.losses]


def _context(train: TrainConfig, facts: DataFacts, teachers: Sequence[Costs], trained: Costs) -> Context:
    return Context(
        student=trained.shapes,
        teachers=[teacher.shapes for teacher in teachers],
        input_shape=trained.facts.input_shape,
        vocabulary=trained.facts.vocabulary,
        classes=len(facts.classes),
        task=facts.task,
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


def _model(owner: TeacherConfig | StudentConfig, facts: DataFacts, place: Loc, errors: Errors) -> Costs | None:
    config, loc, classes = owner.model, (*place, "model"), len(facts.classes)
    if owner.view is not None:
        try:
            facts = owner.view.facts(facts)
        except ViewError as error:
            errors.append(((*place, "view", error.field), str(error)))
            return None
    if facts.task != "embedding" and config.classes not in (None, classes):
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


def _too_many_peers(spec: JobSpec) -> Errors:
    peers = [
        ("stages", number, "losses", index, "peer")
        for number, stage in enumerate(spec.stages)
        for index, loss in enumerate(stage.losses)
        if loss.type == "mutual"
    ]
    return [(loc, f"a job may have {MOST_PEERS} peers in all its stages") for loc in peers[MOST_PEERS:]]


def _check_labels(spec: JobSpec, facts: DataFacts, errors: Errors) -> None:
    """Offsets name classes; with some labels unseen, only a loss that can do without a sample's label stays."""
    for index, name in enumerate(spec.student.offset_classes):
        if facts.task != "classification" or name not in facts.classes:
            errors.append((("student", "offset_classes", index), f"the data has no class {name!r}"))
    for number, stage in enumerate(spec.stages):
        for index, loss in enumerate(stage.losses):
            loc = ("stages", number, "losses", index, "type")
            if spec.transfer.labelled == 0 and loss.needs_labels:
                errors.append(
                    (loc, f"{loss.type} needs labels, transfer.labelled is 0; use losses on the teacher only")
                )
            elif spec.transfer.labelled < 1 and loss.needs_labels and not loss.skips_unlabelled:
                errors.append((loc, f"{loss.type} needs the label of every sample; set transfer.labelled to 1"))


def _check_training(config: TrainConfig, facts: DataFacts, loc: Loc, errors: Errors) -> None:
    if config.batch_size > facts.train:
        message = f"{config.batch_size} is more than the {facts.train} training samples; use at most {facts.train}"
        errors.append(((*loc, "batch_size"), message))
    pictures = len(facts.input_shape) == 3
    if config.augment.is_on and not pictures:
        message = f"augmentation changes pictures (C, H, W), the samples are {facts.input_shape}; leave it out"
        errors.append(((*loc, "augment"), message))
        return
    size = min(facts.input_shape[1:], default=0)
    for field, pixels in (("crop", config.augment.crop), ("jitter", config.augment.jitter)):
        if pictures and pixels >= size:
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
        if loss.tasks is not None and facts.task not in loss.tasks:
            message = f"{loss.type} is for {' or '.join(sorted(loss.tasks))}, the data's task is {facts.task}"
            errors.append(((*loc, "losses", number, "type"), f"{message}; logit_mse fits every task"))
            continue
        try:
            with torch.device("meta"):
                loss.build(context)
        except LossError as error:
            errors.append(((*loc, "losses", number, error.field), str(error)))
