"""What a plan checks and says of the student's model, beside its size."""

from collections.abc import Sequence

from kdcore.config import Loc
from kdcore.initial import copies
from kdcore.machine_speed import MachineSpeed
from kdcore.plan_cost import Costs
from kdcore.spec import JobSpec
from kdcore.student_choice import StudentChoice, explain_choice, explain_latency


def check_student(
    spec: JobSpec, student: Costs | None, teachers: Sequence[Costs | None], errors: list[tuple[Loc, str]]
) -> None:
    """Its budget, and whether it can begin with its teacher's layers."""
    most = spec.student.max_parameters
    if student is not None and most is not None and student.plan.parameters > most:
        message = f"the student's model has {student.plan.parameters:,} parameters, {most:,} are allowed"
        errors.append((("student", "max_parameters"), f"{message}; leave `model` out to have one picked"))
    if spec.student.initialize != "from_teacher":
        return
    if not teachers:
        errors.append((("student", "initialize"), "there is no teacher whose layers could be copied; leave it out"))
    elif student is not None and teachers[0] is not None:
        try:
            copies(student.network, teachers[0].network)
        except ValueError as error:
            errors.append((("student", "initialize"), str(error)))


def choice(spec: JobSpec, student: Costs, speed: MachineSpeed | None) -> StudentChoice | None:
    """How the student's model was picked; none where the spec names it.

    Args:
        speed: by which it was, where `max_latency_ms` picked it just now.
    """
    asked, model, count = spec.student, spec.student.model, student.plan.parameters
    teacher = spec.teachers[0].model if spec.teachers else None
    if asked.shrink is not None:
        return explain_choice("shrink", model, count, student.facts, teacher, asked.shrink)
    if asked.max_parameters is not None:
        return explain_choice("max_parameters", model, count, student.facts, teacher, asked.max_parameters)
    if asked.max_latency_ms is not None and speed is not None:
        return explain_latency(model, count, student.facts, teacher, asked.max_latency_ms, speed)
    return None
