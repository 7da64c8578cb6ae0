"""What a checkpoint costs, beside the 2% of training time that checkpoints in time may take.

    python benchmarks/checkpoints.py [--rounds 7] [--out FILE]

Saves the state of a job in the middle of a stage: model, Adam's two moments, generators, and the finished teacher.
"""

import argparse
import itertools
import json
import platform
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from kdcore import checkpoint
from kdcore.choices import cpu_name
from kdcore.session import COST_SHARE
from kdcore.spec import CheckpointConfig

MODELS = {
    "784-20-20-10": [784, 20, 20, 10],
    "784-1200-1200-10": [784, 1200, 1200, 10],
    "784-4096-4096-4096-10": [784, 4096, 4096, 4096, 10],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "checkpoints.json")
    options = parser.parse_args()
    rows = [measure(name, widths, options.rounds) for name, widths in MODELS.items()]
    every = CheckpointConfig().every_seconds
    print(f"{'trained model':24} {'checkpoint':>12} {'median':>9} {'worst':>9} {'interval':>9} {'share':>7}")
    for row in rows:
        row["interval_seconds"] = max(every, row["median_seconds"] / COST_SHARE)
        row["share"] = row["median_seconds"] / row["interval_seconds"]
        print(
            f"{row['model']:24} {row['bytes'] / 2**20:8.1f} MiB {row['median_seconds'] * 1e3:6.0f} ms"
            f" {row['worst_seconds'] * 1e3:6.0f} ms {row['interval_seconds']:7.0f} s {row['share']:7.2%}"
        )
    about = {"torch": torch.__version__, "python": platform.python_version(), "cpu": cpu_name()}
    options.out.parent.mkdir(exist_ok=True)
    command = f"python benchmarks/checkpoints.py --rounds {options.rounds}"
    options.out.write_text(json.dumps({"command": command, "machine": about, "rows": rows}, indent=1) + "\n")


def measure(name: str, widths: list[int], rounds: int) -> dict[str, Any]:
    """Save such a model's state several times over."""
    layers = [torch.nn.Linear(a, b) for a, b in itertools.pairwise(widths)]
    model = torch.nn.Sequential(*layers)
    moments = {key: (torch.zeros_like(value), torch.zeros_like(value)) for key, value in model.state_dict().items()}
    teacher = {key: value.clone() for key, value in model.state_dict().items()}
    content = {"state": teacher, "running": {"model": model.state_dict(), "optimizer": moments}}
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            began = time.perf_counter()
            path, _ = checkpoint.save(Path(folder), content)
            seconds.append(time.perf_counter() - began)
        size = path.stat().st_size
    return {"model": name, "bytes": size, "median_seconds": median(seconds), "worst_seconds": max(seconds)}


if __name__ == "__main__":
    main()
