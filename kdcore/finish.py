"""After the last stage: the test set, once; then the files."""

import json
import tempfile
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.export import ExportedProgram

from kdcore import export
from kdcore.card import model_card
from kdcore.checkpoint import disk_errors
from kdcore.errors import TrainingError
from kdcore.evaluate import predict
from kdcore.examine import tell
from kdcore.export import quiet
from kdcore.inputs import Classifier, Normalise, Reader, unit
from kdcore.int8 import measure_int8, save_int8
from kdcore.job import Job
from kdcore.latency import measure_latency, time_calls
from kdcore.models import OnnxNetwork
from kdcore.papers import model_document, preprocessing
from kdcore.plain import plain_function
from kdcore.raw import RESIZING, WHITE, Fit, reads_pictures, save_raw
from kdcore.report import build_result
from kdcore.robustness import SAMPLES, SECONDS, Hits, measure_robustness
from kdcore.state import student_name, teacher_name
from kdcore.transfer import labelled

RAW, INT8 = "student-raw.onnx", "student-int8.onnx"


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
    tested = job.spec.evaluate.robustness and bool(labelled(job.data.test.labels).any())
    first = {*taught, *(student_name(role) for role in ("baseline", "distill"))}  # of the repeats
    shown = [name for name in names if tested and name in first and can_be_asked(job, name)]
    robust = {name: robustness(job, name, SECONDS / len(shown)) for name in shown}
    with disk_errors("the student", out):
        out.mkdir(parents=True, exist_ok=True)
        code, speeds = write_models(job, out)
        left_out: dict[str, str] = {}
        write_raw(job, out, left_out)
        int8 = write_int8(job, out, logits, left_out)
        job.session.poll()
        result = build_result(job, logits, held, speeds, robust) | {"int8": int8, "left_out": left_out}
        for worse in result["worse_teachers"]:
            tell(job, worse)
        if result["latency_budget"] is not None and not result["latency_budget"]["met"]:
            job.reporter.event("latency_missed", result["latency_budget"])
        model = model_document(job)
        _write_json(out / "model.json", model)
        (out / "README.md").write_text(model_card(result, model, code, original(job)), encoding="utf-8")
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
        if is_file(job, teacher_name(index)):
            given = job.loaded(teacher_name(index))
            speeds[teacher_name(index)] = time_calls(given.call_of) if isinstance(given, OnnxNetwork) else {}
            continue
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "teacher.onnx"
            seen = job.teacher_readers[index].facts
            export.save_onnx(export.trace(classifier(job, teacher_name(index)), seen), path)
            speeds[teacher_name(index)] = measure_latency(path, seen)
    return code, speeds


def is_file(job: Job, name: str) -> bool:
    """Whether a finished network is a teacher's ONNX file, or its logits alone: without gradients or exports."""
    _, _, number = name.partition("teacher-")
    return bool(number) and not job.spec.teachers[int(number) - 1].model.trainable


def can_be_asked(job: Job, name: str) -> bool:
    """Whether a finished network answers about any sample: of given logits there are those of the data alone."""
    return not is_file(job, name) or isinstance(job.loaded(name), OnnxNetwork)


def write_raw(job: Job, out: Path, left_out: dict[str, str]) -> None:
    """Write the student that takes decoded pictures, where samples are such; else note why not."""
    facts = job.data.facts
    if len(facts.input_shape) != 3:
        return
    if not reads_pictures(facts):
        left_out[RAW] = "samples are no pictures of one or three channels with 8 bits each"
        return
    job.session.poll()
    fit: Fit = getattr(job.spec.data, "fit", "crop")  # sources whose pictures have one size all the same
    before = preprocessing(job, job.student_reader.facts) | {"scale": WHITE, "resizing": RESIZING[fit]}
    try:
        reader = Reader(facts, job.spec.student.view)  # on the CPU, where it is traced
        with quiet("onnx"):
            save_raw(out / "student.onnx", reader, facts, before, out / RAW, fit)
    except TrainingError as error:
        (out / RAW).unlink(missing_ok=True)
        _leave_out(job, left_out, RAW, str(error))


def write_int8(job: Job, out: Path, logits: dict[str, Tensor], left_out: dict[str, str]) -> dict[str, Any] | None:
    """Write the student of whole numbers, where the spec asks for it, and measure it; else note why not."""
    if not job.spec.export.int8:
        return None
    job.session.poll()

    def predicted(network: nn.Module) -> Tensor:
        return predict(network, job.data.test, job.data.scale, job.session.poll)

    try:
        made = save_int8(job, out / "student.onnx", out / INT8)
        with quiet("the quantised student"):
            return measure_int8(job, out, made, logits, predicted)
    except TrainingError as error:
        (out / INT8).unlink(missing_ok=True)
        _leave_out(job, left_out, INT8, str(error))
        return None


def _leave_out(job: Job, left_out: dict[str, str], name: str, reason: str) -> None:
    left_out[name] = reason
    job.reporter.event("file_left_out", {"name": name, "reason": reason})


def robustness(job: Job, name: str, seconds: float) -> Hits:
    """Of a finished model, on the test split, within so many seconds."""
    test = job.data.test
    model = Classifier(job.reader_of(name), job.finished(name))
    places = labelled(test.labels).nonzero().flatten()[:SAMPLES]
    pictures, labels = unit(test.inputs[places], job.data.scale), test.labels[places]
    gradients = not is_file(job, name)
    return measure_robustness(model, pictures, labels, poll=job.session.poll, seconds=seconds, attacks=gradients)


def original(job: Job) -> tuple[str, str] | None:
    """What builds the student's network without this project, where something does."""
    facts = job.student_reader.facts
    return job.spec.student.model.original(facts.input_shape, len(facts.classes))


def plain_or_none(program: ExportedProgram) -> str | None:
    try:
        return plain_function(program)
    except ValueError:
        return None


def classifier(job: Job, name: str) -> Classifier:
    """A finished network on the CPU with its normalisation, as it is exported."""
    return Classifier(Normalise(job.reader_of(name).facts), job.finished(name).cpu()).eval()


def _write_json(path: Path, value: dict[str, Any]) -> None:
    """Finite numbers only: anything else is a fault here and must not reach a reader."""
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")
