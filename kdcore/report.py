"""What a job found out: the result document and the sentence that sums it up."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from kdcore.calibration import scaled
from kdcore.choices import cpu_name
from kdcore.compare import gain, spread
from kdcore.examine import sentence, worse_teachers
from kdcore.export import weights_digest
from kdcore.job import Job
from kdcore.latency import late, latency_budget
from kdcore.memory import peak
from kdcore.models import LogitsConfig, OnnxNetwork
from kdcore.plan import ModelPlan, make_plan
from kdcore.plan_warnings import spread_logits
from kdcore.robustness import Hits, accuracies, compare_robustness
from kdcore.seeds import derive
from kdcore.state import student_name, teacher_name
from kdcore.tasks import Task
from kdcore.transfer import labelled

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
    robust: Mapping[str, Hits],
) -> dict[str, Any]:
    """The result document, in finite JSON values.

    Args:
        logits: on the test split, (N, C) each: `teacher-1` and so on, `student` and, where there is one, `baseline`.
        held: the same on the validation split.
        robust: `robustness.measure_robustness` of each, where it was asked for.
        speeds: `latency.measure_latency` of `teacher-1` and of `student`.
    """
    labels, task = job.data.test.labels.cpu(), job.task
    known, validated = labelled(labels), labelled(job.validation_labels)
    labels = labels[known]

    def measure(name: str) -> dict[str, Any]:
        if not known.any():
            return dict.fromkeys(task.scores)
        outputs = logits[name][known]
        fit = {}
        if task.calibrated and validated.any():
            fit = scaled(held[name][validated], job.validation_labels[validated], outputs, labels)
        return task.measure(outputs, labels) | fit

    plan = make_plan(job.spec)
    names = [teacher_name(index) for index in range(len(plan.teachers))]
    teachers = [
        {**measure(name), **_teacher_size(job, index, plan.teachers[index]), **speeds[name]}
        for index, name in enumerate(names)
    ]
    # The baseline is the student's network with other weights: it is as large and as fast.
    same = {**_size(plan.student), **speeds["student"]}
    taught = [logits[name] for name in names]
    student = {**measure("student"), **_likeness(task, logits["student"], taught), **same}
    baseline = difference = None
    if "baseline" in logits and known.any():
        baseline = {**measure("baseline"), **_likeness(task, logits["baseline"], taught), **same}
        each = {name: task.of_each(logits[name][known], labels) for name in ("student", "baseline")}
        difference = gain(task.compared, each["student"], each["baseline"], derive(job.spec.seed, "bootstrap"))
    repeats = [
        {
            name: task.scores[task.main](logits[key][known], labels)
            for name, key in _names(repeat).items()
            if key in logits and known.any()
        }
        for repeat in range(job.spec.repeats)
    ]
    measured = dict(zip(names, teachers, strict=True)) | {"student": student}
    budget = latency_budget(job.spec.student.max_latency_ms, student)
    worse = worse_teachers(job, measured | ({"baseline": baseline} if baseline is not None else {}))
    result: dict[str, Any] = {
        "task": task.name,
        "score": task.main,
        "teacher": teachers[0] if teachers else None,
        "teachers": teachers,
        "baseline": baseline,
        "student": student,
        "gain": difference,
        "robustness": {each: accuracies(robust[each]) for each in (*names, "baseline", "student") if each in robust}
        or None,
        "robustness_gain": compare_robustness(robust["student"], robust["baseline"]) if "baseline" in robust else None,
        "repeats": over_repeats(task, repeats) if len(repeats) > 1 else None,
        "compression": _compression(teachers[0], student) if teachers else None,
        "speedup": _speedup(teachers[0], student) if teachers else None,
        "measured_on": cpu_name(),
        "latency_budget": budget,
        "warnings": [*_made_up(job), *(sentence(each) for each in worse), *late(budget)],
        "worse_teachers": worse,
        "test_samples": len(known),
        "test_labels": len(labels),
        "validation": job.state.selected,
        "seconds": job.state.seconds,
        "reused": reused_teachers(job),
        "choices": job.choices.model_dump(mode="json"),
        "peak_memory": {"bytes": peak(job.device), "planned": job.plan.memory.total},
    }
    return {"summary": " ".join(filter(None, (summary(result), robustness_sentence(result)))), **result}


def reused_teachers(job: Job) -> dict[str, Any]:
    """Of each teacher that another job had trained, its weights' digest and the seconds that this took there."""
    return {
        name: {"digest": weights_digest(job.state.models[name]), "trained_seconds": chosen["trained_seconds"]}
        for name, chosen in job.state.selected.items()
        if "trained_seconds" in chosen
    }


def _made_up(job: Job) -> list[str]:
    taught = enumerate(job.spec.teachers, start=1)
    brought = [number for number, teacher in taught if isinstance(teacher.model, LogitsConfig)]
    return [said for number in brought for said in spread_logits(number, job.data.facts)]


