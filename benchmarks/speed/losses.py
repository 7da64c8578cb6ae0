"""W4: what each feature or relation loss adds to a step of kd alone, on WRN-40-2 → ResNet-8x4, teacher's features kept.

    python -m benchmarks.speed.losses --data FOLDER [--rounds 3] [--only hint]

Each loss takes turns with kd, epoch by epoch, in one process; the result is the median of the ratios of a round.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.speed.arms import machine
from benchmarks.speed.cifar import SGD, W2_STUDENTS, W2_TEACHER
from kdcore import train
from kdcore.config import SpecError
from kdcore.data import Places
from kdcore.export import save_weights
from kdcore.keeping import stage_targets
from kdcore.opening import open_job
from kdcore.recorder import Recorder
from kdcore.reporter import RecordingReporter
from kdcore.spec import JobSpec, parse_spec

RESULTS = Path(__file__).parent.parent / "results" / "speed-losses.json"
KD: list[dict[str, Any]] = [{"type": "cross_entropy", "weight": 0.1}, {"type": "kd", "weight": 0.9}]
ADDED: dict[str, list[dict[str, Any]]] = {
    name: [{"type": name, "weight": 1e-6}]  # of any weight they take as long, and none diverges
    for name in (
        "hint", "knowledge_matching", "attention_transfer", "similarity_preserving", "neuron_selectivity",
        "variational_information", "flow_of_solution", "factor_transfer", "activation_boundary", "overhaul", "review",
        "singular_value", "contrastive", "simkd", "semckd", "srrl", "rkd_distance", "rkd_angle",
        "probabilistic_transfer", "correlation_congruence", "absolute_teacher", "relative_teacher", "instance_graph",
        "multi_head_graph",
    )
}  # fmt: skip
SAMPLES, BATCH = 384, 64
WANTED = 0.25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the data directory")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", action="append", choices=ADDED, help="may be repeated; left out: all")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    results: dict[str, Any] = {
        "command": f"python -m benchmarks.speed.losses --data FOLDER --rounds {options.rounds}",
        "machine": machine(),
        "runs": {},
        "refused": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        weights = place / "teacher.safetensors"
        spec = spec_of(KD)
        facts = spec.data.facts()
        save_weights(weights, spec.teachers[0].model.build(facts.input_shape, len(facts.classes)).state_dict())
        alone = epochs(spec, options.data, place, weights)
        for name in options.only or ADDED:
            try:
                beside = epochs(spec_of(KD + ADDED[name]), options.data, place, weights)
            except SpecError as error:
                results["refused"][name] = error.errors[0][1]
                continue
            alone(), beside()  # a first one warms up
            results["runs"][name] = [{"kd": alone(), "with it": beside()} for _ in range(options.rounds)]
            print(name, results["runs"][name], file=sys.stderr, flush=True)
            options.out.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


def spec_of(losses: list[dict[str, Any]]) -> JobSpec:
    """The teacher's weights are drawn: what it says takes as long."""
    return parse_spec(
        {
            "data": {"type": "cifar10", "validation": 100, "train_samples": SAMPLES},
            "teachers": [{"model": W2_TEACHER, "weights": {"file": "teacher.safetensors"}}],
            "student": {"model": W2_STUDENTS["resnet8x4"]},
            "stages": [{"epochs": 1000, "batch_size": BATCH, "optimizer": SGD, "losses": losses}],
            "precision": "bf16",
            "baseline": False,
            "checkpoint": {"every_seconds": 86_400},
        }
    )


def epochs(spec: JobSpec, data: Path, folder: Path, weights: Path) -> Callable[[], float]:
    """The job's stage, set up; each call trains one more epoch and says how many seconds a step took."""
    job = open_job(
        spec, RecordingReporter(), places=Places(data), checkpoints=folder, choices=None, resume=None,
        teacher_weights={0: weights},
    )  # fmt: skip
    stage = job.stages[0]
    training = job.prepare(stage)
    steps = job.steps_per_epoch(stage)
    recorder = Recorder(job.reporter, stage.name, stage.losses, steps=1000 * steps, points=1)
    targets = stage_targets(job, stage, training.terms)
    assert not targets.teachers, "the teacher's features are not kept: there is too little memory"

    def epoch() -> float:
        began = time.perf_counter()
        with job.steps(stage, targets):
            train.train_epoch(job, stage, training, targets, recorder)
        recorder.flush()
        job.state.epoch += 1
        return (time.perf_counter() - began) / steps

    return epoch


def table(results: dict[str, Any]) -> str:
    """Markdown: what each adds, least first."""
    lines = [
        f"W4: WRN-40-2 → ResNet-8x4, CIFAR-10, batch {BATCH}, bf16, features kept; at most {WANTED:.0%} wanted",
        "",
        "| loss beside kd | ms a step | added |",
        "| --- | ---: | ---: |",
    ]
    rows = []
    for name, runs in results["runs"].items():
        added = statistics.median(run["with it"] / run["kd"] for run in runs) - 1
        rows.append((added, name, statistics.median(run["with it"] for run in runs)))
    lines += [f"| `{name}` | {seconds * 1e3:.1f} | {added:+.0%} |" for added, name, seconds in sorted(rows)]
    refused = [f"`{name}`: {why}" for name, why in results["refused"].items()]
    return "\n".join(lines + (["", "Not on this pair: " + "; ".join(refused) + "."] if refused else []))


if __name__ == "__main__":
    main()
