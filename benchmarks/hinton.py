"""Hinton, Vinyals and Dean's experiment on MNIST (2015, section 3), on examples/hinton-mnist*.yaml and without threes.

    python benchmarks/hinton.py --data FOLDER [--seeds 3] [--only 2]

For each seed the teacher is trained once; the other specs learn from its weights. A run that is in the results file
already is not made again, so that seeds may also be run side by side, each with its `--only`. Prints errors on the
10,000 test images.
"""

import argparse
import json
import platform
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from kdcore.choices import cpu_name
from kdcore.compare import spread
from kdcore.data import Places
from kdcore.data.mnist import MNISTConfig
from kdcore.document import read_document
from kdcore.inputs import unit
from kdcore.latency import session
from kdcore.reporter import RecordingReporter
from kdcore.spec import parse_spec
from kdcore.train import run

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "hinton.json"
FIRST = "hinton-mnist"
EXAMPLES = (FIRST, "hinton-mnist-jitter", "mnist-without-threes")
THREE = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the data directory")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", type=int, action="append", help="a seed; may be repeated")
    parser.add_argument("--work", type=Path, default=Path("distilled-hinton"), help="where the students go")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    for seed in options.only or range(options.seeds):
        for name in EXAMPLES:
            if f"{name}/{seed}" not in read(options)["runs"]:
                run = train(name, seed, options)
                results = read(options)  # another seed's process may have written meanwhile
                results["runs"][f"{name}/{seed}"] = run
                options.out.write_text(json.dumps(results, indent=1) + "\n")
                print(f"{name}, seed {seed}: {run}", file=sys.stderr, flush=True)
    print(table(read(options)))


def read(options: argparse.Namespace) -> dict[str, Any]:
    """The results file, or what it begins with."""
    if options.out.exists():
        found: dict[str, Any] = json.loads(options.out.read_text())
        return found
    about = {"torch": torch.__version__, "python": platform.python_version(), "cpu": cpu_name()}
    command = f"python benchmarks/hinton.py --data FOLDER --seeds {options.seeds}"
    return {"command": command, "machine": about, "runs": {}}


def train(name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Run the example with this seed; what it found."""
    document: dict[str, Any] = {**read_document((ROOT / "examples" / f"{name}.yaml").read_text()), "seed": seed}
    given, teacher = {}, options.work / f"{FIRST}-{seed}" / "teacher-1.safetensors"
    if name != FIRST:
        document["teachers"] = [{"model": document["teachers"][0]["model"], "weights": {"file": teacher.name}}]
        document["baseline"] = False  # the published figures have none of these
        given = {0: teacher}
    out = options.work / f"{name}-{seed}"
    shutil.rmtree(out, ignore_errors=True)
    began = time.perf_counter()
    result = run(
        parse_spec(document), data_root=options.data, out=out, reporter=RecordingReporter(), teacher_weights=given,
        download=False,
    )  # fmt: skip
    seconds = round(time.perf_counter() - began, 1)
    found: dict[str, Any] = {"seconds": seconds, "threads": torch.get_num_threads(), "stages": result["seconds"]}
    for who in ("teacher", "baseline", "student"):
        if result[who] is None:
            continue
        matrix = torch.tensor(result[who]["confusion_matrix"])
        found[who] = {"errors": int(matrix.sum() - matrix.trace()), "threes_right": int(matrix[THREE, THREE])}
    found["gain"] = result["gain"]
    if (offset := result["validation"]["distill-1"].get("offset")) is not None:
        found |= {"offset": offset, "without_offset": without(offset, out, options.data)}
    return found


def without(offset: float, out: Path, root: Path) -> dict[str, int]:
    """What the student in `out` gets right with the threes' logits as they were before the offset."""
    test = MNISTConfig().load(Places(root, download=False)).test
    (logits,) = session(out / "student.onnx").run(["logits"], {"input": unit(test.inputs, 255.0).numpy()})
    logits[:, THREE] -= offset
    said, threes = torch.from_numpy(logits).argmax(1), test.labels == THREE
    return {
        "errors": int((said != test.labels).sum()),
        "threes_right": int((said[threes] == THREE).sum()),
    }


def table(results: dict[str, Any]) -> str:
    """Markdown: errors, means over the seeds."""
    rows = {
        "teacher": (FIRST, "teacher"),
        "student alone": (FIRST, "baseline"),
        "distilled, T 20": (FIRST, "student"),
        "distilled, T 20, jittered": ("hinton-mnist-jitter", "student"),
        "distilled, no threes": ("mnist-without-threes", "without_offset"),
        "distilled, no threes, with the offset": ("mnist-without-threes", "student"),
    }
    lines = ["| model | test errors | of them, by seed | threes right of 1,010 |", "| --- | ---: | --- | ---: |"]
    runs = results["runs"]
    for title, (name, who) in rows.items():
        found = [run[who] for key, run in sorted(runs.items()) if key.startswith(f"{name}/") and who in run]
        if not found:
            continue
        errors = [each["errors"] for each in found]
        about = spread(errors)
        mean = f"{about['mean']:.1f}" + (f" ± {about['std']:.1f}" if about["std"] is not None else "")
        threes = statistics.mean(each["threes_right"] for each in found)
        lines.append(f"| {title} | {mean} | {', '.join(map(str, errors))} | {threes:.0f} |")
    lines += ["", "| run | seconds | threads | gain over alone, points | p (McNemar) |"]
    lines += ["| --- | ---: | ---: | ---: | ---: |"]
    for key, each in sorted(runs.items()):
        gain = each.get("gain")
        gained = f"{gain['accuracy'] * 100:+.2f} | {gain['mcnemar']['p']:.1g}" if gain else "|"
        lines.append(f"| {key} | {each['seconds']:.0f} | {each['threads']} | {gained} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
