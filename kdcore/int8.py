"""A student of 8-bit whole numbers, as ONNX: made by onnxruntime from the float one, and measured beside it."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kdcore.data import DataFacts
from kdcore.export import quiet
from kdcore.inputs import Reader, unit
from kdcore.job import Job
from kdcore.latency import measure_latency, session
from kdcore.seeds import derive
from kdcore.transfer import labelled

Method = Literal["static", "dynamic"]
CALIBRATION = 256
"""Training samples, at most, whose activations tell the ranges."""
BATCH = 32
UNEVEN = frozenset({"LSTM", "GRU", "RNN", "Loop", "Scan", "Softmax", "LayerNormalization"})
"""Operators, of recurrence and attention, between which ranges differ from sample to sample."""


def method_of(model: onnx.ModelProto, facts: DataFacts) -> Method:
    """Static for convolutions and perceptrons; dynamic, which takes activations as they come, for the others."""
    uneven = any(node.op_type in UNEVEN for node in model.graph.node)
    return "dynamic" if uneven or facts.vocabulary is not None else "static"


def save_int8(job: Job, student: Path, out: Path) -> dict[str, Any]:
    """Quantise the exported student: weights per channel, static ranges from samples that it was trained on.

    Weights get 7 of the 8 bits: with all of them, sums saturate on CPUs without VNNI.

    Args:
        student: its float ONNX file.

    Returns:
        `method`, and the number of `calibration_samples`.

    Raises:
        TrainingError: `export_failed`, kind system: onnxruntime cannot quantise this network.
        OSError: it could not be written.
    """
    with tempfile.TemporaryDirectory() as folder, quiet("onnxruntime.quantization"):
        method = method_of(onnx.load(str(student)), job.student_reader.facts)
        samples = _calibration_samples(job) if method == "static" else torch.empty(0, dtype=torch.int64)
        prepared, made = Path(folder) / "prepared.onnx", Path(folder) / "int8.onnx"
        quantise(student, prepared, made, method, _batches(job, samples))
        content = made.read_bytes()
    out.write_bytes(content)
    return {"method": method, "calibration_samples": len(samples)}


def quantise(
    student: Path, prepared: Path, made: Path, method: Method, batches: Iterator[dict[str, NDArray[Any]]]
) -> None:
    """Write `made` from `student`; `batches` of inputs are asked for where ranges are static."""
    from onnxruntime import quantization  # slow to import, and few jobs need it
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Samples(quantization.CalibrationDataReader):  # type: ignore[misc]  # it has no types
        def get_next(self) -> dict[str, NDArray[Any]] | None:
            return next(batches, None)

    common = {"per_channel": True, "reduce_range": True, "weight_type": quantization.QuantType.QInt8}
    if method == "dynamic":
        model = onnx.load(str(student))
        del model.graph.value_info[:]  # it says the weights' shapes, and some are turned around
        quantization.quantize_dynamic(model, made, **common)
    else:
        quant_pre_process(str(student), str(prepared), skip_symbolic_shape=True)
        quantization.quantize_static(
            prepared,
            made,
            Samples(),
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QUInt8,
            calibrate_method=quantization.CalibrationMethod.MinMax,
            **common,
        )


def _calibration_samples(job: Job) -> Tensor:
    """Places of training samples, of those that the last stage learnt on, drawn by the job's seed."""
    samples = job.learnt()
    generator = torch.Generator().manual_seed(derive(job.spec.seed, "calibration"))
    order = torch.randperm(len(samples), generator=generator)[:CALIBRATION].sort().values
    return samples.cpu()[order]


def _batches(job: Job, samples: Tensor) -> Iterator[dict[str, NDArray[Any]]]:
    for start in range(0, len(samples), BATCH):
        job.session.poll()
        stored = job.data.train.inputs[samples[start : start + BATCH].to(job.device)]
        yield {"input": job.student_reader.seen(unit(stored, job.data.scale)).cpu().contiguous().numpy()}


class Runtime(nn.Module):
    """An ONNX file as a network of whole samples in [0, 1]."""

    def __init__(self, path: Path, reader: Reader) -> None:
        super().__init__()
        self.reader = reader
        self._runtime: onnxruntime.InferenceSession = session(path)

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, …) -> (B, classes) logits on the CPU."""
        read = self.reader.seen(inputs).cpu().contiguous().numpy()
        return torch.from_numpy(np.asarray(self._runtime.run(["logits"], {"input": read})[0]))


def measure_int8(
    job: Job,
    out: Path,
    made: dict[str, Any],
    logits: dict[str, Tensor],
    predict: Callable[[nn.Module], Tensor],
) -> dict[str, Any]:
    """What is gained and lost by whole numbers, on the test split and on this machine.

    Args:
        out: the folder of the student's files.
        made: what `save_int8` told.
        logits: on the test split, of `student` and, where there is one, `teacher-1`.
        predict: the logits of a network of whole samples on that split.

    Returns:
        The task's measures, its likeness to the teacher, as the student has them, and its speed; `of_float` the
        likeness to the float student; `file_bytes` and `float_file_bytes`.
    """
    path, task = out / "student-int8.onnx", job.task
    found = predict(Runtime(path, job.student_reader))
    labels = job.data.test.labels.cpu()
    known = labelled(labels)
    like = {name: logits[name] for name in ("student", "teacher-1") if name in logits}
    alike = {of: {name: score(found, other) for name, score in task.likeness.items()} for of, other in like.items()}
    difference = float((found - logits["student"]).abs().max())
    return {
        **made,
        **(task.measure(found[known], labels[known]) if known.any() else dict.fromkeys(task.scores)),
        **alike.get("teacher-1", {}),
        "of_float": {**alike["student"], "largest_difference": difference},
        "file_bytes": path.stat().st_size,
        "float_file_bytes": (out / "student.onnx").stat().st_size,
        **measure_latency(path, job.student_reader.facts),
    }
