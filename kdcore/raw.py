"""A student that takes decoded pictures: `ImageOps.fit` of Pillow, which training used, put before it as ONNX.

The resampling is written out, since the operator Resize cuts at whole pixels only, and rounds otherwise than Pillow.
It is text and not a traced function: for pictures of any size a trace takes a minute, and the text no time.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnx.compose
import onnx.parser
import torch
from torch import Tensor, nn

from kdcore.data import DataFacts
from kdcore.errors import TrainingError
from kdcore.export import TOLERANCE, to_onnx, trace
from kdcore.inputs import Reader
from kdcore.latency import session

WHITE = 255
"""What stands for 1.0 in a decoded picture, whatever the data set stores."""
Fit = Literal["crop", "resize", "pad"]
"""How pictures came to their size in training: the middle, the whole distorted, or the whole within black."""
RESIZING: dict[Fit, str] = {
    "crop": "the middle, cut to the shape, bilinear and antialiased, as PIL.ImageOps.fit(…, BILINEAR)",
    "resize": "the whole, bilinear and antialiased, as PIL.Image.resize(…, BILINEAR)",
    "pad": "the whole within black, bilinear and antialiased, as PIL.ImageOps.pad(…, BILINEAR)",
}


class View(nn.Module):
    """The student's view of a whole sample, in [0, 1], to be exported."""

    def __init__(self, reader: Reader) -> None:
        super().__init__()
        self.reader = reader

    def forward(self, input: Tensor) -> Tensor:  # the name is the ONNX input's
        return self.reader.seen(input)


def reads_pictures(facts: DataFacts) -> bool:
    """Whether whole samples are pictures as files hold them: of one or three channels, 8 bits each."""
    return len(facts.input_shape) == 3 and facts.input_shape[0] in (1, 3) and facts.bytes_each == 1


def save_raw(
    student: Path, reader: Reader, facts: DataFacts, preprocessing: Mapping[str, Any], out: Path, fit: Fit = "crop"
) -> None:
    """Write the student of an ONNX file with all that comes before it: `pixels` (batch, height, width, C) -> `logits`.

    Args:
        student: its ONNX file, which reads the view of a sample.
        reader: the student's.
        facts: of whole samples.
        preprocessing: what goes into the metadata, beside `classes` and `task`.

    Raises:
        TrainingError: `export_failed`, kind system: what it answers is not what the student answers.
        OSError: it could not be written.
    """
    body = onnx.load(str(student))
    model = onnx.parser.parse_model(_front(facts.input_shape, fit, body.ir_version, body.opset_import[0].version))
    if reader.view is not None:
        view = onnx.compose.add_prefix(
            to_onnx(trace(View(reader).cpu(), facts)), "view_", rename_inputs=True, rename_outputs=True
        )
        model = onnx.compose.merge_models(model, view, [("raw_picture", "view_input")])
    model = onnx.compose.merge_models(model, body, [(model.graph.output[0].name, "input")])
    model.graph.name, model.producer_name, model.producer_version = "student", "", ""
    del model.metadata_props[:], model.opset_import[1:]  # merged, the one is there for each part
    # A list of one after the other: the order of a mapping's entries is theirs.
    for name, value in (("classes", list(facts.classes)), ("task", facts.task), ("preprocessing", preprocessing)):
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        model.metadata_props.add(key=name, value=text)
    onnx.save_model(model, str(out))
    _check(student, reader, facts, out)


def _check(student: Path, reader: Reader, facts: DataFacts, raw: Path) -> None:
    """Compare both files on made-up pictures of the training's size, and see that others are read."""
    channels, height, width = facts.input_shape
    random = np.random.default_rng(0)
    runtime, wanted = session(raw), session(student)
    pixels = random.integers(0, 256, (3, height, width, channels), dtype=np.uint8)
    with torch.no_grad():
        read = reader.cpu().seen(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / WHITE).contiguous().numpy()
    answers = runtime.run(["logits"], {"pixels": pixels})[0], wanted.run(["logits"], {"input": read})[0]
    other = runtime.run(["logits"], {"pixels": random.integers(0, 256, (1, 2, 3, channels), dtype=np.uint8)})[0]
    if not np.allclose(*answers, rtol=TOLERANCE, atol=TOLERANCE) or not np.isfinite(other).all():
        raise TrainingError("export_failed", "with pixels it answers otherwise than the student", "system")


