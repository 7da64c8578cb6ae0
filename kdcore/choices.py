"""What can change the bits of a result, decided once per job, stored with it and used by every attempt."""

import os
import platform
from pathlib import Path
from typing import Literal

import torch

from kdcore.config import Config
from kdcore.memory import power_of_two
from kdcore.models.dropout import Dropout
from kdcore.plan import Plan
from kdcore.spec import JobSpec

FLOPS_PER_THREAD = 500_000_000
"""Forward FLOPs of a batch that make one more CPU thread worth its risk. Measured on two cores with 784-1200-1200-10
at batch 32 (1.5e8): a second thread gains 1.4 times on idle cores and costs more than half beside one busy process,
where one thread loses nothing. Convolutional nets gain up to 1.8 times."""

KEPT_SHARE = 0.5
"""Of the memory that a job leaves free, for what its teachers said."""

PRODUCTS = ((32, 784, 1200), (256, 512, 256), (64, 64, 10))
"""Rows, inner size and columns of the products that are compared."""
LARGER_ERROR = 4.0
"""Times the error of another order of sums, which is no loss; bfloat16's is thousands of times as large."""


class Choices(Config, extra="ignore"):
    """A job's choices. Equal ones on one CPU model give equal bytes.

    One that only a later version knows is left alone: the job goes on without it, and its history says so.
    """

    device: Literal["cpu", "cuda"]
    threads: int
    """Of torch on the CPU."""
    precision: Literal["float32", "bf16"]
    deterministic: bool
    """Only algorithms that give the same result every time, where torch has them."""
    torch: str
    """Its version."""
    cpu: str
    """The processor's name."""
    products: Literal["highest", "medium"] = "highest"
    """torch's float32 matmul precision. `medium` lets a CPU use oneDNN, twice as fast as MKL on some: chosen, and used,
    only where its products err no more than those of `highest`."""
    masks: Literal["torch", "words"] = "torch"
    """What dropout's masks are made of; `kdcore/models/dropout.py` says how of words."""
    keep_bytes: int = 0
    """For what teachers said of the training samples, kept in the device's memory; 0: they are asked in every step."""


def choose(
    spec: JobSpec, plan: Plan, *, device: Literal["cpu", "cuda"], cores: int, room: int | None = None
) -> Choices:
    """Decide for this machine.

    On a CPU one thread, and one more for every `FLOPS_PER_THREAD` that the largest batch costs the largest model
    forward, up to the cores. On CUDA, where the CPU only feeds the device, one.

    Args:
        device: what the worker offers.
        cores: how many cores the job may use.
        room: bytes of the device's memory that there are for the job; None where nobody knows.
    """
    flops = max(model.flops for model in (*plan.teachers, plan.student))
    work = flops * max(stage.batch_size for stage in plan.stages)
    threads = min(cores, 1 + work // FLOPS_PER_THREAD) if device == "cpu" else 1
    return Choices(
        device=device,
        threads=max(1, threads),
        precision=spec.precision,
        deterministic=True,
        torch=torch.__version__,
        cpu=cpu_name(),
        products="medium" if device == "cpu" and is_exact("medium") else "highest",
        masks="words" if device == "cpu" else "torch",
        # By powers of two: the same where a few MB more or less are free.
        keep_bytes=power_of_two(int(KEPT_SHARE * ((room or 0) - plan.memory.total))) if spec.keep_targets else 0,
    )


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
    exact = choices.products == "highest" or (choices.device == "cpu" and is_exact(choices.products))
    torch.set_float32_matmul_precision(choices.products if exact else "highest")
    Dropout.by_words = choices.masks == "words"
    torch.use_deterministic_algorithms(choices.deterministic, warn_only=True)


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
