"""The model card: what the student is, how good it is, and code that runs each of its files."""

from collections.abc import Mapping
from typing import Any

from kdcore.card_table import explained, faster, gain, table
from kdcore.card_text import BARE, CHANNEL, INT8, LEFT_OUT, ORIGINAL, OUTPUTS, RAW, SHOWN, TEMPLATE


def model_card(
    result: Mapping[str, Any], model: Mapping[str, Any], code: str | None, original: tuple[str, str] | None = None
) -> str:
    """The text of README.md.

    Args:
        result: the result document.
        model: the content of model.json.
        code: `plain.plain_function` of the student; none where plain torch code cannot say what it does.
        original: the module and the expression that build the network where it was defined.
    """
    made = model["provenance"]
    return TEMPLATE.format(
        name=model["name"],
        summary=result["summary"],
        samples=f"{result['test_samples']:,}",
        table=table(result),
        cpu=result["measured_on"],
        explained=explained(result),
        faster=faster(result["speedup"]),
        gain=gain(result["gain"]),
        data=made["data"]["type"],
        data_digest=made["data_digest"],
        classes=", ".join(model["classes"]),
        data_source=made["data_source"],
        counts=_counts(made["samples"]),
        teachers=_teachers(result, made),
        student=_config(model["architecture"]),
        input=_input(model),
        output=OUTPUTS[model["task"]],
        count=len(model["classes"]),
        spec_digest=made["spec_digest"],
        seed=made["seed"],
        samples_code=_samples(model),
        shown=SHOWN[model["task"]],
        int8=_int8(result),
        raw=_raw(result, model),
        original=_original(model, original),
        bare=_bare(model, code),
    )


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
    channel = _channel(model) if "channel[" in code else ""
    return BARE.format(channel=channel, code=code, samples_code=_samples(model), shown=SHOWN[model["task"]])


def _channel(model: Mapping[str, Any]) -> str:
    """Code that makes mean and deviation ready to broadcast."""
    after = len(model["input"]["shape"]) - 1 if model["input"]["layout"] == "NCHW" else 0
    return CHANNEL.format(view=", ".join(["-1", *["1"] * after]))


def _original(model: Mapping[str, Any], original: tuple[str, str] | None) -> str:
    if original is None:
        return ""
    module, expression = original
    code, shown = _samples(model), SHOWN[model["task"]]
    return ORIGINAL.format(
        module=module, expression=expression, channel=_channel(model), samples_code=code, shown=shown
    )


def _int8(result: Mapping[str, Any]) -> str:
    if result["int8"] is not None:
        return INT8.format(method=result["int8"]["method"])
    return _left_out(result, "student-int8.onnx")


def _raw(result: Mapping[str, Any], model: Mapping[str, Any]) -> str:
    pixels = model["pixels"]
    if pixels is None or "student-raw.onnx" in result["left_out"]:
        return _left_out(result, "student-raw.onnx")
    mode = {1: "L", 3: "RGB"}[pixels["channels"]]
    shown = "classes[logits[0].argmax()]" if model["task"] == "classification" else SHOWN[model["task"]]
    return RAW.format(mode=mode, channels=pixels["channels"], shown=shown)


def _left_out(result: Mapping[str, Any], name: str) -> str:
    reason = result["left_out"].get(name)
    return LEFT_OUT.format(name=name, reason=reason) if reason is not None else ""


def _counts(samples: Mapping[str, Any]) -> str:
    text = ", ".join(f"{samples[name]:,} {name}" for name in ("train", "validation", "test"))
    return text if samples["transfer"] == samples["train"] else f"{text}, {samples['transfer']:,} to learn from"


def _teachers(result: Mapping[str, Any], made: Mapping[str, Any]) -> str:
    """A line for each: what it is, where its weights come from, and how good it is."""
    lines = []
    every = zip(made["teachers"], made["teacher_digests"], result["teachers"], strict=True)
    for number, (teacher, digest, found) in enumerate(every, start=1):
        value = found.get(result["score"])
        score = f", {result['score']} {value:.4f}" if value is not None else ""
        weights = f" ({digest})" if digest is not None else ""
        origin = _origin(teacher, f"teacher-{number}" in result["reused"])
        lines.append(f"- Teacher: `{_config(teacher['model'])}`{origin}{weights}{score}.\n")
    return "".join(lines)


def _origin(teacher: Mapping[str, Any], reused: bool) -> str:
    if teacher["weights"] is not None:
        return f", its weights from `{_config(teacher['weights'])}`"
    if teacher["model"]["type"] == "logits":
        return ", of which the data set brings the logits"
    if teacher["model"]["type"] == "http":
        return ", asked over HTTP about each sample"
    return f", trained for {'an earlier job of the same recipe' if reused else 'this job'} on the same data"


def _config(config: Mapping[str, Any]) -> str:
    return "{" + ", ".join(f"{name}: {value}" for name, value in config.items() if value is not None) + "}"