def _front(shape: tuple[int, ...], fit: Fit, ir_version: int, opset: int) -> str:
    """A model in ONNX's own syntax, from decoded pixels to pictures in [0, 1]: its output is `raw_picture`."""
    channels, height, width = shape
    steps = (
        "rows = Shape <start = 1, end = 2> (pixels)",
        "columns = Shape <start = 2, end = 3> (pixels)",
        "whole_rows = Cast <to = 1> (rows)",
        "whole_columns = Cast <to = 1> (columns)",
        "half = Constant <value = float {0.5}> ()",
        "one = Constant <value = float {1.0}> ()",
        f"white = Constant <value = float {{{float(WHITE)!r}}}> ()",
        "first = Constant <value = int64 {0}> ()",
        "next = Constant <value = int64 {1}> ()",
        "firsts = Constant <value = int64[1] {0}> ()",
        "nexts = Constant <value = int64[1] {1}> ()",
        "tiny = Constant <value = float {1e-6}> ()",
        *_weights("columns", "rows", fit, width, height),
        *_weights("rows", "columns", fit, height, width),
        "stored = Transpose <perm = [0, 3, 1, 2]> (pixels)",
        "numbers = Cast <to = 1> (stored)",
        "across = Transpose <perm = [1, 0]> (columns_weights)",
        *_rounded("narrow", "numbers", "across"),
        *_rounded("fitted", "rows_weights", "narrow"),
        "picture = Div (fitted, white)",
    )
    inside = "\n".join(_named(step) for step in steps)
    return f"""<ir_version: {ir_version}, opset_import: ["" : {opset}]>
student (uint8[batch, height, width, {channels}] pixels) => (float[batch, {channels}, {height}, {width}] raw_picture) {{
{inside}
}}"""


def _weights(line: str, other: str, fit: Fit, size: int, other_size: int) -> Iterator[str]:
    """How much each pixel of a line counts in each of the `size` new ones: (size, pixels), each row with the sum 1.

    A triangle as wide as two new pixels, or two old ones where the picture grows.
    """
    yield f"{line}_size = Constant <value = float {{{float(size)!r}}}> ()"
    yield f"{line}_count = Constant <value = int64 {{{size}}}> ()"
    yield f"{line}_new = Range (first, {line}_count, next)"
    yield f"{line}_place = Cast <to = 1> ({line}_new)"
    yield from _padded(line, other, other_size) if fit == "pad" else _cut(line, other, fit, size / other_size)
    yield f"{line}_scale = Div ({line}_cut, {line}_taken)"
    yield f"{line}_middle = Add ({line}_from, half)"
    yield f"{line}_scaled = Mul ({line}_middle, {line}_scale)"
    yield f"{line}_centre = Add ({line}_scaled, {line}_left)"
    yield f"{line}_centres = Unsqueeze ({line}_centre, nexts)"
    yield f"{line}_length = Squeeze ({line}, firsts)"
    yield f"{line}_old = Range (first, {line}_length, next)"
    yield f"{line}_old_place = Cast <to = 1> ({line}_old)"
    yield f"{line}_old_middle = Add ({line}_old_place, half)"
    yield f"{line}_apart = Sub ({line}_old_middle, {line}_centres)"
    yield f"{line}_away = Abs ({line}_apart)"
    yield f"{line}_reach = Max ({line}_scale, one)"
    yield f"{line}_share = Div ({line}_away, {line}_reach)"
    yield f"{line}_slope = Sub (one, {line}_share)"
    yield f"{line}_counted = Relu ({line}_slope)"
    yield f"{line}_sum = ReduceSum <keepdims = 1> ({line}_counted, nexts)"
    yield f"{line}_total = Max ({line}_sum, tiny)"
    yield f"{line}_even = Div ({line}_counted, {line}_total)"
    yield f"{line}_seen = Unsqueeze ({line}_inside, nexts)"
    yield f"{line}_weights = Mul ({line}_even, {line}_seen)"


