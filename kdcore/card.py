"""The model card: what the student is, how good it is, and code that runs each of its files."""

from collections.abc import Mapping
from typing import Any

TEMPLATE = """\
# {name}

{summary}

## Numbers

On {samples} test samples, used once, after everything was chosen on the validation split:

{table}

{explained}Latency is that of one sample through onnxruntime on one thread of `{cpu}`.
{faster}{gain}
## What it is

- Data: `{data}` ({data_digest}), classes: {classes}.
{teachers}- Student: `{student}`.
- Input: {input}. Output: {output}, (batch, {count}).
- Spec `{spec_digest}`, seed {seed}. `model.json` says the rest, `result.json` holds every number.

## How to run it

Each block runs in this folder, and needs only what it imports.

ONNX, any batch size, normalisation inside:

```python
import numpy
import onnxruntime

{samples_code}
session = onnxruntime.InferenceSession("student.onnx")
logits = session.run(["logits"], {{"input": samples}})[0]
print({shown})
```

torch.export, any batch size, normalisation inside:

```python
import numpy
import torch

{samples_code}
student = torch.export.load("student.pt2").module()
with torch.no_grad():
    logits = student(torch.from_numpy(samples)).numpy()
print({shown})
```
{bare}"""

BARE = """
The bare weights, in plain torch:

```python
import json

import numpy
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

weights = load_file("student.safetensors")
{channel}

{code}


{samples_code}
logits = student(torch.from_numpy(samples)).numpy()
print({shown})
```
"""
CHANNEL = """\
with open("model.json") as file:
    preprocessing = json.load(file)["preprocessing"]
channel = {{name: torch.tensor(preprocessing[name]).view({view}) for name in ("mean", "std")}}

"""


def model_card(result: Mapping[str, Any], model: Mapping[str, Any], code: str | None) -> str:
    """The text of README.md.

    Args:
        result: the result document.
        model: the content of model.json.
        code: `plain.plain_function` of the student; none where plain torch code cannot say what it does.
    """
    made = model["provenance"]
    return TEMPLATE.format(
        name=model["name"],
        summary=result["summary"],
        samples=f"{result['test_samples']:,}",
        table=_table(result),
        cpu=result["choices"]["cpu"],
        explained=_explained(result),
        faster=_faster(result["speedup"]),
        gain=_gain(result["gain"]),
        data=made["data"]["type"],
        data_digest=made["data_digest"],
        classes=", ".join(model["classes"]),
        teachers="".join(map(_teacher, made["teachers"])),
        student=_config(model["architecture"]),
        input=_input(model),
        output=OUTPUTS[model["task"]],
        count=len(model["classes"]),
        spec_digest=made["spec_digest"],
        seed=made["seed"],
        samples_code=_samples(model),
        shown=SHOWN[model["task"]],
        bare=_bare(model, code),
    )


OUTPUTS = {
    "classification": "logits",
    "multi_label": "logits, one for each class that may be there",
    "regression": "the targets",
    "embedding": "an embedding, to be compared by cosine",
}
SHOWN = {
    "classification": "logits.argmax(1)",
    "multi_label": "logits > 0",
    "regression": "logits",
    "embedding": "logits / numpy.linalg.norm(logits, axis=1, keepdims=True)",
}


def _input(model: Mapping[str, Any]) -> str:
    shape = ", ".join(map(str, model["input"]["shape"]))
    if "tokenizer" in model["preprocessing"]:
        return f"int64 tokens, shape (batch, {shape}); `model.json` holds the vocabulary and how texts are cut"
    scale = model["preprocessing"]["scale"]
    view = f", the view `{_config(model['input']['view'])}` of a sample" if model["input"]["view"] else ""
    stored = f"; a stored value v is v / {scale:g}" if scale != 1 else ""
    return f"float32, in [0, 1] where samples are pictures, shape (batch, {shape}){view}{stored}"


def _samples(model: Mapping[str, Any]) -> str:
    """Code that makes samples up."""
    shape = ", ".join(map(str, model["input"]["shape"]))
    if "tokenizer" in model["preprocessing"]:
        return (
            f"samples = numpy.random.default_rng(0).integers(0, {model['preprocessing']['vocabulary']}, (4, {shape}))"
        )
    return f'samples = numpy.random.default_rng(0).random((4, {shape}), dtype="float32")'


