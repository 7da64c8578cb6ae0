"""What a job would be, before anything is read or trained; and all that only this can find wrong."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from kdcore.config import Config, Loc, SpecError
from kdcore.data import DataError, DataFacts, ViewError
from kdcore.data.views import FieldConfig, fields_named
from kdcore.losses import Context, LossError, Term
from kdcore.machine_speed import MachineSpeed
from kdcore.models import AnswersConfig, LogitsConfig, ModelError
from kdcore.plan_cost import (
    Costs,
    MemoryPlan,
    ModelPlan,
    StagePlan,
    TermPlan,
    forward_cost,
    model_costs,
    plan_memory,
    sample_flops,
)
from kdcore.plan_given import given_errors
from kdcore.plan_labels import check_labels, check_training, evaluation_errors, selection_errors, too_many_peers
from kdcore.plan_student import check_student, choice
from kdcore.plan_warnings import warnings
from kdcore.spec import JobSpec, StudentConfig, TeacherConfig, tokenizers_of
from kdcore.stages import Stage, list_stages
from kdcore.state import teacher_name
from kdcore.student_choice import StudentChoice
from kdcore.targets import kept_bytes, views_read
from kdcore.training import StageConfig, TeacherTrainConfig, TrainConfig
from kdcore.transfer import expected_samples, transfer_errors

MOST_BYTES = 2**31 - 2**24
"""Of a model's weights: an ONNX file, by which every model is timed and the student exported, is below 2 GiB."""

__all__ = ["Compression", "MemoryPlan", "ModelPlan", "Plan", "StagePlan", "TermPlan", "make_plan"]

Errors = list[tuple[Loc, str]]


class Compression(Config):
    """How many times smaller the student is than the first teacher."""

    parameters: float
    flops: float | None
    """None where nobody counted the teacher's: it is an ONNX file."""
    bytes: float


class Plan(Config):
    """A job's sizes and steps."""

    teachers: list[ModelPlan]
    student: ModelPlan
    student_choice: StudentChoice | None = None
    """How the student's model was picked, where the spec did not name it."""
    compression: Compression | None
    """None without a teacher, and in a plan whose first teacher is an ONNX file, which is not read yet."""
    stages: list[StagePlan]
    """In the order in which they run."""
    total_steps: int
    training_flops: int
    """Of all forward and backward passes of training, a backward pass counted as two forward ones."""
    memory: MemoryPlan
    warnings: list[str]


def make_plan(spec: JobSpec, speed: MachineSpeed | None = None) -> Plan:
    """Check a spec as far as shapes go, and count what it costs.

    Reads no data and makes no weights: everything happens on torch's meta device. Safe to call in threads.

    Args:
        speed: with which the spec was read, where `max_latency_ms` picked the student by it.

    Raises:
        SpecError: every error that was found, each with its place in the spec.
    """
    errors = too_many_peers(spec)
    facts = _facts(spec, errors)
    if facts is None or errors:
        raise SpecError(errors)
    teachers = [_model(teacher, facts, ("teachers", index), errors) for index, teacher in enumerate(spec.teachers)]
    student = _model(spec.student, facts, ("student",), errors)
    check_student(spec, student, teachers, errors)
    errors += selection_errors(spec, facts)
    for index, teacher in enumerate(spec.teachers):
        if teacher.train is not None:
            loc = ("teachers", index, "train")
            check_training(teacher.train, facts, loc, errors)
            if teacher.train.losses is not None:
                _check_losses(teacher.train, loc, teachers[index], teachers[:index], facts, errors)
    if spec.evaluate.robustness and not (facts.task == "classification" and len(facts.input_shape) == 3):
        errors.append((("evaluate", "robustness"), "it is measured of classifiers of pictures; leave it out"))
    errors += [(("transfer", *loc), message) for loc, message in transfer_errors(spec.transfer, facts)]
    check_labels(spec, facts, errors)
    errors += evaluation_errors(spec)
    if spec.student.offset_classes and student is not None and student.network.output_bias() is None:
        message = "nothing is added last to the logits of this model, so that it can have no offset; use another model"
        errors.append((("student", "offset_classes"), message))
    for index, stage in enumerate(spec.stages):
        check_training(stage, facts, ("stages", index), errors)
        _check_losses(stage, ("stages", index), student, teachers, facts, errors)
    known = [teacher for teacher in teachers if teacher is not None]
    if errors or student is None or len(known) < len(teachers):
        raise SpecError(errors)
    return _plan(spec, facts, known, student, speed)