def _cut(line: str, other: str, fit: Fit, ratio: float) -> Iterator[str]:
    """The middle of the line, or all of it, fills the new one."""
    yield f"{line}_ratio = Constant <value = float {{{ratio!r}}}> ()"
    yield f"{line}_most = Mul (whole_{other}, {line}_ratio)"
    yield f"{line}_cut = Min (whole_{line}, {line}_most)" if fit == "crop" else f"{line}_cut = Identity (whole_{line})"
    yield f"{line}_rest = Sub (whole_{line}, {line}_cut)"
    yield f"{line}_left = Mul ({line}_rest, half)"
    yield f"{line}_taken = Identity ({line}_size)"
    yield f"{line}_from = Identity ({line}_place)"
    yield f"{line}_none = Sub ({line}_place, {line}_place)"
    yield f"{line}_inside = Add ({line}_none, one)"


def _padded(line: str, other: str, other_size: int) -> Iterator[str]:
    """All of the line, at the middle of the new one; the rest is black.

    How long it becomes is computed in double, as in Pillow: with float, 22 of 10⁶ sizes are rounded to another pixel.
    """
    yield f"{line}_cut = Identity (whole_{line})"
    yield f"{line}_left = Sub (whole_{line}, whole_{line})"
    yield f"{line}_other_size = Constant <value = float {{{float(other_size)!r}}}> ()"
    exactly = {line: line, other: other, "size": f"{line}_size", "other_size": f"{line}_other_size"}
    for name, value in exactly.items():
        yield f"{line}_exact_{name} = Cast <to = 11> ({value})"
    yield f"{line}_ratio = Div ({line}_exact_{line}, {line}_exact_{other})"
    yield f"{line}_wide = Mul ({line}_ratio, {line}_exact_other_size)"
    yield f"{line}_most = Min ({line}_wide, {line}_exact_size)"
    yield f"{line}_near = Round ({line}_most)"
    yield f"{line}_whole = Cast <to = 1> ({line}_near)"
    yield f"{line}_taken = Max ({line}_whole, one)"
    yield f"{line}_free = Sub ({line}_size, {line}_taken)"
    yield f"{line}_each = Mul ({line}_free, half)"
    yield f"{line}_before = Round ({line}_each)"
    yield f"{line}_from = Sub ({line}_place, {line}_before)"
    yield f"{line}_early = Add ({line}_from, half)"
    yield f"{line}_late = Sub ({line}_taken, {line}_early)"
    yield f"{line}_nearest = Min ({line}_early, {line}_late)"
    yield f"{line}_side = Sign ({line}_nearest)"
    yield f"{line}_inside = Relu ({line}_side)"


def _rounded(name: str, left: str, right: str) -> Iterator[str]:
    """A product, rounded as Pillow does after each direction."""
    yield f"{name}_sum = MatMul ({left}, {right})"
    yield f"{name}_more = Add ({name}_sum, half)"
    yield f"{name} = Floor ({name}_more)"


def _named(step: str) -> str:
    """With `raw_` before each value's name but the input's, since the student has names of its own."""
    result, _, call = step.partition(" = ")
    before, bracket, values = call.rpartition("(")
    names = [name.strip() for name in values.rstrip(")").split(",") if name.strip()]
    given = ", ".join(name if name == "pixels" else f"raw_{name}" for name in names)
    return f"raw_{result} = {before}{bracket}{given})"
