"""A student that a spec describes instead of naming its model: a thinner teacher, or the largest that fits a budget, of
parameters or of the time that it takes.

Both are worked out when a spec is read, so that the complete spec names the model; what it was made from stays beside
it. Where a spec has both, as a complete one does, the model is what is used.
"""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Literal

from pydantic import Field, TypeAdapter, ValidationError, ValidationInfo, field_validator

from kdcore.config import Config, Loc, SpecError
from kdcore.data import DataConfig, DataError, DataFacts, ViewConfig, ViewError
from kdcore.ladders import LADDERS, Family, members, usual_families
from kdcore.latency_estimate import estimate_model
from kdcore.machine_speed import MachineSpeed
from kdcore.models import BaseModelConfig, ModelConfig, ModelError
from kdcore.shrinking import shrunk

PLACEHOLDER = {"type": "mlp"}
"""Where the rest of the spec is wrong, which its validation says: nobody sees it."""


class ShrinkConfig(Config):
    """The first teacher's model with fewer layers and channels."""

    of: Literal["teacher"] = "teacher"
    width: float = Field(default=1.0, gt=0, le=1)
    """Times the teacher's channels."""
    depth: float = Field(default=1.0, gt=0, le=1)
    """Times the teacher's layers or blocks."""


class StudentWishes(Config):
    """What a student is to be like, instead of its model or beside it."""

    shrink: ShrinkConfig | None = None
    """The first teacher's model with fewer layers and channels."""
    max_parameters: int | None = Field(default=None, ge=1, le=1_000_000_000)
    """The model has at most so many; where none is named, the largest of a family that fits."""
    max_latency_ms: float | None = Field(default=None, gt=0, le=3_600_000)
    """What `student.onnx` may take for one sample by onnxruntime on one CPU thread, in milliseconds: the median that
    the result calls `latency_ms.p50`, and is compared with. Where no model is named, the largest of a family that takes
    no more by the estimate from a worker's calibration."""
    family: Family | None = None
    """Of the model that `max_parameters` or `max_latency_ms` picks; none: the teacher's where one of it fits, else what
    is usual for the data."""

    @field_validator("max_parameters")
    @classmethod
    def _one_wish(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("shrink") is not None:
            raise ValueError("give either `shrink` or `max_parameters`: each of them picks a model")
        return value

    @field_validator("max_latency_ms")
    @classmethod
    def _one_budget(cls, value: float | None, info: ValidationInfo) -> float | None:
        for other in ("shrink", "max_parameters"):
            if value is not None and info.data.get(other) is not None:
                raise ValueError(f"give either `{other}` or `max_latency_ms`: each of them picks a model")
        return value

    @field_validator("family")
    @classmethod
    def _of_a_budget(cls, value: str | None, info: ValidationInfo) -> str | None:
        budgets = ("max_parameters", "max_latency_ms")
        if value is not None and all(info.data.get(name, 0) is None for name in budgets):
            raise ValueError("is for `max_parameters` or `max_latency_ms`, which pick a model of it; leave it out")
        return value


class StudentChoice(Config):
    """Which model was picked for the student, and why."""

    by: Literal["shrink", "max_parameters", "max_latency_ms"]
    family: str
    parameters: int
    latency_ms: float | None = None
    """Of `max_latency_ms`, as it was estimated: what the result measures as `student.latency_ms.p50`."""
    reason: str


def picks_by_latency(document: Any) -> bool:
    """Whether a spec's document leaves its student's model to `max_latency_ms`."""
    student = document.get("student") if isinstance(document, Mapping) else None
    if not isinstance(student, Mapping) or student.get("max_latency_ms") is None:
        return False
    return all(student.get(name) is None for name in ("model", "shrink", "max_parameters"))


def fill_model(document: Mapping[str, Any], speed: MachineSpeed | None = None) -> Mapping[str, Any]:
    """The document with the student's model, where it says only what it is to be like.

    Args:
        speed: of the machine that a latency is meant of.

    Raises:
        SpecError: no such model can be had.
    """
    student = document.get("student")
    if not isinstance(student, Mapping) or student.get("model") is not None:
        return document
    if student.get("shrink") is not None:
        model = _thinner(document, student)
    elif student.get("max_parameters") is not None:
        model = _largest(document, student, "max_parameters", lambda parameters, model, facts: parameters)
    elif student.get("max_latency_ms") is not None:
        model = _largest(document, student, "max_latency_ms", _latencies(speed))
    else:
        return document
    filled = model.model_dump(mode="json") if model is not None else PLACEHOLDER
    return {**document, "student": {**student, "model": filled}}


def _thinner(document: Mapping[str, Any], student: Mapping[str, Any]) -> BaseModelConfig | None:
    shrink = _read(ShrinkConfig, student["shrink"])
    teachers, teacher = document.get("teachers"), _teacher(document)
    if teachers == []:
        raise _error("shrink", "of", message="there is no teacher to make thinner; name the student's `model`")
    if shrink is None or teacher is None:
        return None
    try:
        return shrunk(teacher, shrink.width, shrink.depth)
    except ModelError as error:
        raise _error("shrink", *error.loc, message=str(error)) from None


Cost = Callable[[int, BaseModelConfig, DataFacts], float]
"""What a model takes of a budget: of its parameters, itself, and what it reads."""


def _latencies(speed: MachineSpeed | None) -> Cost:
    def cost(_: int, model: BaseModelConfig, facts: DataFacts) -> float:
        if speed is None:
            why = "no worker's machine was measured, so that nothing is known of latencies"
            mend = "run `distillery calibrate` where a worker runs, or name the student's `model`"
            raise _error("max_latency_ms", message=f"{why}; {mend}")
        return estimate_model(model, facts, speed)

    return cost


def _largest(document: Mapping[str, Any], student: Mapping[str, Any], field: str, cost: Cost) -> BaseModelConfig | None:
    """The one with most parameters of the first family of which one costs no more than the field allows."""
    budget, named = student[field], student.get("family")
    if type(budget) not in ((int,) if field == "max_parameters" else (int, float)) or not budget > 0:
        return None
    facts = _facts(document, student)
    if facts is None or (named is not None and named not in LADDERS):
        return None
    teacher = _teacher(document)
    smallest: list[tuple[float, str]] = []
    for family in [named] if named is not None else _families(teacher, facts):
        try:
            found = members(family, teacher, facts)
        except ModelError as error:
            if named is not None:
                raise _error("family", message=str(error)) from None
            continue
        costs = []
        for parameters, model in reversed(found):
            costs.append(cost(parameters, model, facts))
            if costs[-1] <= budget:
                return model
        smallest.append((min(costs), family))
    least, family = min(smallest)
    if field == "max_parameters":
        message = f"is too little: the smallest {family} has {least:,} parameters here; allow as many"
    else:
        message = f"is too little: the fastest {family} takes about {least:.3g} ms here, by estimate; allow more"
    raise _error(field, message=message if named is None else f"{message}, or name another `family`")


def _families(teacher: BaseModelConfig | None, facts: DataFacts) -> list[Family]:
    """The teacher's, where it has a ladder, then what is usual for the data."""
    first = [each for each in LADDERS if teacher is not None and each == teacher.type]
    return [*first, *(each for each in usual_families(facts) if each not in first)]


def explain_choice(
    by: Literal["shrink", "max_parameters"],
    model: BaseModelConfig,
    parameters: int,
    facts: DataFacts,
    teacher: BaseModelConfig | None,
    asked: ShrinkConfig | int,
) -> StudentChoice:
    """What a plan says of the student's model; `facts` are of what the student reads."""
    if isinstance(asked, ShrinkConfig):
        reason = f"the first teacher's model with {asked.width:g} of its width and {asked.depth:g} of its depth"
        return StudentChoice(by=by, family=model.type, parameters=parameters, reason=reason)
    rungs = members(model.type, teacher, facts) if model.type in LADDERS else []
    reason = f"{parameters:,} parameters are within the {asked:,} allowed"
    if any(each == model for _, each in rungs):
        larger = [count for count, _ in rungs if count > parameters]
        after = f"the next one has {larger[0]:,}" if larger else "there is no larger one"
        reason = f"of {len(rungs)} models of this family the largest with at most {asked:,} parameters; {after}"
    return StudentChoice(by=by, family=model.type, parameters=parameters, reason=reason)


def explain_latency(
    model: BaseModelConfig,
    parameters: int,
    facts: DataFacts,
    teacher: BaseModelConfig | None,
    allowed: float,
    speed: MachineSpeed,
) -> StudentChoice:
    """What a plan says of a model that was picked by the time that it takes."""
    rungs, took = members(model.type, teacher, facts), estimate_model(model, facts, speed)
    larger = [each for count, each in rungs if count > parameters]
    after = f"the next one {estimate_model(larger[0], facts, speed):.3g} ms" if larger else "there is no larger one"
    reason = (
        f"of {len(rungs)} models of this family the largest that takes at most {allowed:g} ms: {took:.3g} ms by"
        f" estimate, from what was measured on {speed.cpu}; {after}"
    )
    return StudentChoice(by="max_latency_ms", family=model.type, parameters=parameters, latency_ms=took, reason=reason)


def _teacher(document: Mapping[str, Any]) -> BaseModelConfig | None:
    """The first teacher's model; None where there is none, or nothing that could be one."""
    teachers = document.get("teachers")
    if not isinstance(teachers, list) or not teachers or not isinstance(teachers[0], Mapping):
        return None
    found: BaseModelConfig | None = _read(ModelConfig, teachers[0].get("model"))
    return found


def _facts(document: Mapping[str, Any], student: Mapping[str, Any]) -> DataFacts | None:
    """Of what the student reads; None where data or view are not valid."""
    data = _read(DataConfig, document.get("data"))
    view = _read(ViewConfig, student["view"]) if student.get("view") is not None else None
    if data is None or (view is None and student.get("view") is not None):
        return None
    try:
        facts: DataFacts = data.facts()
        return view.facts(facts) if view is not None else facts
    except DataError as error:
        raise SpecError([(("data", error.field) if error.field else ("data",), str(error))]) from None
    except ViewError as error:
        raise SpecError([(("student", "view", error.field), str(error))]) from None


def _read(kind: Any, value: Any) -> Any:
    """A part of the document; None where it is not valid, which the validation of the whole says."""
    try:
        return _adapter(kind).validate_python(value)
    except ValidationError:
        return None


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _error(*loc: str | int, message: str) -> SpecError:
    place: Loc = ("student", *loc)
    return SpecError([(place, message)])
