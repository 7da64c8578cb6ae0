"""What this machine has of memory, and whether the kernel ended a process because there was no more."""

from pathlib import Path

import psutil

from kdcore.memory import Need, cgroup_limit

VMSTAT = Path("/proc/vmstat")


def machine_memory() -> int:
    """Bytes that processes here can have: the machine's, or what its container is allowed."""
    total: int = psutil.virtual_memory().total
    return min(total, cgroup_limit() or total)


def oom_kills(vmstat: Path = VMSTAT) -> int | None:
    """How many processes the kernel has killed for want of memory since it started; None where it does not say."""
    try:
        lines = vmstat.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)


def ran_out(need: Need | None, memory: int, kills_before: int | None) -> bool:
    """Whether a killed process was killed for memory that it would want again.

    Both must be so: the kernel has killed for want of memory meanwhile (where it tells), and the plan needs more than
    there is. Otherwise somebody sent the signal, or others took the memory, and another try may succeed.
    """
    if need is None or need.total <= memory:
        return False
    kills = oom_kills()
    return kills is None or kills_before is None or kills > kills_before
