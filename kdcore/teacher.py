"""The teacher: frozen for good once it is there, whether trained here or given as a file."""

from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from kdcore.errors import TrainingError
from kdcore.modelfiles.fit import fit
from kdcore.modelfiles.formats import ModelFileError
from kdcore.modelfiles.onnx_file import read_onnx
from kdcore.modelfiles.tensors import open_tensors
from kdcore.models import Network, OnnxNetwork
from kdcore.spec import FileWeights, JobWeights, StudentConfig, TeacherConfig
from kdcore.state import Weights

M = TypeVar("M", bound=nn.Module)


def freeze(model: M) -> M:
    """Eval mode and no gradients: no dropout in its targets, no drift in its batch-norm statistics."""
    model.eval()
    model.requires_grad_(False)
    return model


def assert_frozen(model: nn.Module) -> None:
    """Nothing may wake a frozen model again; what is trained never contains it."""
    assert not any(module.training for module in model.modules()), "the teacher is in train mode"
    assert not any(parameter.requires_grad for parameter in model.parameters()), "the teacher wants gradients"


def weights_file(
    owner: TeacherConfig | StudentConfig, data_root: Path, given: Path | None, whose: str = "teacher"
) -> Path:
    """Where the weights of a teacher that is not trained here are, or those that the student begins with.

    Raises:
        TrainingError: `no_teacher_weights`: there is no such file, or it lies outside the data directory.
    """
    if given is not None:
        path = given
    elif isinstance(owner.weights, FileWeights):
        path = data_root / owner.weights.file
        if not _is_inside(path, data_root):
            raise TrainingError("no_teacher_weights", f"{owner.weights.file} leads out of the data directory")
    else:
        source = "another job's" if isinstance(owner.weights, JobWeights) else "an upload"
        raise TrainingError("no_teacher_weights", f"the {whose}'s weights are {source}; give their file")
    if not _is_file(path):
        raise TrainingError("no_teacher_weights", f"the {whose}'s weights are not there: {path}")
    return path


def _is_inside(path: Path, root: Path) -> bool:
    try:
        return path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError):  # a circle of links leads nowhere
        return False


def _is_file(path: Path) -> bool:
    """No folder, no pipe, no device; nor what may not be looked at, or has a name that no file can have."""
    try:
        return path.is_file()
    except OSError:
        return False


def load_weights(path: Path, network: Network, whose: str = "teacher") -> Weights:
    """Weights from a file, whatever its name: safetensors, a state_dict that torch saved, or a teacher's ONNX file.

    Args:
        network: that they must fit exactly, but for one prefix before all names.

    Returns:
        A state_dict with the network's own types, on the CPU.

    Raises:
        TrainingError: `bad_teacher_weights`; lists what is missing, unexpected or of another shape, or says why the
            file is not read.
    """
    try:
        if isinstance(network, OnnxNetwork):
            content, _ = read_onnx(path)
            return {"_extra_state": torch.frombuffer(bytearray(content), dtype=torch.uint8)}
        weights, _ = fit(open_tensors(path), network)
    except (OSError, ModelFileError) as error:
        message = f"{path.name} cannot be the {whose}'s weights: {error}"
        raise TrainingError("bad_teacher_weights", message) from error
    return weights
