"""What can change the bits of a result, decided once per job, stored with it and used by every attempt."""

import os
import platform
import shutil
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from kdcore.config import Config
from kdcore.evaluate import BATCH
from kdcore.memory import power_of_two
from kdcore.models import Network
from kdcore.models.dropout import Dropout
from kdcore.plan import Plan
from kdcore.spec import JobSpec

FLOPS_PER_THREAD = 500_000_000
"""Forward FLOPs of a batch that make one more CPU thread worth its risk, where `kdcore/trial.py` does not measure."""

KEPT_SHARE = 0.5
"""Of the memory that a job leaves free, or of the room in the cache, for what its teachers said."""

PRODUCTS = ((32, 784, 1200), (256, 512, 256), (64, 64, 10))
"""Rows, inner size and columns of the products that are compared."""
SMALL_FLOPS = 4_000_000
"""Forward FLOPs of a batch below which a network's products are faster by MKL. oneDNN takes 20 to 45 µs to begin one,
forward and backward; its products are as fast at 2e6 FLOPs each, and twice as fast above 1e7, on one thread."""
ONE_THREAD_FLOPS = 50_000_000
"""Forward FLOPs of a batch below which one thread is best: threads that wait for each other at every operation cost a
small network more than they compute. 784-20-20-10 at batch 32 gains nothing from a second."""
TRACE_FROM = {"auto": 2_000, "always": 0, "never": None}
"""Steps of a stage that pay for tracing one of them; docs/performance.md has the figures of both."""
COMPILE_FROM = {"auto": 100_000, "always": 0, "never": None}
"""Steps of a stage that pay for compiling them."""
VECTOR = 16
"""Float32 numbers in a CPU's longest register."""
LARGER_ERROR = 4.0
"""Times the error of another order of sums, which is no loss; bfloat16's is thousands of times as large."""


class Choices(Config, extra="ignore"):
    """A job's choices. Equal ones on one CPU model give equal bytes.

    One that only a later version knows is left alone: the job goes on without it, and its history says so.
    """

    device: Literal["cpu", "cuda"]
    threads: int
    """Of torch on the CPU."""
    one_thread_below: int = 0
    """Forward FLOPs of a batch: steps whose largest network takes fewer are made by one thread."""
    precision: Literal["float32", "bf16"]
    deterministic: bool
    """Only algorithms that give the same result every time, where torch has them."""
    torch: str
    """Its version."""
    cpu: str
    """The processor's name."""
    products: Literal["highest", "medium", "by_size"] = "highest"
    """torch's float32 matmul precision. `medium` lets a CPU use oneDNN, twice as fast as MKL on some: chosen, and used,
    only where its products err no more than those of `highest`. `by_size` is `medium`, and `highest` in the steps of
    small networks; where the largest network's steps were made both ways, they are not slower by a tenth."""
    masks: Literal["torch", "words"] = "torch"
    """What dropout's masks are made of; `kdcore/models/dropout.py` says how of words."""
    channels_last: bool = False
    """Whether the maps of the networks that train or teach lie in memory pixel by pixel, all channels of one together:
    the layout that a CPU's convolutions are written for; `laid_out` says of which not."""
    trace_from: int | None = None
    """Steps of a stage from which on they are traced, where they can be (`kdcore/traced.py`); none: never."""
    compile_from: int | None = None
    """Steps of a stage from which on they are compiled, where they can be (`kdcore/compiled.py`); none: never."""
    keep_bytes: int = 0
    """For what teachers said of the training samples, kept in the device's memory; 0: they are asked in every step."""
    spill_bytes: int = 0
    """The same of a stage whose teachers say more than that, kept in a file of the cache."""
    at_once: int = BATCH
    """Samples of a batch where nothing is trained: in an evaluation, and when a teacher is asked what will be kept. Of
    more than 256 an attempt on a GPU with less memory takes 256."""


