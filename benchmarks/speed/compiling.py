"""What tracing and compiling a step cost, and after how many steps they pay.

    python -m benchmarks.speed.compiling --data FOLDER [--rounds 3]

The student of the MNIST pair, targets kept, as the loop makes its steps, traced, compiled where nothing is kept of an
earlier job, and where its graph is; each in a process of its own, in turn. What the first epoch takes longer than the
others is what tracing or compiling costs. A trace pays against the loop's steps, a compiled graph against a trace.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.speed.__main__ import make_teacher
from benchmarks.speed.arms import TEACHER, Place, given, machine, timed_epochs
from benchmarks.speed.mnist import MNIST_CASES, W1
from kdcore import train
from kdcore.plan import make_plan
from kdcore.reporter import RecordingReporter
from kdcore.spec import parse_spec

RESULTS = Path(__file__).parent.parent / "results" / "speed-compiling.json"
EPOCHS = 4
PLAIN = "as the loop makes it"
TRACED = "torch's calls, traced once"
WAYS = {PLAIN: "never", TRACED: "auto", "compiled, nothing kept": "always", "compiled, its graph kept": "always"}
TIMEOUT = 600


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the data directory")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("distilled-speed"), help="for the teacher")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--arm", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    place = Place(options.data.resolve(), (options.work / "w1").resolve())
    if options.arm:
        print(json.dumps(taken(place, options.arm[0], Path(options.arm[1]))))
        return
    make_teacher(MNIST_CASES["w1-distil"], place)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in WAYS}
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as cache:  # the graph that the second way leaves is the third's
            for name, tuning in WAYS.items():
                command = [sys.executable, "-m", "benchmarks.speed.compiling", "--arm", tuning, cache]
                command += ["--data", str(options.data), "--work", str(options.work)]
                done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=True)
                runs[name].append(json.loads(done.stdout.splitlines()[-1]))
        results: dict[str, Any] = {
            "command": f"python -m benchmarks.speed.compiling --data FOLDER --rounds {options.rounds}",
            "machine": machine(),
            "runs": runs,
        }
        options.out.write_text(json.dumps(results, indent=1) + "\n")
    print(table(runs))


def taken(place: Place, tuning: str, cache: Path) -> dict[str, float]:
    """Microseconds of a step after the first epoch, and the seconds that the first epoch took longer."""
    document = given(W1, tuning={"compile": tuning})
    document["stages"] = [{**document["stages"][0], "epochs": EPOCHS}]
    spec = parse_spec(document)
    with tempfile.TemporaryDirectory() as folder, timed_epochs() as seconds:
        train.run(
            spec, data_root=place.data, out=Path(folder), reporter=RecordingReporter(), cache=cache, download=False,
            teacher_weights={0: place.work / TEACHER},
        )  # fmt: skip
    first, *others = seconds["distill-1"]
    (stage,) = make_plan(spec).stages
    epoch = statistics.median(others)
    return {"microseconds": epoch * 1e6 * EPOCHS / stage.steps, "begun_in": first - epoch}


def table(runs: dict[str, list[dict[str, float]]]) -> str:
    lines = ["| | µs a step | first epoch, seconds more | pays from … steps on |", "| --- | ---: | ---: | ---: |"]
    for name, each in runs.items():
        middle = {key: statistics.median(run[key] for run in each) for key in each[0]}
        simpler = runs[PLAIN if name == TRACED else TRACED]
        pays = "" if name == PLAIN else f"{statistics.median(map(steps_that_pay, each, simpler)):,.0f}"
        lines.append(f"| {name} | {middle['microseconds']:,.0f} | {middle['begun_in']:.1f} | {pays} |")
    return "\n".join(lines)


def steps_that_pay(made: dict[str, float], simpler: dict[str, float]) -> float:
    """Of one round; infinitely many where nothing is gained."""
    gained = (simpler["microseconds"] - made["microseconds"]) / 1e6
    return (made["begun_in"] - simpler["begun_in"]) / gained if gained > 0 else math.inf


if __name__ == "__main__":
    main()
