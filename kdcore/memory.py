"""How much memory there is for a job, and the largest batch that fits into it. No torch: supervisors read it too."""

import contextlib
import ctypes
import resource
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

MIB = 2**20
KEPT = 128 * MIB
"""A training process keeps what it frees in blocks up to this size (`kdcore/environment.py`) until it gives it back."""
TRAINING = 1.5
"""A training step's peak over what its forward pass writes: 0.8 to 1.2, measured with MLPs and CNNs, with dropout,
normalisation and augmentation."""
PROCESS = 1024 * MIB
"""Resident memory of a process that trains and exports next to nothing: 0.9 GiB, measured."""
GROWTH = {"VmRSS": 256 * MIB, "VmSize": 512 * MIB}
"""What such a process grows by from the start of a job to the end of its exports: 0.11 and 0.35 GiB, measured."""


@dataclass(frozen=True)
class Need:
    """A job's plan of memory, in bytes: what does not depend on the batch, by part, and what each sample adds."""

    parts: Mapping[str, int]
    per_sample: int
    total: int
    """With the batch sizes that were planned."""

    @classmethod
    def of(cls, memory: Mapping[str, int], device: str) -> "Need":
        """From a plan's `memory`; one of an earlier version does not know what a sample adds."""
        copies = memory["copies"]
        parts = {
            "the models": memory["weights"] + (copies if device == "cpu" else 0),
            "the optimizer's state": memory["optimizer"],
            "the data": memory["data"],
            "evaluating 256 samples at a time": memory.get("evaluation", 0),
        }
        return cls(parts, memory.get("per_sample", 0), memory["total"] - (copies if device == "cuda" else 0))

    def largest_batch(self, room: int) -> int:
        """The largest batch that fits, 0 where none does; evaluation and training take turns."""
        evaluating = self.parts["evaluating 256 samples at a time"]
        left = room - (sum(self.parts.values()) - evaluating)
        if left < evaluating:
            return 0
        return int(left / (TRAINING * max(self.per_sample, 1)))

    def advise(self, batch_size: int, room: int | None) -> str:
        """What to do about a job that ran out of memory: a batch size that would fit, or what is too big.

        Args:
            batch_size: that it ran out with.
            room: bytes that there are for all that is planned; None where nobody knows.
        """
        if room is None or self.per_sample == 0:
            return f"batch_size {power_of_two(batch_size // 2)} needs about half" if batch_size > 1 else SMALLER
        fits = power_of_two(min(self.largest_batch(room), batch_size // 2))
        if fits:
            return f"batch_size {fits} would fit"
        part, size = max(self.parts.items(), key=lambda item: item[1])
        if self.per_sample * TRAINING > size:
            part, size = "a single sample", int(self.per_sample * TRAINING)
        there = f"{_mib(max(room, 0))} are there for it, {part} alone may need {_mib(size)}"
        return f"not even batch_size 1 is sure to fit: {there}; {SMALLER}"


SMALLER = "use a smaller model, or more memory"


def power_of_two(number: int) -> int:
    """The largest one that is not above it; 0 below 1."""
    return 1 << (number.bit_length() - 1) if number >= 1 else 0


def _mib(size: int) -> str:
    return f"{size / MIB:,.0f} MiB"


def room_here(max_memory: int | None) -> int | None:
    """What this process may still take beside what it has, and beside what it grows by whatever it trains.

    Args:
        max_memory: of its resident memory, where its job limits it.

    Returns:
        None where the system does not say.
    """
    mine = _sizes(Path("/proc/self/status"), *GROWTH)
    machine = _sizes(Path("/proc/meminfo"), "MemAvailable")
    if len(mine) < len(GROWTH) or not machine:
        return None
    rooms = [machine["MemAvailable"] - GROWTH["VmRSS"]]
    resident = [limit for limit in (max_memory, cgroup_limit()) if limit is not None]
    rooms += [limit - mine["VmRSS"] - GROWTH["VmRSS"] for limit in resident]
    addresses, _ = resource.getrlimit(resource.RLIMIT_AS)
    if addresses != resource.RLIM_INFINITY:
        rooms.append(addresses - mine["VmSize"] - GROWTH["VmSize"])
    return min(rooms)


def give_back() -> None:
    """Hand the system what was freed between things that stay, where the C library can: glibc keeps such holes, and
    before 2.38 does not even put a tensor where one of the same size was."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def peak(device: "torch.device") -> int:
    """The most bytes that this process has held so far: of the GPU's memory, as torch gave them out; on a CPU of the
    machine's, torch and all libraries included."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _sizes(file: Path, *names: str) -> dict[str, int]:
    """Lines such as `VmRSS:  1024 kB`, in bytes."""
    found = {}
    with contextlib.suppress(OSError):
        for line in file.read_text().splitlines():
            name, _, size = line.partition(":")
            if name in names:
                found[name] = int(size.split()[0]) * 1024
    return found


def cgroup_limit(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int | None:
    """The least that a control group around this process (a container) allows, in bytes; None without one."""
    limits = []
    with contextlib.suppress(OSError):
        for line in own.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers in ("", "memory"):
                top = root / controllers
                name = "memory.limit_in_bytes" if controllers else "memory.max"
                folder = top / path.strip("/")
                limits += [_limit(parent / name) for parent in (folder, *folder.parents) if parent.is_relative_to(top)]
    known = [limit for limit in limits if limit is not None]
    return min(known, default=None)


def _limit(file: Path) -> int | None:
    """What a file says; `max`, and a file that is not there, say nothing."""
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() and int(text) < 2**62 else None
