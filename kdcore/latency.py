"""How fast an exported model answers: a measurement of this machine, part of no promise."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from kdcore.data import DataFacts
from kdcore.inputs import example_inputs

SECONDS = 0.25
THROUGHPUT_BATCH = 64


def session(path: Path) -> onnxruntime.InferenceSession:
    """An onnxruntime session on one CPU thread, which prints nothing."""
    return open_session(str(path))


def open_session(model: str | bytes) -> onnxruntime.InferenceSession:
    """The same, of a file's path or of its content."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def measure_latency(path: Path, facts: DataFacts, seconds: float = SECONDS) -> dict[str, Any]:
    """Latency of one sample and throughput of a batch, by onnxruntime on one thread.

    Args:
        path: of an ONNX file with an input `input`.
        facts: of what it reads.
        seconds: how long each of the two is measured; one call is always made.

    Returns:
        `latency_ms` with `p50` and `p95` in milliseconds, the same of a batch of 64 as `batch_latency_ms`, and the
        medians as `single_samples_per_second` and `samples_per_second`, of a batch of 64.
    """
    runtime = session(path)

    def call_of(batch: int) -> Callable[[], object]:
        feed = {"input": example_inputs(facts, batch, torch.Generator().manual_seed(0)).numpy()}
        return lambda: runtime.run(None, feed)

    return time_calls(call_of, seconds)


def time_calls(call_of: Callable[[int], Callable[[], object]], seconds: float = SECONDS) -> dict[str, Any]:
    """The numbers of `measure_latency`, of whatever `call_of` gives for a batch."""
    single, many = call_seconds(call_of(1), seconds), call_seconds(call_of(THROUGHPUT_BATCH), seconds)
    return {
        "latency_ms": _percentiles(single),
        "batch_latency_ms": _percentiles(many),
        "single_samples_per_second": 1 / float(np.median(single)),
        "samples_per_second": THROUGHPUT_BATCH / float(np.median(many)),
    }


def _percentiles(seconds: list[float]) -> dict[str, float]:
    """In milliseconds."""
    return {f"p{share}": float(np.percentile(seconds, share)) * 1000 for share in (50, 95)}


def call_seconds(call: Callable[[], object], seconds: float) -> list[float]:
    """Seconds of each call made within the time, after one to warm up."""
    call()
    end = time.perf_counter() + seconds
    times: list[float] = []
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times


def latency_budget(allowed: float | None, student: Mapping[str, Any]) -> dict[str, Any] | None:
    """Whether the student takes no longer than its spec allows, in milliseconds; None where that sets no limit."""
    if allowed is None:
        return None
    took = student["latency_ms"]["p50"]
    return {"max_ms": allowed, "measured_ms": took, "met": took <= allowed}


def late(budget: Mapping[str, Any] | None) -> list[str]:
    """The result's warning about a latency that is missed."""
    if budget is None or budget["met"]:
        return []
    took = f"the student takes {budget['measured_ms']:.3g} ms for a sample here (latency_ms.p50)"
    return [f"{took}, {budget['max_ms']:g} ms are allowed: lower student.max_latency_ms, or name a smaller `model`"]
