"""Whether the tensors of a file are the weights of a network: names, shapes, kinds of number, and finite."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import takewhile

import torch
from torch import Tensor

from kdcore.modelfiles.formats import ModelFileError
from kdcore.modelfiles.tensors import Stored
from kdcore.models import FOREIGN, Network

SHOWN = 8
COUNTER = "num_batches_tracked"
"""Of batch normalisation: files from elsewhere may lack it, and nothing here reads it."""


def wanted_weights(network: Network) -> tuple[dict[str, Tensor], str]:
    """A network's weights by the names they have in files, and what stands before these in the network itself."""
    state = network.state_dict()
    prefix = FOREIGN if all(name.startswith(FOREIGN) for name in state) else ""
    return {name.removeprefix(prefix): value for name, value in state.items()}, prefix


def without_prefix(found: Mapping[str, Stored], wanted: Mapping[str, Tensor]) -> tuple[dict[str, Stored], str]:
    """The tensors without what stands before all of their names and not before all wanted ones, and what that was.

    A wrapper's name is such: `module.` of DataParallel, `_orig_mod.` of torch.compile, `model.` of trainers.
    """
    own = next(_shared(wanted), None)
    prefix = "".join(f"{part}." for part in takewhile(lambda part: part != own, _shared(found)))
    return {name.removeprefix(prefix): value for name, value in found.items()}, prefix


def _shared(names: Iterable[str]) -> Iterator[str]:
    """The parts that all names begin with; none has only such."""
    by_place = zip(*(name.split(".")[:-1] for name in names), strict=False)
    return (parts[0] for parts in takewhile(lambda parts: len(set(parts)) == 1, by_place))


def differences(found: Mapping[str, Stored], wanted: Mapping[str, Tensor]) -> list[str]:
    """What keeps the tensors from being the weights that are wanted, a phrase each."""
    return [
        *(f"missing {name}" for name in wanted if name not in found and not name.endswith(COUNTER)),
        *(f"unexpected {name}" for name in found if name not in wanted and not name.endswith(COUNTER)),
        *(
            f"{name} has shape {list(found[name].shape)}, the model's is {list(wanted[name].shape)}"
            for name in wanted
            if name in found and found[name].shape != tuple(wanted[name].shape)
        ),
        *(
            f"{name} holds {str(found[name].dtype).removeprefix('torch.')}, the model's are floating-point numbers"
            for name in wanted
            if name in found and wanted[name].is_floating_point() and not found[name].dtype.is_floating_point
        ),
    ]


def fit(
    found: Mapping[str, Stored], network: Network, poll: Callable[[], object] = lambda: None
) -> tuple[dict[str, Tensor], str]:
    """The weights of a network from the tensors of a file, which must fit it exactly.

    Args:
        network: perhaps on the meta device; its own numbers are not read.
        poll: called before each tensor; what it raises ends it.

    Returns:
        The weights under the network's own names and with its types, on the CPU, and the prefix that was taken away.

    Raises:
        ModelFileError: lists what is missing, unexpected or of another shape, or names what is not finite.
    """
    wanted, before = wanted_weights(network)
    tensors, prefix = without_prefix(found, wanted)
    if wrong := differences(tensors, wanted):
        raise ModelFileError(f"they do not fit the model: {listed(wrong)}")
    weights = {}
    for name, like in wanted.items():
        poll()
        if name in tensors:
            value = tensors[name].read().to(like.dtype)
            check_finite(name, value)
        else:
            value = torch.zeros(like.shape, dtype=like.dtype)
        weights[before + name] = value
    return weights, prefix


def listed(wrong: Sequence[str]) -> str:
    """The first of the differences, and how many more there are."""
    more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
    return f"{'; '.join(wrong[:SHOWN])}{more}"


def check_finite(name: str, value: Tensor) -> None:
    """Raise `ModelFileError` where a weight is NaN or infinite."""
    if value.is_floating_point() and not bool(value.isfinite().all()):
        raise ModelFileError(f"{name} holds values that are not finite; train it again, or take an earlier checkpoint")