def _plan(spec: JobSpec, facts: DataFacts, teachers: list[Costs], student: Costs, speed: MachineSpeed | None) -> Plan:
    stages = list_stages(spec)
    planned = [_stage(stage, spec, facts, teachers, student) for stage in stages]
    first, small = teachers[0].plan if teachers else None, student.plan
    memory = plan_memory(stages, planned, _stored(spec, facts), teachers, student)
    return Plan(
        teachers=[teacher.plan for teacher in teachers],
        student=small,
        student_choice=choice(spec, student, speed),
        compression=_compression(first, small) if first is not None and first.parameters else None,
        stages=planned,
        total_steps=sum(stage.steps for stage in planned),
        training_flops=sum(
            sample_flops(stage, each, [teacher.plan for teacher in teachers], small) * each.samples * each.epochs
            for stage, each in zip(stages, planned, strict=True)
        ),
        memory=memory,
        warnings=warnings(spec, first, small, memory, planned),
    )


def _stored(spec: JobSpec, facts: DataFacts) -> DataFacts:
    """Of the samples as they are kept: of texts with what teachers' own tokenizers make of them."""
    more = sum(tokenizer.length for tokenizer in tokenizers_of(spec))
    return replace(facts, input_shape=(facts.input_shape[0] + more,)) if more else facts


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
    trained = teachers[stage.index] if stage.role == "teacher" else student
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
                held=term.held(stage.train.batch_size),
                parameters=sum(parameter.numel() for parameter in term.parameters()),
                buffers=sum(buffer.numel() * buffer.element_size() for buffer in term.buffers()),
                **_beside(term, trained.facts),
            )
            for loss, term in zip(stage.losses, terms, strict=True)
        ],
        **_kept(stage, terms, spec, facts, teachers),
    )


def _beside(term: Term, facts: DataFacts) -> dict[str, int]:
    """Of a term's plan, what a network of its own costs."""
    network = term.beside()
    flops, activations = forward_cost(network.eval(), facts) if network is not None else (0, 0)
    return {"flops": flops, "activations": activations}


def _kept(stage: Stage, terms: list[Term], spec: JobSpec, facts: DataFacts, teachers: list[Costs]) -> dict[str, Any]:
    """Of the stage's plan, what is said about keeping what its teachers say."""
    read = views_read(stage.losses, terms, stage.index if stage.role == "teacher" else len(teachers))
    read = {place: names for place, names in read.items() if not isinstance(spec.teachers[place].model, AnswersConfig)}
    versions = stage.train.augment.versions
    if not read:
        return {"target_bytes": 0}
    if not spec.keep_targets:
        return {"asked_because": "`keep_targets` is off"}
    if versions is None:
        return {"asked_because": "`augment` draws other samples in each epoch; with `views` it draws a fixed number"}
    return {
        "target_bytes": kept_bytes(read, [teacher.shapes for teacher in teachers], versions * facts.train),
        "target_views": [f"{teacher_name(place)}/{name}" for place, names in read.items() for name in names],
    }


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
    config, loc = owner.model, (*place, "model")
    theirs = owner.classes if isinstance(owner, TeacherConfig) else None
    classes = len(theirs or facts.classes)
    if wrong := [((*place, *inner), message) for inner, message in given_errors(owner, facts)]:
        errors += wrong
        return None
    if facts.fields and not isinstance(owner.view, FieldConfig) and not isinstance(config, LogitsConfig):
        named = f"every sample has several fields, {fields_named(facts)}"
        errors.append(((*place, "view"), f"{named}; name the one that is read, as {{type: field, field: …}}"))
        return None
    if isinstance(owner, TeacherConfig) and owner.tokenizer is not None:
        facts = owner.tokenizer.facts(facts)
    if owner.view is not None:
        try:
            facts = owner.view.facts(facts)
        except ViewError as error:
            errors.append(((*place, "view", error.field), str(error)))
            return None
    if facts.task != "embedding" and config.classes not in (None, classes):
        whose = "the teacher's `classes`" if theirs else "the data"
        message = f"the model has {config.classes} classes, {whose} has {classes}; leave `classes` out"
        errors.append(((*loc, "classes"), message))
        return None
    try:
        costs = model_costs(config, facts, theirs)
    except ModelError as error:
        errors.append(((*loc, *error.loc), str(error)))
        return None
    if costs.plan.bytes + costs.buffers > MOST_BYTES:
        weights = f"{costs.plan.parameters:,} parameters ({costs.plan.bytes / 2**30:,.1f} GiB)"
        errors.append((loc, f"{weights} are more than an ONNX file can hold (2 GiB); use fewer or narrower layers"))
    return costs


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