def robustness_sentence(result: Mapping[str, Any]) -> str:
    """Whether this distilled student is more robust; nothing where that was not measured of it and the baseline."""
    found = result["robustness_gain"]
    if found is None:
        return ""
    more = "more robust" if found["low"] > 0 else "less robust" if found["high"] < 0 else "no more and no less robust"
    return (
        f"Under changes and attacks it loses {found['student'] * 100:.1f} points of accuracy on average and the same"
        f" student trained on the labels alone {found['baseline'] * 100:.1f}: it is {more} (95% interval of the"
        f" difference {found['low'] * 100:+.1f} to {found['high'] * 100:+.1f})."
    )


def _compression(teacher: Mapping[str, Any], student: Mapping[str, Any]) -> dict[str, float | None]:
    """How many times smaller the student is than the first teacher; none of what is not known of the teacher."""
    return {
        size: teacher[size] / student[size] if teacher[size] is not None else None
        for size in ("parameters", "flops", "bytes")
    }


def _teacher_size(job: Job, index: int, plan: ModelPlan) -> dict[str, Any]:
    """As planned; of a teacher that is an ONNX file, as the file says; of precomputed logits unknown."""
    if job.spec.teachers[index].model.trainable:
        return _size(plan)
    network = job.loaded(teacher_name(index))
    return network.size() if isinstance(network, OnnxNetwork) else dict.fromkeys(_size(plan))


def _speedup(teacher: Mapping[str, Any], student: Mapping[str, Any]) -> dict[str, float] | None:
    """How many times faster the student is than the first teacher: with one sample, and with batches of 64. None where
    nobody knows how fast the teacher is."""
    if "latency_ms" not in teacher:
        return None
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


def _likeness(task: Task, logits: Tensor, taught: list[Tensor]) -> dict[str, Any]:
    """How much a student is like its first teacher, where it has one; of several, `by_teacher`, like each of them."""
    each = [{name: score(logits, teacher) for name, score in task.likeness.items()} for teacher in taught]
    if len(each) < 2:
        return each[0] if each else {}
    return {**each[0], "by_teacher": each}


def _size(plan: ModelPlan) -> dict[str, Any]:
    return {"parameters": plan.parameters, "flops": plan.flops, "bytes": plan.bytes}


def summary(result: Mapping[str, Any]) -> str:
    """One sentence: what was kept, at what size, and whether distilling was worth it."""
    teacher, student, score = result["teacher"], result["student"], result["score"]
    if student[score] is None:
        return f"{_without_labels(student, teacher)}."
    own = f"The student's {TITLES[score]} is {student[score]:.4f}"
    if teacher is None:
        text = f"{own}, with {student['parameters']:,} parameters"
    elif score in LEAST:
        text = f"{own}, the teacher's {teacher[score]:.4f}, with {_fewer(teacher, student)}"
    else:
        kept = student[score] / teacher[score] if teacher[score] else 1.0
        both = f"{student[score]:.4f} of {teacher[score]:.4f}"
        text = f"The student keeps {kept:.1%} of the teacher's {TITLES[score]} ({both}) with {_fewer(teacher, student)}"
    found = result["gain"]
    if found is None:
        return f"{text}."
    over = (result["repeats"] or {}).get("gain")
    gained = _gained(found) if over is None else _gained_over(score, over, result["repeats"])
    return f"{text}; distillation changed {gained}."


def _without_labels(student: Mapping[str, Any], teacher: Mapping[str, Any] | None) -> str:
    """Of a student whose test samples have no labels: only its likeness to the teacher can be told."""
    if teacher is None or "agreement" not in student:
        return f"The test samples have no labels to score the student by; it has {student['parameters']:,} parameters"
    return (
        f"The student agrees with the teacher on {student['agreement']:.1%} of the test samples, which have no labels,"
        f" with {_fewer(teacher, student)}"
    )


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
        f"{change} {count} against the same student trained on the labels alone"
        f" (mean ± standard deviation; 95% interval of the mean {bounds}{verdict})"
    )


def _gained(found: Mapping[str, Any]) -> str:
    low, high = found["interval"]
    verdict = "" if low > 0 or high < 0 else ", so chance may explain it"
    name = found["score"]
    change = found[name]
    test = f", McNemar p = {found['mcnemar']['p']:.2g}" if "mcnemar" in found else ""
    if "sign_flips" in found:
        test = f", sign-flip p = {found['sign_flips']['p']:.2g}"
    if name == "mae":
        return (
            f"the mean absolute error by {-change:+.4g} against the same student trained on the"
            f" labels alone (95% interval {-high:+.4g} to {-low:+.4g}{test}{verdict})"
        )
    return (
        f"{TITLES[name]} by {change * 100:+.2f} points against the same student trained on the"
        f" labels alone (95% interval {low * 100:+.2f} to {high * 100:+.2f}{test}{verdict})"
    )


def _fewer(teacher: Mapping[str, Any], student: Mapping[str, Any]) -> str:
    large, small = teacher["parameters"], student["parameters"]
    if large is None:
        return f"{small:,} parameters"
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
        size = f"{values['bytes'] / 1024:,.1f} KiB" if values["bytes"] is not None else "-"
        latency = f"{values['latency_ms']['p50']:.3f} ms" if "latency_ms" in values else "-"
        count = f"{values['parameters']:,}" if values["parameters"] is not None else "-"
        main = f"{values[score]:.4f}" if values[score] is not None else "-"
        rows.append((label, main, agreement, count, size, latency))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    )
