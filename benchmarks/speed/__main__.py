"""This project's loop beside those that others write: the same work, side by side, in turn, as ratios of medians.

    python -m benchmarks.speed --data FOLDER [--rounds 3] [--case w1-distil] [--torchdistill FOLDER]

Every arm of every round runs in a process of its own, which begins to measure when everything is imported and read. The
folder for torchdistill is where it was put by `pip install --no-deps --target FOLDER torchdistill`; left out, that arm
is too. Results are written after each arm; with `--resume`, what is there of this machine is not run again.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.speed.arms import TEACHER, Case, Place, machine
from benchmarks.speed.cifar import CIFAR_CASES
from benchmarks.speed.mnist import MNIST_CASES
from benchmarks.speed.text import TEXT_CASES
from kdcore import train
from kdcore.environment import SPINS
from kdcore.reporter import RecordingReporter
from kdcore.spec import parse_spec

CASES = MNIST_CASES | CIFAR_CASES | TEXT_CASES
RESULTS = Path(__file__).parent.parent / "results" / "speed.json"
ARM_SECONDS = 900


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the data directory")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--case", action="append", choices=CASES, help="may be repeated; left out: all")
    parser.add_argument("--torchdistill", type=Path, help="where torchdistill was put")
    parser.add_argument("--work", type=Path, default=Path("distilled-speed"), help="for the teachers")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--resume", action="store_true", help="run what --out lacks, which this machine wrote")
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm is not None:
        print(json.dumps(asdict(CASES[options.case[0]].arms[options.arm](place_of(options, options.case[0])))))
        return
    results = json.loads(options.out.read_text()) if options.resume else begin(options)
    if results["machine"] != machine():
        parser.error(f"--resume: {options.out} is of another machine, {results['machine']}; leave --resume out")
    for name in options.case or CASES:
        make_teacher(CASES[name], place_of(options, name))
    for number in range(options.rounds):
        for name in options.case or CASES:
            measure(name, number, options, results)
    for name in options.case or CASES:
        print(table(CASES[name], results["runs"][name]), end="\n\n")


def begin(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "command": f"python -m benchmarks.speed --data FOLDER --rounds {options.rounds}",
        "machine": machine(),
        "runs": {},
    }


def place_of(options: argparse.Namespace, case: str) -> Place:
    """Cases of one teacher share its folder."""
    return Place(options.data.resolve(), (options.work / case.partition("-")[0]).resolve())


def make_teacher(case: Case, place: Place) -> None:
    if (place.work / TEACHER).exists():
        return
    place.work.mkdir(parents=True, exist_ok=True)
    stages = [{"epochs": 1, "batch_size": case.spec["stages"][0]["batch_size"]}]
    spec = parse_spec({**case.spec, "stages": stages, "baseline": False})
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        train.run(spec, data_root=place.data, out=out, reporter=RecordingReporter(), download=False)
        shutil.copyfile(out / "teacher-1.safetensors", place.work / TEACHER)


def measure(name: str, number: int, options: argparse.Namespace, results: dict[str, Any]) -> None:
    """One round of a case: every arm once, the order turned by one each round."""
    runs, arms = results["runs"].setdefault(name, {}), list(CASES[name].arms)
    turn = number % len(arms)
    for arm in arms[turn:] + arms[:turn]:
        done = runs.setdefault(arm, [])
        if len(done) > number or (arm == "torchdistill" and options.torchdistill is None):
            continue
        done.append(run_apart(name, arm, options))
        options.out.write_text(json.dumps(results, indent=1) + "\n")
        print(f"{name}, round {number + 1}: {arm} {done[-1]}", file=sys.stderr, flush=True)


def run_apart(name: str, arm: str, options: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.speed", "--case", name, "--arm", arm]
    command += ["--data", str(options.data), "--work", str(options.work)]
    path = [str(options.torchdistill)] if options.torchdistill is not None else []
    given = {"PYTHONPATH": os.pathsep.join([*path, *filter(None, [os.environ.get("PYTHONPATH")])])}
    # Ours as a training process has it; importing what a training process imports must not give it to the others.
    given |= {"GOMP_SPINCOUNT": SPINS} if arm.startswith("ours") else {"GLIBC_TUNABLES": ""}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=ARM_SECONDS, env=os.environ | given, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"{name}, {arm}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


PEERS = ("tutorial", "torchdistill", "expert", "expert, no augmentation")


def table(case: Case, runs: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown: each arm's median, and the median of its rounds' ratios to each peer, with what is wanted."""
    peers = [arm for arm in PEERS if runs.get(arm)]
    lines = [
        case.title,
        "",
        "| arm | seconds | samples a second | " + " | ".join(f"against {peer}" for peer in peers) + " | accuracy |",
        "| --- |" + " ---: |" * (len(peers) + 3),
    ]
    for arm in (arm for arm in case.arms if runs.get(arm)):
        seconds = statistics.median(run["seconds"] for run in runs[arm])
        rate = f"{runs[arm][0]['samples'] / seconds:,.0f}" if runs[arm][0]["samples"] else ""
        scores = [run["accuracy"] for run in runs[arm] if run["accuracy"] is not None]
        wanted = case.targets.get(arm, {})
        ratios = [
            f"{ratio(runs[peer], runs[arm]):.2f}×" + (f" (of {wanted[peer]:g}×)" if peer in wanted else "")
            for peer in peers
        ]
        score = f"{statistics.mean(scores):.2%}" if scores else ""
        lines.append(f"| {arm} | {seconds:.2f} | {rate} | {' | '.join(ratios)} | {score} |")
    for bare, mine in (pair for pair in case.limits if all(runs.get(arm) for arm in pair)):
        lines += ["", f"{mine}: {ratio(runs[bare], runs[mine]):.0%} of the speed of its limit ({bare})."]
    return "\n".join(lines)


def ratio(slow: list[dict[str, Any]], fast: list[dict[str, Any]]) -> float:
    """How many times faster, the median over the rounds."""
    return statistics.median(theirs["seconds"] / mine["seconds"] for theirs, mine in zip(slow, fast, strict=False))


if __name__ == "__main__":
    main()
