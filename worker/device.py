"""Which device this machine trains on. Only a process of its own may ask CUDA: `python -m worker.device`."""

import json
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from worker.memory import machine_memory

DETECTION_SECONDS = 120


@dataclass(frozen=True)
class Device:
    """`type` is `cpu` or `cuda`; `memory_bytes` is the device's own memory."""

    type: str
    name: str
    memory_bytes: int


class NoDeviceError(Exception):
    """The device that the settings name is not here."""


def detect(wanted: str) -> Device:
    """The device for `auto`, `cpu` or `cuda`.

    Raises:
        NoDeviceError: `cuda` is wanted, and torch sees no GPU.
    """
    found = None if wanted == "cpu" else _ask_torch()
    if found is not None:
        return found
    if wanted == "cuda":
        raise NoDeviceError("DISTILLERY_DEVICE is cuda, but torch sees no GPU here")
    return Device("cpu", cpu_name(), machine_memory())


def _ask_torch() -> Device | None:
    answer = subprocess.run(
        [sys.executable, "-m", "worker.device"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=DETECTION_SECONDS, check=False,
    )  # fmt: skip
    if answer.returncode != 0:
        return None
    found = json.loads(answer.stdout.splitlines()[-1])
    return Device(**found) if found is not None else None


def cpu_name() -> str:
    """The CPU's model, as its maker calls it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _main() -> None:
    import torch

    found = None
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found = {"type": "cuda", "name": properties.name, "memory_bytes": properties.total_memory}
    print(json.dumps(found))


if __name__ == "__main__":
    _main()
