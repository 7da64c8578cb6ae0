"""What each part of the loop's speed is worth: steps of the MNIST pair as they are, and with one thing otherwise.

    python -m benchmarks.speed.parts --data FOLDER [--rounds 8]

Arms take turns, epoch by epoch, in one process. A step's time is that of the fastest tenth of its arm, so that a busy
machine can tell them apart as well.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.speed.arms import given, machine
from benchmarks.speed.mnist import W1
from kdcore import train
from kdcore.choices import Choices, apply
from kdcore.compiled import graph_step
from kdcore.data import Places
from kdcore.export import save_weights
from kdcore.keeping import stage_targets
from kdcore.opening import choose_here, open_job
from kdcore.recorder import Recorder
from kdcore.reporter import RecordingReporter
from kdcore.spec import JobSpec, parse_spec
from kdcore.update import Update

RESULTS = Path(__file__).parent.parent / "results" / "speed-parts.json"
SAMPLES = 3200
"""100 steps an epoch."""
ALL = "all of them"
Arm = tuple[dict[str, Any], Callable[[], AbstractContextManager[object]]]
"""Changes of the choices, and what else is otherwise while it runs."""


@contextmanager
def optimizers_own_step() -> Iterator[None]:
    """Updates as torch makes them."""

    def make(self: Update, rate: float) -> None:
        self._direct = None
        original(self, rate)

    original = Update.make
    with patch.object(Update, "make", make):
        yield


@contextmanager
def memory_filled() -> Iterator[None]:
    """Deterministic algorithms, as torch sets them up, fill what is fresh with NaN."""
    original = train.train_epoch

    def filled(*given: Any) -> None:
        torch.utils.deterministic.fill_uninitialized_memory = True
        original(*given)

    with patch.object(train, "train_epoch", filled):
        yield
    torch.utils.deterministic.fill_uninitialized_memory = False


STUDENT: dict[str, Arm] = {
    ALL: ({}, nullcontext),
    ALL + ", again": ({}, nullcontext),
    "products of one kind (oneDNN)": ({"products": "medium"}, nullcontext),
    "the optimizer's own step": ({}, optimizers_own_step),
    "one batch gathered at a time": ({}, lambda: patch("kdcore.batches.AT_ONCE", 0)),
    "losses read in every step": ({}, lambda: patch("kdcore.recorder.READ_STEPS", 1)),
    "two threads": ({"threads": 2, "one_thread_below": 0}, nullcontext),
    "fresh memory filled": ({}, memory_filled),
    "torch's calls, traced once": ({"trace_from": 0}, nullcontext),
    "one compiled graph": ({"compile_from": 0}, nullcontext),
}
TEACHER: dict[str, Arm] = {
    ALL: ({}, nullcontext),
    ALL + ", again": ({}, nullcontext),
    "products by MKL": ({"products": "highest"}, nullcontext),
    "masks drawn one by one": ({"masks": "torch"}, nullcontext),
    "the optimizer's own step": ({}, optimizers_own_step),
    "two threads": ({"threads": 2}, nullcontext),
    "fresh memory filled": ({}, memory_filled),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the data directory")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    results: dict[str, Any] = {
        "command": f"python -m benchmarks.speed.parts --data FOLDER --rounds {options.rounds}",
        "machine": machine(),
        "microseconds a step": {},
    }
    for who, arms in (("student", STUDENT), ("teacher", TEACHER)):
        found = measure(who, arms, options)
        results["microseconds a step"][who] = found
        print(table(who, found), end="\n\n", flush=True)
        options.out.write_text(json.dumps(results, indent=1) + "\n")


def measure(who: str, arms: dict[str, Arm], options: argparse.Namespace) -> dict[str, float]:
    """Microseconds a step of each arm."""
    spec = parse_spec(document(who))
    first = choose_here(spec).model_copy(update={"threads": 1, "trace_from": None, "compile_from": None})
    taken: dict[str, list[float]] = {name: [] for name in arms}
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "teacher.safetensors"
        facts = spec.data.facts()
        save_weights(weights, spec.teachers[0].model.build(facts.input_shape, len(facts.classes)).state_dict())
        ready = {
            name: epochs(spec, first.model_copy(update=changes), options.data, weights)
            for name, (changes, _) in arms.items()
        }
        for number in range(options.rounds + 1):
            for name, (_, otherwise) in arms.items():
                with otherwise():
                    seconds = ready[name]()
                taken[name] += seconds if number else []  # the first one warms up
    return {name: statistics.quantiles(each, n=10)[0] * 1e6 for name, each in taken.items()}


def document(who: str) -> dict[str, Any]:
    small = {**W1, "data": {**W1["data"], "train_samples": SAMPLES}}
    small["stages"] = [{**W1["stages"][0], "epochs": 1000}]
    if who == "student":
        return given(small)
    teacher = {**W1["teachers"][0], "train": {**W1["teachers"][0]["train"], "epochs": 1000}}
    return {**small, "teachers": [teacher], "baseline": False}


def epochs(spec: JobSpec, choices: Choices, data: Path, weights: Path) -> Callable[[], list[float]]:
    """The first stage of the job, set up; each call trains one more epoch and gives the seconds of its steps."""
    job = open_job(
        spec, RecordingReporter(), places=Places(data), checkpoints=weights.parent, choices=choices, resume=None,
        teacher_weights={0: weights} if spec.teachers[0].weights is not None else {},
    )  # fmt: skip
    stage = job.stages[0]
    training = job.prepare(stage)
    recorder = Recorder(job.reporter, stage.name, stage.losses, steps=10**6, points=1)
    targets = stage_targets(job, stage, training.terms)
    training.graph = graph_step(job, stage, training, partial(train.find_gradients, job, training))

    def epoch() -> list[float]:
        apply(choices)
        times: list[float] = []
        add = recorder.add

        def noted(*given: Any) -> None:
            add(*given)
            times.append(time.perf_counter())

        with patch.object(recorder, "add", noted), job.steps(stage, targets):
            train.train_epoch(job, stage, training, targets, recorder)
        recorder.flush()
        job.state.epoch += 1
        return [after - before for before, after in pairwise(times)]

    return epoch


def table(who: str, found: dict[str, float]) -> str:
    whole = found[ALL]
    title = "784-20-20-10, kept targets" if who == "student" else "784-1200-1200-10, dropout"
    lines = [
        f"W1, batch 32: {title}",
        "",
        "| with … instead | µs a step | against all of them |",
        "| --- | ---: | ---: |",
    ]
    return "\n".join(lines + [f"| {name} | {each:,.0f} | {each / whole:.2f}× |" for name, each in found.items()])


if __name__ == "__main__":
    main()
