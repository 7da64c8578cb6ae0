"""What a user's script and shell wait for before anything happens.

    python benchmarks/imports.py [--rounds 10] [--out FILE]

Each case in a fresh process, in turn: from its start to its end, and its CPU time, which busy neighbours disturb less.
Beside the client stands httpx alone, which the client needs, and an interpreter that does nothing.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from about import about, result_path

CASES: dict[str, tuple[list[str], float | None]] = {
    "an interpreter": (["-c", ""], None),
    "import distillery": (["-c", "import distillery"], 0.1),
    "import httpx": (["-c", "import httpx"], None),
    "from distillery import Client": (["-c", "from distillery import Client"], None),
    "distillery --help": (["-m", "distillery", "--help"], 0.3),
}
"""What Python is started with, and the seconds that it may take."""


def run(arguments: list[str]) -> tuple[float, float]:
    """Seconds of a process, and of CPU time."""
    begun = time.perf_counter()
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begun
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"python {' '.join(arguments)} ended with {process.returncode}")
    return seconds, used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--out", type=Path, default=result_path("imports"))
    options = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in CASES}
    for number in range(options.rounds + 1):
        for name, (arguments, _) in CASES.items():
            taken = run(arguments)
            found[name] += [taken] if number > 0 else []  # the first round fills the disk's cache
    rows = {}
    print(f"{'seconds, medians':34}{'wall':>8}{'CPU':>8}{'wanted':>8}")
    for name, times in found.items():
        wall, cpu = (statistics.median(values) for values in zip(*times, strict=True))
        wanted = CASES[name][1]
        rows[name] = {"seconds": round(wall, 4), "cpu_seconds": round(cpu, 4), "target": wanted}
        print(f"{name:34}{wall:8.3f}{cpu:8.3f}{wanted or '':>8}")
    told = about(f"python benchmarks/imports.py --rounds {options.rounds}", "httpx") | {"rows": rows}
    options.out.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
