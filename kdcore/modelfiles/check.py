"""The check of a model file that somebody brings, before any job may name it."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

from kdcore.checkpoint import disk_errors
from kdcore.errors import TrainingError
from kdcore.modelfiles.fit import check_finite, fit
from kdcore.modelfiles.formats import ModelFileError, file_format
from kdcore.modelfiles.onnx_file import check_onnx
from kdcore.modelfiles.profile import ModelOptions, ModelProfile, ValueProfile
from kdcore.modelfiles.tensors import Stored, open_tensors
from kdcore.models import FOREIGN, ModelConfig, ModelError, Network

WEIGHTS = "weights.safetensors"
PICTURE = (3, 224, 224)
"""What a model reads where nobody says so; of most networks for pictures the weights do not depend on the size."""


def check_model(
    path: Path,
    options: ModelOptions,
    *,
    out: Path,
    poll: Callable[[], object] = lambda: None,
    spared: int = 0,
) -> ModelProfile:
    """Look through a model file; nothing in it is executed, and its name says nothing.

    Args:
        path: the file as it was uploaded.
        options: what its uploader says of it.
        out: an existing folder, for what `ModelProfile.file` names.
        poll: called between tensors; what it raises ends the check.
        spared: bytes that stay free on the disk of `out`.

    Raises:
        TrainingError: `bad_model`, kind user: it cannot be read safely, is damaged, holds NaN, or is of another
            architecture, whose differences are listed. `disk`, kind system: what it would write has no room.
        OSError: it could not be read.
    """
    try:
        if file_format(path) == "onnx":
            return check_onnx(path, options, poll)
        return _check_weights(path, options, out, poll, spared)
    except ModelFileError as error:
        raise TrainingError("bad_model", f"the file cannot be a model: {error}") from None
    except ModelError as error:
        raise TrainingError("bad_model", f"model.{error.field}: {error}") from None


def _check_weights(
    path: Path, options: ModelOptions, out: Path, poll: Callable[[], object], spared: int
) -> ModelProfile:
    kind = file_format(path)
    found = open_tensors(path)
    if not found:
        raise ModelFileError("it holds no tensor")
    if options.model is not None:
        weights, prefix = fit(found, network_of(options.model, options), poll)
    else:
        weights, prefix = {}, ""
        for name, stored in found.items():
            poll()
            value = stored.read()
            check_finite(name, value)
            if kind == "state_dict":
                weights[name] = value
    if kind == "state_dict":  # from here on nothing unpickles it again
        _check_room(out, sum(value.nbytes for value in weights.values()), spared)
        with disk_errors("the weights", out):
            save_file({name.removeprefix(FOREIGN): value for name, value in weights.items()}, out / WEIGHTS)
    return ModelProfile(
        format=kind,
        bytes=path.stat().st_size,
        parameters=sum(math.prod(stored.shape) for stored in found.values()),
        tensors=len(found),
        model=options.model,
        classes=options.classes,
        prefix=prefix,
        file=WEIGHTS if kind == "state_dict" else None,
        weights=[] if options.model is not None else [_described(name, stored) for name, stored in found.items()],
    )


def _check_room(out: Path, needed: int, spared: int) -> None:
    free = shutil.disk_usage(out).free
    if needed > free - spared:
        message = f"the weights have {needed:,} bytes, and of {free:,} that are free {spared:,} must stay so"
        raise TrainingError("disk", f"the disk is full: {message}", "system")


def _described(name: str, stored: Stored) -> ValueProfile:
    return ValueProfile(name=name, shape=list(stored.shape), dtype=str(stored.dtype).removeprefix("torch."))


def network_of(config: ModelConfig, options: ModelOptions) -> Network:
    """On the meta device: shapes without numbers."""
    classes = config.classes or len(options.classes or ())
    if not classes:
        raise ModelError("classes", "say how many outputs it has, by their names in `classes` or by `model.classes`")
    shape = tuple(options.input_shape) if options.input_shape is not None else PICTURE
    vocabulary = options.vocabulary
    if options.tokenizer is not None:
        shape, vocabulary = (options.tokenizer.length,), options.tokenizer.tokens
    with torch.device("meta"), torch.no_grad():
        return config.build(shape, classes, vocabulary)
