"""After the last stage: the test set, once; then the files."""

import json
import platform
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

import kdcore
from kdcore import export
from kdcore.card import model_card
from kdcore.checkpoint import disk_errors
from kdcore.data import DataFacts
from kdcore.inputs import Classifier, Normalise, unit
from kdcore.job import Job, student_name, teacher_name, view_shapes
from kdcore.latency import measure_latency
from kdcore.plain import plain_function
from kdcore.report import build_result
from kdcore.robustness import SAMPLES, measure_robustness
from kdcore.spec import spec_document


def finish(job: Job, out: Path) -> dict[str, Any]:
    """Evaluate on the test split, export the student into `out`, write the result and the model card.

    Returns:
        The result document.
    """
    taught = [teacher_name(index) for index in range(len(job.spec.teachers))]
    students = [student_name(role, repeat) for repeat in range(job.spec.repeats) for role in ("baseline", "distill")]
    names = [name for name in (*taught, *students) if name in job.state.models]
    logits = {name: job.predict(job.finished(name), "test", job.reader_of(name)) for name in names}
    held = {name: job.predict(job.finished(name), "validation", job.reader_of(name)) for name in names}
    robust = {name: robustness(job, name) for name in names} if job.spec.evaluate.robustness else {}
    with disk_errors("the student", out):
        out.mkdir(parents=True, exist_ok=True)
        code, speeds = write_models(job, out)
        job.session.poll()
        result = build_result(job, logits, held, speeds, robust)
        model = model_document(job)
        _write_json(out / "model.json", model)
        (out / "README.md").write_text(model_card(result, model, code), encoding="utf-8")
        _write_json(out / "result.json", result)
    return result


def write_models(job: Job, out: Path) -> tuple[str | None, dict[str, dict[str, Any]]]:
    """Write every model file, and time the teacher and the student.

    Returns:
        The student as plain torch code, where that can say what it does, and the speeds by model.
    """
    facts = job.student_reader.facts
    models = job.state.models
    export.save_weights(out / "student.safetensors", models["student"])
    if "baseline" in models:
        export.save_weights(out / "baseline.safetensors", models["baseline"])
    for index, teacher in enumerate(job.spec.teachers):
        if teacher.train is not None:
            export.save_weights(out / f"{teacher_name(index)}.safetensors", models[teacher_name(index)])

    job.session.poll()
    student = classifier(job, "student")
    program = export.trace(student, facts)
    job.session.poll()
    export.save_onnx(program, out / "student.onnx")
    code = plain_or_none(program)
    export.save_program(program, out / "student.pt2")
    export.check(student, program, out / "student.onnx", facts)
    speeds = {"student": measure_latency(out / "student.onnx", facts)}

    for index in range(len(job.spec.teachers)):
        job.session.poll()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "teacher.onnx"
            seen = job.teacher_readers[index].facts
            export.save_onnx(export.trace(classifier(job, teacher_name(index)), seen), path)
            speeds[teacher_name(index)] = measure_latency(path, seen)
    return code, speeds


def robustness(job: Job, name: str) -> dict[str, Any]:
    """Of a finished model, on the test split."""
    test = job.data.test
    model = Classifier(job.reader_of(name), job.finished(name))
    pictures, labels = unit(test.inputs[:SAMPLES], job.data.scale), test.labels[:SAMPLES]
    return measure_robustness(model, pictures, labels, poll=job.session.poll)


def plain_or_none(program: ExportedProgram) -> str | None:
    try:
        return plain_function(program)
    except ValueError:
        return None


def classifier(job: Job, name: str) -> Classifier:
    """A finished network on the CPU with its normalisation, as it is exported."""
    return Classifier(Normalise(job.reader_of(name).facts), job.finished(name).cpu()).eval()


def model_document(job: Job) -> dict[str, Any]:
    """The content of model.json: what is needed to use the student, and where it comes from."""
    facts, spec = job.student_reader.facts, spec_document(job.spec)
    architecture = {**spec["student"]["model"], "classes": spec["student"]["model"]["classes"] or len(facts.classes)}
    return {
        "format_version": 1,
        "name": job.spec.name,
        "architecture": architecture,
        "classes": list(facts.classes),
        "task": facts.task,
        "input": {"shape": list(facts.input_shape), "layout": layout(facts), "view": spec["student"]["view"]},
        "preprocessing": preprocessing(job, facts),
        "views": {name: list(shape) for name, shape in view_shapes(job.finished("student"), facts).items()},
        "provenance": {
            "spec_digest": job.spec_digest,
            "data": spec["data"],
            "data_digest": job.data.digest,
            "teachers": spec["teachers"],
            "stages": spec["stages"],
            "seed": job.spec.seed,
            "versions": {"kdcore": kdcore.__version__, "torch": torch.__version__, "python": platform.python_version()},
            "choices": job.choices.model_dump(mode="json"),
        },
    }


def layout(facts: DataFacts) -> str:
    """The dimensions of a batch: N samples, C channels, H rows, W columns, T places, F features."""
    if facts.vocabulary is not None:
        return "NT"
    return {3: "NCHW", 2: "NTF", 1: "NF"}[len(facts.input_shape)]


def preprocessing(job: Job, facts: DataFacts) -> dict[str, Any]:
    """How a sample becomes what the student's files read: scaled to [0, 1], or cut into tokens."""
    if facts.vocabulary is not None:
        return {"tokenizer": job.data.tokenizer, "vocabulary": facts.vocabulary}
    return {"scale": job.data.scale, "range": [0, 1], "mean": list(facts.mean), "std": list(facts.std)}


def _write_json(path: Path, value: dict[str, Any]) -> None:
    """Finite numbers only: anything else is a fault here and must not reach a reader."""
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")
