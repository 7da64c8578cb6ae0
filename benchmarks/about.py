"""What every result says of itself: the command, the machine and how busy it was, the versions."""

import os
import platform
import signal
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from worker.device import cpu_name


def about(command: str, *packages: str) -> dict[str, Any]:
    """The head of a result. Call it at the end: the load is that of the last minutes."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "command": command,
        "machine": {"cpu": cpu_name(), "cores": cores, "load_at_end": [round(load, 2) for load in os.getloadavg()]},
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
    }


def end_tidily() -> None:
    """Let SIGTERM end this process as an error does: what was started and made is taken away again."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def result_path(name: str) -> Path:
    return Path(__file__).parent / "results" / f"{name}.json"
