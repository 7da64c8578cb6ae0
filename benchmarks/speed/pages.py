"""What it is worth that a training process keeps the memory that it frees.

    python -m benchmarks.speed.pages [--rounds 5]

Steps of training, and answers about 256 samples at once as an evaluation asks for them, of the pairs of W1, W2 and W3,
on numbers drawn at random. Both ways take turns, each in a process of its own, since the C library hears it once: as
`kdcore/environment.py` sets it up, and as glibc does it where that is left out.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent.parent / "results" / "speed-pages.json"
OWN = {"GLIBC_TUNABLES": ""}
"""Whoever sets it is obeyed: glibc's own ways."""
WAYS = {"given back": OWN, "kept": {}, "kept, again": {}}
CASES = {"w1": "w1-distil", "w2": "w2-resnet8x4", "w3": "w3-lstm"}
WORK = ("a step", "256 samples")
SECONDS = 4.0
"""Of steps in a row that are timed, at least three."""
TIMEOUT = 300


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--arm", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm:
        print(json.dumps(taken(*options.arm)))
        return
    from benchmarks.speed.arms import machine

    results: dict[str, Any] = {
        "command": f"python -m benchmarks.speed.pages --rounds {options.rounds}",
        "machine": machine(),
        "runs": {},
    }
    for _ in range(options.rounds):
        for case in CASES:
            for work in WORK:
                runs = results["runs"].setdefault(f"{case}, {work}", {})
                for way, environment in WAYS.items():
                    runs.setdefault(way, []).append(apart(case, work, environment))
        options.out.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results["runs"]))


def apart(case: str, work: str, environment: dict[str, str]) -> dict[str, float]:
    others = {name: value for name, value in os.environ.items() if name not in OWN and "MALLOC_" not in name}
    command = [sys.executable, "-m", "benchmarks.speed.pages", "--arm", case, work]
    done = subprocess.run(
        command, env=others | environment, capture_output=True, text=True, timeout=TIMEOUT, check=True
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def taken(case: str, work: str) -> dict[str, float]:
    """Milliseconds, pages that the system gave, and the most memory that there was, of one step or batch."""
    import kdcore.environment  # noqa: F401 - before torch
    from benchmarks.speed.cifar import CIFAR_CASES
    from benchmarks.speed.mnist import MNIST_CASES
    from benchmarks.speed.text import TEXT_CASES
    from kdcore.choices import apply, choose, usable_cores
    from kdcore.evaluate import BATCH
    from kdcore.plan import make_plan
    from kdcore.spec import parse_spec
    from kdcore.trial import answers, seconds_of, training_step

    spec = parse_spec((MNIST_CASES | CIFAR_CASES | TEXT_CASES)[CASES[case]].spec)
    plan = make_plan(spec)
    choices = choose(spec, plan, device="cpu", cores=usable_cores())
    choices = choices.model_copy(update={"threads": usable_cores()})
    apply(choices)
    step = (
        training_step(spec, plan, choices) if work == "a step" else partial(answers(spec, plan, choices, BATCH), BATCH)
    )
    steps = max(3, round(SECONDS / seconds_of(step, 2)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    each = [seconds_of(step, 1) for _ in range(steps)]
    after = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "milliseconds": statistics.median(each) * 1e3,
        "pages": (after.ru_minflt - before) / steps,
        "peak_mib": after.ru_maxrss / 1024,
    }


def table(runs: dict[str, dict[str, list[dict[str, float]]]]) -> str:
    lines = [
        "| | ms, given back | kept, against it | the same again | pages, given back | kept | MiB, given back | kept |",
        "| --- |" + " ---: |" * 7,
    ]
    for name, ways in runs.items():
        own, *others = ways.values()
        middle = {
            way: {key: statistics.median(run[key] for run in each) for key in own[0]} for way, each in ways.items()
        }
        ratios = [
            statistics.median(
                kept["milliseconds"] / given["milliseconds"] for kept, given in zip(each, own, strict=True)
            )
            for each in others
        ]
        given, kept = middle["given back"], middle["kept"]
        row = [name, f"{given['milliseconds']:,.1f}", *(f"{ratio:.2f}×" for ratio in ratios)]
        row += [
            f"{given['pages']:,.0f}",
            f"{kept['pages']:,.0f}",
            f"{given['peak_mib']:,.0f}",
            f"{kept['peak_mib']:,.0f}",
        ]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