def choose(
    spec: JobSpec, plan: Plan, *, device: Literal["cpu", "cuda"], cores: int, room: int | None = None, disk: int = 0
) -> Choices:
    """Decide for this machine, as far as the spec's `tuning` leaves it open.

    On a CPU one thread, and one more for every `FLOPS_PER_THREAD` that the largest batch costs the largest model
    forward, up to the cores. On CUDA, where the CPU only feeds the device, one.

    Args:
        device: what the worker offers.
        cores: how many cores the job may use.
        room: bytes of the device's memory that there are for the job; None where nobody knows.
        disk: bytes that the cache may take; 0 where there is none.
    """
    tuning, cpu = spec.tuning, device == "cpu"
    threads = max(1, min(cores, 1 + largest_work(plan) // FLOPS_PER_THREAD))
    return Choices(
        device=device,
        threads=(threads if tuning.threads == "auto" else tuning.threads) if cpu else 1,
        one_thread_below=ONE_THREAD_FLOPS if cpu and tuning.threads == "auto" else 0,
        precision=spec.precision,
        deterministic=True,
        torch=torch.__version__,
        cpu=cpu_name(),
        products="by_size" if cpu and tuning.products == "auto" and is_exact("medium") else "highest",
        masks="words" if cpu and tuning.masks == "auto" else "torch",
        channels_last=cpu and tuning.layout == "auto",
        trace_from=TRACE_FROM[tuning.compile] if cpu else None,
        compile_from=COMPILE_FROM[tuning.compile] if cpu and can_compile() else None,
        # By powers of two: the same where a few MB more or less are free.
        keep_bytes=power_of_two(int(KEPT_SHARE * ((room or 0) - plan.memory.total))) if spec.keep_targets else 0,
        spill_bytes=power_of_two(int(KEPT_SHARE * disk)) if spec.keep_targets else 0,
    )


def largest_work(plan: Plan) -> int:
    """Forward FLOPs of the largest batch of the largest network."""
    flops = max(model.flops for model in (*plan.teachers, plan.student))
    return flops * max((stage.batch_size for stage in plan.stages), default=BATCH)


def apply(choices: Choices) -> None:
    """Set this process up as chosen; before anything is computed.

    Raises:
        RuntimeError: the chosen device is not there.
    """
    if choices.device == "cuda":
        # cuBLAS reads it when it starts and is not deterministic without.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        if not torch.cuda.is_available():
            raise RuntimeError("the job was chosen to run on cuda, and no CUDA device is here")
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.allow_tf32 = False
    torch.set_num_threads(choices.threads)
    fast = choices.products != "highest" and choices.device == "cpu" and is_exact("medium")
    torch.set_float32_matmul_precision("medium" if fast else "highest")
    Dropout.by_words = choices.masks == "words"
    torch.use_deterministic_algorithms(choices.deterministic, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # only costs time


def laid_out(network: Network, choices: Choices) -> Network:
    """The network, its maps in memory as chosen.

    One with a convolution of single pixels with a stride, that reads fewer channels than a vector register has numbers,
    stays as it is: where channels lie together oneDNN's gradient of it can write beyond the end of its memory (seen
    with torch 2.15 on AVX2 for up to 7 channels; docs/decisions/tuning.md).
    """
    convolutions = [each for each in network.modules() if isinstance(each, nn.Conv2d)]
    spoilt = any(
        max(each.kernel_size) == 1 < max(each.stride) and each.in_channels // each.groups < VECTOR
        for each in convolutions
    )
    return network.to(memory_format=torch.channels_last) if choices.channels_last and not spoilt else network


@contextmanager
def steps_of(choices: Choices, flops: int) -> Iterator[None]:
    """While steps are made whose largest network takes so many forward FLOPs for a batch: the threads and products that
    suit it."""
    products, threads = torch.get_float32_matmul_precision(), torch.get_num_threads()
    if choices.products == "by_size" and flops < SMALL_FLOPS:
        torch.set_float32_matmul_precision("highest")
    if flops < choices.one_thread_below:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.set_num_threads(threads)


@cache
def is_exact(precision: Literal["highest", "medium"]) -> bool:
    """Whether this CPU's float32 products at that setting are as exact as they can be.

    On some processors `medium` computes them in bfloat16, whose error is ten thousand times as large: then another
    processor goes on with a job that was begun where it does not, and must not take that choice over.
    """
    drawn = torch.Generator().manual_seed(0)
    before = torch.get_float32_matmul_precision()
    try:
        for rows, inner, columns in PRODUCTS:
            left = torch.randn(rows, inner, generator=drawn)
            right = torch.randn(inner, columns, generator=drawn)
            wanted = left.double() @ right.double()
            errors = []
            for each in ("highest", precision):
                torch.set_float32_matmul_precision(each)
                errors.append((left @ right - wanted).abs().max().item())
            if errors[1] > LARGER_ERROR * errors[0]:
                return False
    finally:
        torch.set_float32_matmul_precision(before)
    return True


def can_compile() -> bool:
    """Whether there are a C++ compiler and Python's headers, which torch's own compiler cannot do without."""
    headers = Path(sysconfig.get_path("include"), "Python.h")
    return shutil.which(os.environ.get("CXX", "g++")) is not None and headers.is_file()


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine() or "unknown"


def usable_cores() -> int:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def device_room() -> int:
    """What this process could have of the GPU's memory, what it holds of it included."""
    free, _ = torch.cuda.mem_get_info()
    return free + torch.cuda.memory_reserved()
