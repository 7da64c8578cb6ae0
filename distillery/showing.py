"""What the demo shows at its end: one table, and what to do next."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distillery.serve import own_command

MNIST = "MNIST/raw/train-images-idx3-ubyte"


def read_result(folder: Path) -> dict[str, Any]:
    """The result document among a job's downloaded files."""
    result: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return result


def print_table(result: Mapping[str, Any]) -> None:
    """Teacher, student alone and student distilled, side by side."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for title in ("accuracy", "agreement", "parameters", "size", "latency"):
        table.add_column(title, justify="right", no_wrap=True)
    rows = (("teacher", "teacher"), ("baseline", "baseline"), ("distilled student", "student"))
    for label, key in rows:
        values = result.get(key)
        if values is not None:
            table.add_row(label, *_cells(values))
    Console(highlight=False).print(table)
    print(
        "baseline: the same student, trained on the labels alone; agreement: test images on which it says what\n"
        "the teacher says; latency: one image on one thread"
    )


def _cells(values: Mapping[str, Any]) -> list[str]:
    agreement = values.get("agreement")
    return [
        f"{values['accuracy']:.2%}" if values["accuracy"] is not None else "-",
        f"{agreement:.2%}" if agreement is not None else "-",
        f"{values['parameters']:,}" if values["parameters"] is not None else "-",
        _size(values["bytes"]) if values["bytes"] is not None else "-",
        f"{values['latency_ms']['p50']:.3f} ms" if "latency_ms" in values else "-",
    ]


def _size(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB" if count >= 2**20 else f"{count / 2**10:,.1f} KiB"


def next_steps(job_file: Path, out: Path, shape: Sequence[int], data: Path) -> str:
    """Commands that work when pasted here."""
    python = os.path.relpath(sys.executable) if _inside(Path(sys.executable)) else sys.executable
    given = os.environ.get("DISTILLERY_DATA")
    prefix = f"DISTILLERY_DATA={given} " if given else ""
    onnx = out / "student.onnx"
    images = f"numpy.random.rand(4, {', '.join(map(str, shape))}).astype('float32')"
    steps = [
        ("read what the student is, and how to run each of its files", f"cat {out / 'README.md'}"),
        (
            "run it: no PyTorch, nothing of this project",
            f"{python} -c \"import numpy, onnxruntime; session = onnxruntime.InferenceSession('{onnx}');"
            f" print(session.run(None, {{'input': {images}}})[0].argmax(1))\"",
        ),
        ("the same job without the service", f"{prefix}{python} -m kdcore {job_file} --out out"),
        ("keep the service running (API documentation at http://127.0.0.1:8000/docs)", f"{prefix}make serve"),
        ("while it runs, from another terminal", f"{own_command()} submit {job_file} --watch"),
    ]
    mnist = Path("examples/mnist-mlp.yaml")
    there = any((data / f"{MNIST}{ending}").is_file() for ending in ("", ".gz"))
    if there and mnist.is_file() and job_file.name != mnist.name:
        steps.append(("the classic experiment, on MNIST", f"{prefix}make demo JOB={mnist}"))
    return "\n".join(["What next:", *(f"  # {what}\n  {command}" for what, command in steps)])


def _inside(path: Path) -> bool:
    return path.is_relative_to(Path.cwd())
