"""The weights with which the student begins, where these are not drawn: a file's, or layers of its teacher."""

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor, nn

from kdcore.errors import TrainingError
from kdcore.models import Network
from kdcore.spec import StudentConfig
from kdcore.state import Weights
from kdcore.teacher import load_weights, weights_file

INITIAL = "initial"
"""The key of a file's weights in `state.models`: a resume needs no file."""
LISTS = (nn.ModuleList, nn.Sequential)


def given_weights(student: StudentConfig, data_root: Path, given: Path | None, network: Network) -> Weights:
    """Weights from the file that the spec names.

    Args:
        given: the file of another job's student.
        network: the student's.

    Raises:
        TrainingError: `no_student_weights`, `bad_student_weights`.
    """
    try:
        path = weights_file(student, data_root, given, "student")
    except TrainingError as error:
        raise TrainingError("no_student_weights", error.message, error.kind) from error
    try:
        return load_weights(path, network, "student")
    except TrainingError as error:
        raise TrainingError("bad_student_weights", error.message, error.kind) from error


def copies(student: nn.Module, teacher: nn.Module) -> dict[str, str]:
    """Which weight of the teacher each of the student's is a copy of.

    Of a list of m blocks the student has n of: the first, and every (m / n)-th after it (Sanh et al. 2019, arXiv
    1910.01108, section 2, which takes one of two). Only whole layers are copied: a part of a layer's channels computes
    nothing that the layer did.

    Raises:
        ValueError: a layer of the student has no like in the teacher.
    """
    found: dict[str, str] = {}
    _pair(student, teacher, "", "", found)
    missing = student.state_dict().keys() - found.keys()
    assert not missing, f"nothing is copied to {missing}"
    return found


def beginning(
    spec: StudentConfig, student: Network, models: Mapping[str, Weights], teacher: Callable[[], Network]
) -> Weights | None:
    """What the baseline, the student and every repeat begin with; None where that is drawn.

    Args:
        models: `state.models`.
        teacher: the first one, finished.
    """
    if spec.initialize != "from_teacher":
        return models.get(INITIAL)
    source = teacher()
    weights = source.state_dict()
    return {name: weights[theirs] for name, theirs in copies(student, source).items()}


def _pair(student: nn.Module, teacher: nn.Module, mine: str, theirs: str, found: dict[str, str]) -> None:
    if type(student) is not type(teacher):
        kinds = (
            f"a {type(student).__name__}, the teacher's {theirs.rstrip('.') or 'network'} a {type(teacher).__name__}"
        )
        raise ValueError(f"the student's {mine.rstrip('.') or 'network'} is {kinds}: only like is copied to like")
    own, other = _tensors(student), _tensors(teacher)
    for name, tensor in own.items():
        if name not in other or other[name].shape != tensor.shape:
            there = f"{list(other[name].shape)} in the teacher" if name in other else "not in the teacher"
            message = (
                f"{mine}{name} is {list(tensor.shape)} in the student and {there}, and only whole layers are copied"
            )
            raise ValueError(f"{message}: shrink the depth alone, or leave `initialize` out")
        found[f"{mine}{name}"] = f"{theirs}{name}"
    inner, outer = list(student.named_children()), list(teacher.named_children())
    if len(inner) > len(outer) or (len(inner) < len(outer) and not isinstance(student, LISTS)):
        raise ValueError(
            f"the student's {mine.rstrip('.') or 'network'} has parts that the teacher has not; use its family"
        )
    for place, (name, child) in enumerate(inner):
        source, like = outer[place * len(outer) // len(inner)]
        _pair(child, like, f"{mine}{name}.", f"{theirs}{source}.", found)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """A module's own parameters and what else it saves."""
    saved = module.state_dict(keep_vars=True)
    return {name: value for name, value in saved.items() if "." not in name}
