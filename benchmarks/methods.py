"""Every method on one pair of networks, at one small budget, against the same student trained on the labels alone.

    python benchmarks/methods.py --pair fashion --data FOLDER [--seeds 3] [--only kd --only hint] [--table]

A run that is in the results file already is not made again, so that an interrupted command is simply given again. Every
run of a seed begins with the same weights and sees the samples in the same order; the teacher is trained once.
"""

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from methods_list import METHODS, STUDENT

from kdcore.choices import cpu_name
from kdcore.compare import spread
from kdcore.config import SpecError
from kdcore.data import Places
from kdcore.evaluate import accuracy
from kdcore.export import save_weights
from kdcore.job import Job
from kdcore.opening import open_job
from kdcore.plan import make_plan
from kdcore.reporter import RecordingReporter
from kdcore.spec import JobSpec, parse_spec
from kdcore.train import train_stage

RESULTS = Path(__file__).parent / "results"
PAIRS: dict[str, dict[str, Any]] = {
    "fashion": {
        "data": {"type": "fashion_mnist", "train_samples": 6000, "validation": 2000},
        "teacher": {"model": {"type": "resnet", "depth": 20}, "view": {"type": "resize", "size": 16}},
        "teacher_train": {
            "epochs": 15,
            "optimizer": {"type": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4},
            "schedule": {"type": "cosine"},
        },
        "student": {"model": {"type": "resnet", "depth": 8}, "view": {"type": "resize", "size": 16}},
        "train": {
            "optimizer": {"type": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4},
            "schedule": {"type": "cosine"},
        },
        "epochs": 6,
    },
    "news": {
        "data": {"type": "ag_news", "vocabulary": 5000, "length": 32, "train_samples": 6000, "validation": 2000},
        "teacher": {"model": {"type": "text_transformer", "width": 64, "layers": 2, "mlp": 128, "dropout": 0.1}},
        "teacher_train": {"epochs": 8},
        "student": {"model": {"type": "lstm", "embedding": 16, "hidden": 32, "layers": 2}},
        "train": {"optimizer": {"type": "adam", "lr": 2e-3}},
        "epochs": 6,
    },
}
TITLES = {
    "fashion": "Fashion-MNIST at 16x16, 6,000 samples: resnet20 → resnet8",
    "news": "AG News, 6,000 samples: Transformer of 2 layers → LSTM of 2 layers",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", choices=PAIRS, required=True)
    parser.add_argument("--data", type=Path, help="the data directory")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", action="append", help="a method's name; may be repeated")
    parser.add_argument("--table", action="store_true", help="print the table of what is there, and run nothing")
    parser.add_argument("--out", type=Path, help="the results file")
    options = parser.parse_args()
    if unknown := set(options.only or ()) - METHODS.keys():
        parser.error(f"there is no method {', '.join(sorted(unknown))}; there are {', '.join(METHODS)}")
    out = options.out or RESULTS / f"methods-{options.pair}.json"
    results = json.loads(out.read_text()) if out.exists() else begin(options)
    if results["pair"] != json.loads(json.dumps(PAIRS[options.pair])):
        parser.error(f"{out} is of another pair; move it away")
    if not options.table:
        if options.data is None:
            parser.error("--data is needed to run anything")
        with tempfile.TemporaryDirectory() as folder:
            run_all(options, results, out, Path(folder))
    print(table(options.pair, results))


def begin(options: argparse.Namespace) -> dict[str, Any]:
    about = {"torch": torch.__version__, "python": platform.python_version(), "cpu": cpu_name()}
    return {
        "command": f"python benchmarks/methods.py --pair {options.pair} --data FOLDER --seeds {options.seeds}",
        "machine": about,
        "pair": PAIRS[options.pair],
        "runs": {},
        "refused": {},
    }


def run_all(options: argparse.Namespace, results: dict[str, Any], out: Path, folder: Path) -> None:
    """Make the runs that are not there, the labels alone first, and write the file after each."""
    torch.set_num_threads(1)
    weights = folder / "teacher.safetensors"
    missing = [
        (name, seed)
        for seed in range(options.seeds)
        for name in METHODS
        if name in (options.only or METHODS) and f"{name}/{seed}" not in results["runs"]
    ]
    for name, seed in missing:
        try:
            spec = spec_of(options.pair, name, seed)
            make_plan(spec)
        except SpecError as error:
            results["refused"][name] = error.errors[0][1]
            continue
        if not weights.exists():
            results["teacher"] = train_teacher(options, weights)
        results["runs"][f"{name}/{seed}"] = run = train(spec, options.data, weights)
        out.write_text(json.dumps(results, indent=1) + "\n")
        print(f"{name}, seed {seed}: {run['accuracy']:.4f} in {run['seconds']:.0f} s", file=sys.stderr, flush=True)
    out.write_text(json.dumps(results, indent=1) + "\n")


def spec_of(pair: str, name: str, seed: int) -> JobSpec:
    """The method's spec: its losses on the pair, the stages' epochs together the pair's budget."""
    about, stages = PAIRS[pair], METHODS[name]
    epochs = about["epochs"]
    shares = [epochs] if len(stages) == 1 else [epochs // 3, epochs - epochs // 3]
    return parse_spec(
        {
            "data": about["data"],
            "teachers": [{**about["teacher"], "weights": {"file": "teacher.safetensors"}}],
            "student": about["student"],
            "stages": [
                {**about["train"], "epochs": share, "losses": [_with_peer(loss, about["student"]) for loss in losses]}
                for share, losses in zip(shares, stages, strict=True)
            ],
            "baseline": False,
            "seed": seed,
            "checkpoint": {"every_seconds": 86_400},
        }
    )


def _with_peer(loss: dict[str, Any], student: Mapping[str, Any]) -> dict[str, Any]:
    return {**loss, "peer": student["model"]} if loss.get("peer") == STUDENT else loss


def train_teacher(options: argparse.Namespace, path: Path) -> dict[str, float]:
    """Train the pair's teacher with seed 0 and save it."""
    about = PAIRS[options.pair]
    teacher = {**about["teacher"], "train": about["teacher_train"]}
    spec = parse_spec({"data": about["data"], "teachers": [teacher], "student": about["student"], "baseline": False})
    with tempfile.TemporaryDirectory() as folder:
        job, began = open_here(spec, options.data, folder, {}), time.perf_counter()
        train_stage(job, job.stages[0], points=1, out=Path(folder))
        save_weights(path, job.state.models["teacher-1"])
        return {"accuracy": tested(job, "teacher-1"), "seconds": time.perf_counter() - began}


def train(spec: JobSpec, data: Path, weights: Path) -> dict[str, float]:
    """The student's accuracy on the test split, of its best epoch on the validation split."""
    with tempfile.TemporaryDirectory() as folder:
        job, began = open_here(spec, data, folder, {0: weights}), time.perf_counter()
        for stage in job.stages:
            train_stage(job, stage, points=1, out=Path(folder))
        return {"accuracy": tested(job, "student"), "seconds": time.perf_counter() - began}


def open_here(spec: JobSpec, data: Path, folder: str, weights: Mapping[int, Path]) -> Job:
    return open_job(
        spec, RecordingReporter(), places=Places(data), checkpoints=Path(folder), choices=None, resume=None,
        teacher_weights=weights,
    )  # fmt: skip


def tested(job: Job, name: str) -> float:
    logits = job.predict(job.finished(name), "test", job.reader_of(name))
    return accuracy(logits, job.data.test.labels.cpu())


def table(pair: str, results: Mapping[str, Any]) -> str:
    """Markdown: the gain of each method over the labels alone, in points, best first."""
    runs: Mapping[str, Any] = results["runs"]
    seeds = sorted({int(key.rpartition("/")[2]) for key in runs})
    alone = {seed: runs[f"labels alone/{seed}"]["accuracy"] for seed in seeds if f"labels alone/{seed}" in runs}
    rows = []
    for name in METHODS:
        found = {seed: runs[f"{name}/{seed}"] for seed in alone if f"{name}/{seed}" in runs}
        if not found:
            continue
        mean = statistics.mean(run["accuracy"] for run in found.values())
        seconds = statistics.median(run["seconds"] for run in found.values())
        gain = spread([run["accuracy"] - alone[seed] for seed, run in found.items()])
        rows.append((gain, name, mean, seconds, len(found)))
    rows.sort(key=lambda row: -row[0]["mean"])
    teacher = f", teacher {results['teacher']['accuracy']:.2%}" if "teacher" in results else ""
    lines = [
        f"{TITLES[pair]}{teacher}",
        "",
        "| method | test accuracy | gain over the labels alone, points | seeds | seconds a run |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for gain, name, mean, seconds, count in rows:
        change = f"{gain['mean'] * 100:+.2f}" + (f" ± {gain['std'] * 100:.2f}" if gain["std"] is not None else "")
        change = "–" if name == "labels alone" else change
        lines.append(f"| {name} | {mean:.2%} | {change} | {count} | {seconds:.0f} |")
    refused = [f"`{name}`: {why}" for name, why in results["refused"].items()]
    return "\n".join(lines + (["", "Not for this pair: " + "; ".join(refused) + "."] if refused else []))


if __name__ == "__main__":
    main()
