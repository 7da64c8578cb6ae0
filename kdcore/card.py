"""The model card: what the student is, how good it is, and code that runs each of its files."""

from collections.abc import Mapping
from typing import Any

TEMPLATE = """\
# {name}

{summary}

## Numbers

On {samples} test samples, used once, after everything was chosen on the validation split:

{table}

Agreement is the share of test samples on which the model predicts what the teacher predicts. Latency is that of
one sample through onnxruntime on one thread of `{cpu}`. Expected calibration error: {bins} bins of equal width.
{gain}
## What it is

- Data: `{data}` ({data_digest}), classes: {classes}.
{teachers}
- Student: `{student}`.
- Input: float32 in [0, 1], shape (batch, {shape}); a stored value v is v / {scale:g}. Output: logits, (batch, {count}).
- Spec `{spec_digest}`, seed {seed}. `model.json` says the rest, `result.json` holds every number.

## How to run it

Each block runs in this folder, and needs only what it imports.

ONNX, any batch size, normalisation inside:

```python
import numpy
import onnxruntime

images = numpy.random.default_rng(0).random((4, {shape}), dtype="float32")
session = onnxruntime.InferenceSession("student.onnx")
logits = session.run(["logits"], {{"input": images}})[0]
print(logits.argmax(1))
```

torch.export, any batch size, normalisation inside:

```python
import numpy
import torch

images = numpy.random.default_rng(0).random((4, {shape}), dtype="float32")
student = torch.export.load("student.pt2").module()
with torch.no_grad():
    logits = student(torch.from_numpy(images)).numpy()
print(logits.argmax(1))
```

The bare weights, in plain torch; normalise first:

```python
import json

import numpy
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

weights = load_file("student.safetensors")
with open("model.json") as file:
    preprocessing = json.load(file)["preprocessing"]
channel = {{name: torch.tensor(preprocessing[name]).view({view}) for name in ("mean", "std")}}


{code}


images = numpy.random.default_rng(0).random((4, {shape}), dtype="float32")
logits = student(torch.from_numpy(images)).numpy()
print(logits.argmax(1))
```
"""


def model_card(result: Mapping[str, Any], model: Mapping[str, Any], code: str) -> str:
    """The text of README.md.

    Args:
        result: the result document.
        model: the content of model.json.
        code: `plain.plain_function` of the student.
    """
    shape = model["input"]["shape"]
    made = model["provenance"]
    return TEMPLATE.format(
        name=model["name"],
        summary=result["summary"],
        samples=f"{result['test_samples']:,}",
        table=_table(result),
        cpu=result["choices"]["cpu"],
        bins=result["student"]["ece_bins"],
        gain=_gain(result["gain"]),
        data=made["data"]["type"],
        data_digest=made["data_digest"],
        classes=", ".join(model["classes"]),
        teachers="\n".join(map(_teacher, made["teachers"])),
        student=_config(model["architecture"]),
        scale=model["preprocessing"]["scale"],
        count=len(model["classes"]),
        spec_digest=made["spec_digest"],
        seed=made["seed"],
        shape=", ".join(map(str, shape)),
        view=", ".join(["-1", *["1"] * (len(shape) - 1)]),
        code=code,
    )


def _table(result: Mapping[str, Any]) -> str:
    columns = [("teacher", "teacher"), ("student alone", "baseline"), ("student distilled", "student")]
    columns = [(title, key) for title, key in columns if result[key] is not None]
    top = result["student"]["top_k"]
    rows: list[tuple[str, list[str]]] = [
        (title, [_number(result[model], key, form) for _, model in columns])
        for title, key, form in (
            ("accuracy", "accuracy", ".4f"),
            (f"top-{top} accuracy", "top_k_accuracy", ".4f"),
            ("negative log-likelihood", "nll", ".4f"),
            ("expected calibration error", "ece", ".4f"),
            ("agreement with the teacher", "agreement", ".4f"),
            ("predictive KL from the teacher", "predictive_kl", ".4f"),
            ("parameters", "parameters", ",d"),
            ("multiply-adds, doubled (FLOPs)", "flops", ",d"),
            ("bytes of weights", "bytes", ",d"),
        )
    ]
    rows.append(("latency p50, ms", [f"{result[model]['latency_ms']['p50']:.3f}" for _, model in columns]))
    lines = [f"| | {' | '.join(title for title, _ in columns)} |", f"| --- |{' ---: |' * len(columns)}"]
    return "\n".join([*lines, *(f"| {title} | {' | '.join(cells)} |" for title, cells in rows)])


def _number(values: Mapping[str, Any], key: str, form: str) -> str:
    return format(values[key], form) if key in values else ""


def _gain(gain: Mapping[str, Any] | None) -> str:
    if gain is None:
        return ""
    low, high = gain["interval"]
    test = gain["mcnemar"]
    points = f"{gain['accuracy'] * 100:+.2f} points, 95% interval {low * 100:+.2f} to {high * 100:+.2f}"
    return (
        f"\nGain of distillation over the same student trained on the labels alone: {points} ({gain['method']})."
        f" McNemar's test ({test['method']}): {test['only_student_right']} samples only the distilled student has"
        f" right, {test['only_baseline_right']} only the other, p = {test['p']:.2g}.\n"
    )


def _teacher(teacher: Mapping[str, Any]) -> str:
    return f"- Teacher: `{_config(teacher['model'])}`{_origin(teacher['weights'])}."


def _origin(weights: Mapping[str, Any] | None) -> str:
    return ", trained for this job" if weights is None else f", its weights from {_config(weights)}"


def _config(config: Mapping[str, Any]) -> str:
    return "{" + ", ".join(f"{name}: {value}" for name, value in config.items() if value is not None) + "}"
