"""The teacher: frozen for good once it is there, whether trained here or given as a file."""

from pathlib import Path
from typing import TypeVar

import safetensors
from safetensors.torch import load_file
from torch import nn

from kdcore.errors import TrainingError
from kdcore.models import FOREIGN, Network
from kdcore.spec import FileWeights, TeacherConfig
from kdcore.state import Weights, all_finite

M = TypeVar("M", bound=nn.Module)
SHOWN = 8


def freeze(model: M) -> M:
    """Eval mode and no gradients: no dropout in its targets, no drift in its batch-norm statistics."""
    model.eval()
    model.requires_grad_(False)
    return model


def assert_frozen(model: nn.Module) -> None:
    """Nothing may wake a frozen model again; what is trained never contains it."""
    assert not any(module.training for module in model.modules()), "the teacher is in train mode"
    assert not any(parameter.requires_grad for parameter in model.parameters()), "the teacher wants gradients"


def weights_file(teacher: TeacherConfig, data_root: Path, given: Path | None) -> Path:
    """Where the weights of a teacher that is not trained here are.

    Raises:
        TrainingError: `no_teacher_weights`: there is no such file, or it lies outside the data directory.
    """
    if given is not None:
        path = given
    elif isinstance(teacher.weights, FileWeights):
        path = data_root / teacher.weights.file
        if not _is_inside(path, data_root):
            raise TrainingError("no_teacher_weights", f"{teacher.weights.file} leads out of the data directory")
    else:
        raise TrainingError("no_teacher_weights", "the teacher's weights are another job's; give their file")
    if not _is_file(path):
        raise TrainingError("no_teacher_weights", f"the teacher's weights are not there: {path}")
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


def load_weights(path: Path, network: Network) -> Weights:
    """Weights from a safetensors file, which must fit the network exactly.

    Returns:
        A state_dict with the network's own types, on the CPU.

    Raises:
        TrainingError: `bad_teacher_weights`; lists what is missing, unexpected or of another shape.
    """
    try:
        found = load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise _bad(path, f"it is not a readable safetensors file ({error})") from error
    wanted = network.state_dict()
    prefix = FOREIGN if all(name.startswith(FOREIGN) for name in wanted) else ""
    wanted = {name.removeprefix(prefix): value for name, value in wanted.items()}
    differences = [
        *(f"missing {name}" for name in wanted if name not in found),
        *(f"unexpected {name}" for name in found if name not in wanted),
        *(
            f"{name} has shape {list(found[name].shape)}, the teacher's is {list(wanted[name].shape)}"
            for name in wanted
            if name in found and found[name].shape != wanted[name].shape
        ),
    ]
    if differences:
        more = f" and {len(differences) - SHOWN} more" if len(differences) > SHOWN else ""
        raise _bad(path, f"they do not fit the teacher's model: {'; '.join(differences[:SHOWN])}{more}")
    if not all_finite(found.values()):
        raise _bad(path, "they hold values that are not finite")
    return {f"{prefix}{name}": found[name].to(wanted[name].dtype) for name in wanted}


def _bad(path: Path, why: str) -> TrainingError:
    return TrainingError("bad_teacher_weights", f"{path.name} cannot be the teacher's weights: {why}")
