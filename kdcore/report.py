"""What a job found out: the result document and the sentence that sums it up."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from kdcore.calibration import scaled
from kdcore.compare import gain, spread
from kdcore.job import Job, student_name, teacher_name
from kdcore.plan import ModelPlan, make_plan
from kdcore.seeds import derive
from kdcore.tasks import Task

TITLES = {
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "label_accuracy": "share of right decisions",
    "mae": "mean absolute error",
    "recall_at_1": "recall at 1",
}
LEAST = frozenset({"mae"})


def build_result(
    job: Job,
    logits: Mapping[str, Tensor],
    held: Mapping[str, Tensor],
    speeds: Mapping[str, Mapping[str, Any]],
    robust: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """The result document, in finite JSON values.

    Args:
        logits: on the test split, (N, C) each: `teacher-1` and so on, `student` and, where there is one, `baseline`.
        held: the same on the validation split.
        robust: `robustness.measure_robustness` of each, where it was asked for.
        speeds: `latency.measure_latency` of `teacher-1` and of `student`.
    """
    labels, task = job.data.test.labels.cpu(), job.task

    def measure(name: str) -> dict[str, Any]:
        fit = scaled(held[name], job.validation_labels, logits[name], labels) if task.calibrated else {}
        return task.measure(logits[name], labels) | fit

    plan = make_plan(job.spec)
    names = [teacher_name(index) for index in range(len(plan.teachers))]
    teacher_logits = logits[names[0]] if names else None
    teachers = [
        {**measure(name), **_size(size), **speeds[name]} for name, size in zip(names, plan.teachers, strict=True)
    ]
    # The baseline is the student's network with other weights: it is as large and as fast.
    same = {**_size(plan.student), **speeds["student"]}
    student = {**measure("student"), **_likeness(task, logits["student"], teacher_logits), **same}
    baseline = difference = None
    if "baseline" in logits:
        baseline = {**measure("baseline"), **_likeness(task, logits["baseline"], teacher_logits), **same}
        each = {name: task.of_each(logits[name], labels) for name in ("student", "baseline")}
        difference = gain(task.compared, each["student"], each["baseline"], derive(job.spec.seed, "bootstrap"))
    repeats = [
        {name: task.scores[task.main](logits[key], labels) for name, key in _names(repeat).items() if key in logits}
        for repeat in range(job.spec.repeats)
    ]
    result: dict[str, Any] = {
        "task": task.name,
        "score": task.main,
        "teacher": teachers[0] if teachers else None,
        "teachers": teachers,
        "baseline": baseline,
        "student": student,
        "gain": difference,
        "robustness": {name: robust[name] for name in (*names, "baseline", "student") if name in robust} or None,
        "repeats": over_repeats(task, repeats) if len(repeats) > 1 else None,
        "compression": plan.compression.model_dump(mode="json") if plan.compression is not None else None,
        "speedup": _speedup(teachers[0], student) if teachers else None,
        "test_samples": len(labels),
        "validation": job.state.selected,
        "seconds": job.state.seconds,
        "choices": job.choices.model_dump(mode="json"),
    }
    return {"summary": summary(result), **result}


def _speedup(teacher: Mapping[str, Any], student: Mapping[str, Any]) -> dict[str, float]:
    """How many times faster the student is than the first teacher: with one sample, and with batches of 64."""
    return {
        "latency": teacher["latency_ms"]["p50"] / student["latency_ms"]["p50"],
        "throughput": student["samples_per_second"] / teacher["samples_per_second"],
    }


def _names(repeat: int) -> dict[str, str]:
    return {"student": student_name("distill", repeat), "baseline": student_name("baseline", repeat)}


def over_repeats(task: Task, repeats: list[dict[str, float]]) -> dict[str, Any]:
    """The score of each repeat, and the mean and spread of the gain over them.

    The interval is Student's for the mean of so many differences (95%, two-sided).
    """
    found: dict[str, Any] = {"score": task.main, "each": repeats, "gain": None}
    both = [each for each in repeats if "baseline" in each]
    gains = [task.better(task.main, r["student"]) - task.better(task.main, r["baseline"]) for r in both]
    if gains:
        found["gain"] = spread(gains)
    return found


def _likeness(task: Task, logits: Tensor, teacher_logits: Tensor | None) -> dict[str, float]:
    """How much a student is like its teacher, where it has one."""
    if teacher_logits is None:
        return {}
    return {name: score(logits, teacher_logits) for name, score in task.likeness.items()}


def _size(plan: ModelPlan) -> dict[str, Any]:
    return {"parameters": plan.parameters, "flops": plan.flops, "bytes": plan.bytes}


def summary(result: Mapping[str, Any]) -> str:
    """One sentence, or two: what was kept, at what size, and whether distilling was worth it."""
    teacher, student, score = result["teacher"], result["student"], result["score"]
    own = f"The student's {TITLES[score]} is {student[score]:.4f}"
    if teacher is None:
        text = f"{own}, with {student['parameters']:,} parameters."
    elif score in LEAST:
        text = f"{own}, the teacher's {teacher[score]:.4f}, with {_fewer(teacher, student)}."
    else:
        kept = student[score] / teacher[score] if teacher[score] else 1.0
        both = f"{student[score]:.4f} of {teacher[score]:.4f}"
        text = (
            f"The student keeps {kept:.1%} of the teacher's {TITLES[score]} ({both}) with {_fewer(teacher, student)}."
        )
    found = result["gain"]
    if found is None:
        return text
    over = (result["repeats"] or {}).get("gain")
    return f"{text} {_gained(found)}" if over is None else f"{text} {_gained_over(score, over, result['repeats'])}"


def _gained_over(score: str, over: Mapping[str, Any], repeats: Mapping[str, Any]) -> str:
    """The gain over repeats; with several of them nobody asks what one of them gained."""
    low, high = over["interval"]
    verdict = "" if low > 0 or high < 0 else ", so chance may explain it"
    count = f"over {len(repeats['each'])} repeats"
    if score in LEAST:
        mean, low, high = -over["mean"], -high, -low
        change = f"the {TITLES[score]} by {mean:+.4g} ± {over['std']:.2g}"
        bounds = f"{low:+.4g} to {high:+.4g}"
    else:
        change = f"{TITLES[score]} by {over['mean'] * 100:+.2f} ± {over['std'] * 100:.2f} points"
        bounds = f"{low * 100:+.2f} to {high * 100:+.2f}"
    return (
        f"Distillation changed {change} {count} against the same student trained on the labels alone"
        f" (mean ± standard deviation; 95% interval of the mean {bounds}{verdict})."
    )


def _gained(found: Mapping[str, Any]) -> str:
    low, high = found["interval"]
    verdict = "" if low > 0 or high < 0 else ", so chance may explain it"
    name = found["score"]
    change = found[name]
    if name == "mae":
        return (
            f"Distillation changed the mean absolute error by {-change:+.4g} against the same student trained on the"
            f" labels alone (95% interval {-high:+.4g} to {-low:+.4g}{verdict})."
        )
    test = f", McNemar p = {found['mcnemar']['p']:.2g}" if "mcnemar" in found else ""
    return (
        f"Distillation changed {TITLES[name]} by {change * 100:+.2f} points against the same student trained on the"
        f" labels alone (95% interval {low * 100:+.2f} to {high * 100:+.2f}{test}{verdict})."
    )


def _fewer(teacher: Mapping[str, Any], student: Mapping[str, Any]) -> str:
    large, small = teacher["parameters"], student["parameters"]
    if small >= large:
        return f"{small:,} parameters against its {large:,}"
    return f"{large / small:.1f} times fewer parameters ({small:,} of {large:,})"


def table(result: Mapping[str, Any]) -> str:
    """Teacher, baseline and student side by side, as text in columns."""
    score = result["score"]
    rows = [("", TITLES[score], "agreement", "parameters", "size", "latency p50")]
    labelled = (("teacher", "teacher"), ("baseline", "student alone"), ("student", "student distilled"))
    for key, label in labelled:
        if (values := result[key]) is None:
            continue
        agreement = f"{values['agreement']:.4f}" if "agreement" in values else "-"
        size = f"{values['bytes'] / 1024:,.1f} KiB"
        latency = f"{values['latency_ms']['p50']:.3f} ms"
        rows.append((label, f"{values[score]:.4f}", agreement, f"{values['parameters']:,}", size, latency))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    )
