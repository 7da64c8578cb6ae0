"""After the last stage: the test set, once; then the files."""

import json
import platform
import tempfile
from pathlib import Path
from typing import Any

import torch

import kdcore
from kdcore import export
from kdcore.card import model_card
from kdcore.checkpoint import disk_errors
from kdcore.inputs import Classifier, Normalise
from kdcore.job import Job, teacher_name, view_shapes
from kdcore.latency import measure_latency
from kdcore.plain import plain_function
from kdcore.report import build_result
from kdcore.spec import spec_document


def finish(job: Job, out: Path) -> dict[str, Any]:
    """Evaluate on the test split, export the student into `out`, write the result and the model card.

    Returns:
        The result document.
    """
    taught = [teacher_name(index) for index in range(len(job.spec.teachers))]
    names = [name for name in (*taught, "baseline", "student") if name in job.state.models]
    logits = {name: job.predict(job.finished(name), "test") for name in names}
    with disk_errors("the student", out):
        out.mkdir(parents=True, exist_ok=True)
        code, speeds = write_models(job, out)
        job.session.poll()
        result = build_result(job, logits, speeds)
        model = model_document(job)
        _write_json(out / "model.json", model)
        (out / "README.md").write_text(model_card(result, model, code), encoding="utf-8")
        _write_json(out / "result.json", result)
    return result


def write_models(job: Job, out: Path) -> tuple[str, dict[str, dict[str, Any]]]:
    """Write every model file, and time the teacher and the student.

    Returns:
        The student as plain torch code, and the speeds by model.
    """
    shape = job.data.facts.input_shape
    models = job.state.models
    export.save_weights(out / "student.safetensors", models["student"])
    if "baseline" in models:
        export.save_weights(out / "baseline.safetensors", models["baseline"])
    for index, teacher in enumerate(job.spec.teachers):
        if teacher.train is not None:
            export.save_weights(out / f"{teacher_name(index)}.safetensors", models[teacher_name(index)])

    job.session.poll()
    student = classifier(job, "student")
    program = export.trace(student, shape)
    job.session.poll()
    export.save_onnx(program, out / "student.onnx")
    code = plain_function(program)
    export.save_program(program, out / "student.pt2")
    export.check(student, program, out / "student.onnx", shape)
    speeds = {"student": measure_latency(out / "student.onnx", shape)}

    for index in range(len(job.spec.teachers)):
        job.session.poll()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "teacher.onnx"
            export.save_onnx(export.trace(classifier(job, teacher_name(index)), shape), path)
            speeds[teacher_name(index)] = measure_latency(path, shape)
    return code, speeds


def classifier(job: Job, name: str) -> Classifier:
    """A finished network on the CPU with its normalisation, as it is exported."""
    return Classifier(Normalise(job.data.facts), job.finished(name).cpu()).eval()


def model_document(job: Job) -> dict[str, Any]:
    """The content of model.json: what is needed to use the student, and where it comes from."""
    facts, spec = job.data.facts, spec_document(job.spec)
    architecture = {**spec["student"]["model"], "classes": spec["student"]["model"]["classes"] or len(facts.classes)}
    return {
        "format_version": 1,
        "name": job.spec.name,
        "architecture": architecture,
        "classes": list(facts.classes),
        "input": {"shape": list(facts.input_shape), "layout": "NCHW" if len(facts.input_shape) == 3 else "NF"},
        "preprocessing": {"scale": job.data.scale, "range": [0, 1], "mean": list(facts.mean), "std": list(facts.std)},
        "views": {name: list(shape) for name, shape in view_shapes(job.finished("student"), facts.input_shape).items()},
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


def _write_json(path: Path, value: dict[str, Any]) -> None:
    """Finite numbers only: anything else is a fault here and must not reach a reader."""
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")
