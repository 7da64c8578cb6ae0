"""What can change the bits of a result, decided once per job, stored with it and used by every attempt."""

import os
import platform
from pathlib import Path
from typing import Literal

import torch

from kdcore.config import Config
from kdcore.plan import Plan
from kdcore.spec import JobSpec

FLOPS_PER_THREAD = 500_000_000
"""Forward FLOPs of a batch that make one more CPU thread worth its risk. Measured on two cores with 784-1200-1200-10
at batch 32 (1.5e8): a second thread gains 1.4 times on idle cores and costs more than half beside one busy process,
where one thread loses nothing. Convolutional nets gain up to 1.8 times."""


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


def choose(spec: JobSpec, plan: Plan, *, device: Literal["cpu", "cuda"], cores: int) -> Choices:
    """Decide for this machine.

    On a CPU one thread, and one more for every `FLOPS_PER_THREAD` that the largest batch costs the largest model
    forward, up to the cores. On CUDA, where the CPU only feeds the device, one.

    Args:
        device: what the worker offers.
        cores: how many cores the job may use.
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
    torch.set_float32_matmul_precision("highest")
    torch.use_deterministic_algorithms(choices.deterministic, warn_only=True)


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
