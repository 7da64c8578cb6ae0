"""What two threads are worth beside nobody and beside a busy process, by how long they spin while they wait.

    python -m benchmarks.speed.waiting [--rounds 8]

Steps of the MNIST teacher at batch 32, on numbers drawn at random. Each way of waiting runs in a process of its own,
since libgomp reads it once; inside, one thread and all take turns. The busy process keeps one core busy throughout.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent.parent / "results" / "speed-waiting.json"
SPINS = {"libgomp's own": None, "none": "0", "300": "300", "1,000": "1000", "3,000": "3000", "10,000": "10000"}
STEPS = 20
SECONDS = 300


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--arm", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm:
        print(json.dumps(milliseconds(options.rounds)))
        return
    from benchmarks.speed.arms import machine

    results: dict[str, Any] = {
        "command": f"python -m benchmarks.speed.waiting --rounds {options.rounds}",
        "machine": machine(),
        "milliseconds a step": {},
    }
    for beside in ("nobody", "a busy process"):
        with busy(beside != "nobody"):
            found = {name: apart(spins, options.rounds) for name, spins in SPINS.items()}
        results["milliseconds a step"][beside] = found
        options.out.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results["milliseconds a step"]))


@contextmanager
def busy(wanted: bool) -> Iterator[None]:
    """A process that computes all the while, where one is wanted."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if wanted else None
    try:
        yield
    finally:
        if process is not None:
            process.kill()
            process.wait(10)


def apart(spins: str | None, rounds: int) -> dict[str, float]:
    """Milliseconds of a step by the number of threads, in a process that waits in this way."""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    }
    command = [sys.executable, "-m", "benchmarks.speed.waiting", "--arm", "--rounds", str(rounds)]
    environment |= {"GOMP_SPINCOUNT": spins} if spins is not None else {}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def milliseconds(rounds: int) -> dict[str, float]:
    """Of a step with one thread and with all, each the median of `rounds` times `STEPS` in a row."""
    import torch

    from benchmarks.speed.mnist import W1
    from kdcore.choices import apply, choose, usable_cores
    from kdcore.plan import make_plan
    from kdcore.spec import parse_spec
    from kdcore.trial import seconds_of, training_step

    spec = parse_spec(W1)
    plan = make_plan(spec)
    choices = choose(spec, plan, device="cpu", cores=usable_cores())
    apply(choices)
    step = training_step(spec, plan, choices)
    taken: dict[int, list[float]] = {1: [], usable_cores(): []}
    for _ in range(rounds + 1):
        for count, each in taken.items():
            torch.set_num_threads(count)
            each.append(seconds_of(step, STEPS) * 1e3)
    return {str(count): statistics.median(each[1:]) for count, each in taken.items()}


def table(found: dict[str, dict[str, dict[str, float]]]) -> str:
    counts = list(next(iter(next(iter(found.values())).values())))
    columns = [f"{count} threads, beside {beside}" for beside in found for count in counts]
    lines = ["| spins | " + " | ".join(columns) + " |", "| --- |" + " ---: |" * len(columns)]
    for name in SPINS:
        row = [f"{each[name][count]:.1f} ms" for each in found.values() for count in counts]
        lines.append(f"| {name} | {' | '.join(row)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
