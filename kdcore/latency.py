"""How fast an exported model answers: a measurement of this machine, part of no promise."""

import time
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
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


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
    single = _times(runtime, facts, 1, seconds)
    many = _times(runtime, facts, THROUGHPUT_BATCH, seconds)
    return {
        "latency_ms": _percentiles(single),
        "batch_latency_ms": _percentiles(many),
        "single_samples_per_second": 1 / float(np.median(single)),
        "samples_per_second": THROUGHPUT_BATCH / float(np.median(many)),
    }


def _percentiles(seconds: list[float]) -> dict[str, float]:
    """In milliseconds."""
    return {f"p{share}": float(np.percentile(seconds, share)) * 1000 for share in (50, 95)}


def _times(runtime: onnxruntime.InferenceSession, facts: DataFacts, batch: int, seconds: float) -> list[float]:
    """Seconds of each call made within the time, after one to warm up."""
    feed = {"input": example_inputs(facts, batch, torch.Generator().manual_seed(0)).numpy()}
    runtime.run(None, feed)
    end = time.perf_counter() + seconds
    times: list[float] = []
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        runtime.run(None, feed)
        times.append(time.perf_counter() - start)
    return times