def _bare(model: Mapping[str, Any], code: str | None) -> str:
    if code is None:
        return ""
    after = len(model["input"]["shape"]) - 1 if model["input"]["layout"] == "NCHW" else 0
    channel = CHANNEL.format(view=", ".join(["-1", *["1"] * after])) if "channel[" in code else ""
    return BARE.format(channel=channel, code=code, samples_code=_samples(model), shown=SHOWN[model["task"]])


def _explained(result: Mapping[str, Any]) -> str:
    """What the rows of the table mean that do not speak for themselves."""
    sentences = []
    if "agreement" in result["student"]:
        sentences.append(
            "Agreement is the share of test samples on which the model predicts what the teacher predicts."
        )
    if "ece_bins" in result["student"]:
        bins = f"Expected calibration error: {result['student']['ece_bins']} bins of equal width"
        sentences.append(f"{bins}; the temperature is fitted on the validation split.")
    return "".join(f"{sentence} " for sentence in sentences)


def _table(result: Mapping[str, Any]) -> str:
    columns = [("teacher", "teacher"), ("student alone", "baseline"), ("student distilled", "student")]
    columns = [(title, key) for title, key in columns if result[key] is not None]
    top = result["student"].get("top_k")
    rows: list[tuple[str, list[str]]] = [
        (title, [_number(result[model], key, form) for _, model in columns])
        for title, key, form in (
            ("accuracy", "accuracy", ".4f"),
            (f"top-{top} accuracy", "top_k_accuracy", ".4f"),
            ("negative log-likelihood", "nll", ".4f"),
            ("expected calibration error", "ece", ".4f"),
            ("… after temperature scaling", "ece_scaled", ".4f"),
            ("macro F1", "macro_f1", ".4f"),
            ("area under the ROC curve", "auroc", ".4f"),
            ("mean absolute error", "mae", ".4g"),
            ("root of the mean squared error", "rmse", ".4g"),
            ("R²", "r2", ".4f"),
            ("recall at 1", "recall_at_1", ".4f"),
            ("recall at 5", "recall_at_5", ".4f"),
            ("agreement with the teacher", "agreement", ".4f"),
            ("mean absolute difference from the teacher", "teacher_mae", ".4g"),
            ("predictive KL from the teacher", "predictive_kl", ".4f"),
            ("parameters", "parameters", ",d"),
            ("multiply-adds, doubled (FLOPs)", "flops", ",d"),
            ("bytes of weights", "bytes", ",d"),
        )
        if key in result["student"]
    ]
    rows.append(("latency p50, ms", [f"{result[model]['latency_ms']['p50']:.3f}" for _, model in columns]))
    rows.append(
        ("samples a second, in batches of 64", [f"{result[of]['samples_per_second']:,.0f}" for _, of in columns])
    )
    lines = [f"| | {' | '.join(title for title, _ in columns)} |", f"| --- |{' ---: |' * len(columns)}"]
    return "\n".join([*lines, *(f"| {title} | {' | '.join(cells)} |" for title, cells in rows)])


def _number(values: Mapping[str, Any], key: str, form: str) -> str:
    return format(values[key], form) if key in values else ""


def _gain(gain: Mapping[str, Any] | None) -> str:
    if gain is None:
        return ""
    low, high = gain["interval"]
    name = gain["score"]
    points = f"{gain[name] * 100:+.2f} points, 95% interval {low * 100:+.2f} to {high * 100:+.2f}"
    if name == "mae":
        points = f"an error less by {gain[name]:+.4g}, 95% interval {low:+.4g} to {high:+.4g}"
    text = f"\nGain of distillation over the same student trained on the labels alone: {points} ({gain['method']})."
    test = gain.get("mcnemar")
    if test is None:
        return f"{text}\n"
    return (
        f"{text} McNemar's test ({test['method']}): {test['only_student_right']} samples only the distilled student has"
        f" right, {test['only_baseline_right']} only the other, p = {test['p']:.2g}.\n"
    )


def _faster(speedup: Mapping[str, Any] | None) -> str:
    if speedup is None:
        return ""
    return (
        f"The student is {speedup['latency']:.1f} times as fast as the teacher with one sample, and"
        f" {speedup['throughput']:.1f} times with many.\n"
    )


def _teacher(teacher: Mapping[str, Any]) -> str:
    return f"- Teacher: `{_config(teacher['model'])}`{_origin(teacher['weights'])}.\n"


def _origin(weights: Mapping[str, Any] | None) -> str:
    return ", trained for this job" if weights is None else f", its weights from {_config(weights)}"


def _config(config: Mapping[str, Any]) -> str:
    return "{" + ", ".join(f"{name}: {value}" for name, value in config.items() if value is not None) + "}"
