"""What is computed while it is watched: FLOPs and bytes written, of shapes without numbers too."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import flop_registry


class Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts FLOPs and bytes written. FlopCounterMode would do, but its hooks are global and not thread-safe.

    What torch works out for a meta tensor takes a third of a millisecond an operation, and a network repeats few
    operations many times (a recurrent one at every place): each is worked out once.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0
        self.written = 0
        self._known: dict[Any, tuple[int, int, Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        in_place = func._schema.name.endswith("_")
        key = (func, _signature(args), _signature(tuple(kwargs.items())))
        if key in self._known:
            flops, written, like = self._known[key]
            out = args[0] if in_place else tree_map_only(Tensor, Tensor.detach, like)
        else:
            out = func(*args, **kwargs)
            flops, written = _cost(func, args, kwargs, out)
            same = in_place and _signature(args[0]) == key[1][0]
            if same or all(result.alias_info is None for result in func._schema.returns):  # no view of another
                self._known[key] = flops, written, out
        self.charge(func, args, flops, written)
        return out

    def charge(self, func: Any, args: tuple[Any, ...], flops: int, written: int) -> None:
        """Count an operation."""
        self.flops += flops
        self.written += written


def _cost(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> tuple[int, int]:
    """FLOPs of an operation, and the bytes of its results that are no views of what was there."""
    count: Callable[..., int] | None = flop_registry.get(func.overloadpacket)
    results = out if isinstance(out, (tuple, list)) else [out]
    written = sum(
        result.numel() * result.element_size()
        for result, described in zip(results, func._schema.returns, strict=False)
        if isinstance(result, Tensor) and described.alias_info is None
    )
    return int(count(*args, **kwargs, out_val=out)) if count is not None else 0, written


def _signature(value: Any) -> Any:
    """All that the shapes of an operation's results depend on, to be hashed."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.device
    if isinstance(value, (tuple, list)):
        return tuple(_signature(each) for each in value)
    return type(value), value
