"""An optimizer's update, without what torch looks at anew in every step: a quarter of a small student's step."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Direct = Callable[[list[Tensor]], None]
"""Updates the parameters by their gradients, at the learning rate of their group."""


class Update:
    """Calls the fused kernel that the optimizer's own `step` would call, with the same lists: the same bytes.

    The lists are made by an ordinary step, and used while the same parameters have gradients.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._parameters: list[nn.Parameter] = [each for group in optimizer.param_groups for each in group["params"]]
        self._ready: list[int] = []
        """The places of the parameters that `_direct` updates."""
        self._direct: Direct | None = None

    def forget_gradients(self) -> None:
        """As `zero_grad` of the optimizer: no parameter has one."""
        for parameter in self._parameters:
            parameter.grad = None

    def make(self, rate: float) -> None:
        """One update, with the learning rate `rate`."""
        found = [(place, each.grad) for place, each in enumerate(self._parameters) if each.grad is not None]
        places = [place for place, _ in found]
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        if self._direct is not None and places == self._ready:
            with torch.no_grad():
                self._direct([gradient for _, gradient in found])
            return
        self._optimizer.step()
        self._ready, self._direct = places, direct(self._optimizer, [self._parameters[place] for place in places])


def direct(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]) -> Direct | None:
    """The kernel of an optimizer that has made a step with these parameters; None where it has to be called itself:
    it is another one, or its parameters lie on several devices or are of several types."""
    build = KERNELS.get(type(optimizer))
    alike = len({(each.device, each.dtype) for each in parameters}) == 1
    if build is None or not alike or len(optimizer.param_groups) != 1 or not optimizer.param_groups[0]["fused"]:
        return None
    return build(optimizer.param_groups[0], list(parameters), [optimizer.state[each] for each in parameters])


def counts(states: Sequence[dict[str, Any]]) -> Tensor:
    """(P,) the steps that Adam has made with each of P parameters, of which every `state["step"]` becomes a view: one
    addition counts for all of them. Where they are views of one such tensor already, that is it."""
    together: Tensor | None = states[0]["step"]._base
    if together is None or len(together) != len(states) or any(each["step"]._base is not together for each in states):
        together = torch.stack([each["step"] for each in states])
        for each, count in zip(states, together.unbind(), strict=True):
            each["step"] = count
    return together


def _adam(group: dict[str, Any], parameters: list[Tensor], states: list[Any]) -> Direct:
    kernel = torch._fused_adamw_ if group["decoupled_weight_decay"] else torch._fused_adam_
    means, squares = [state["exp_avg"] for state in states], [state["exp_avg_sq"] for state in states]
    steps = counts(states)
    each = [state["step"] for state in states]
    fixed = {name: group[name] for name in ("weight_decay", "eps", "amsgrad", "maximize")}
    fixed["beta1"], fixed["beta2"] = group["betas"]

    def update(gradients: list[Tensor]) -> None:
        steps.add_(1)
        kernel(parameters, gradients, means, squares, [], each, lr=group["lr"], **fixed)

    return update


def _sgd(group: dict[str, Any], parameters: list[Tensor], states: list[Any]) -> Direct:
    buffers = [state["momentum_buffer"] for state in states] if group["momentum"] else []
    fixed = {name: group[name] for name in ("weight_decay", "momentum", "dampening", "nesterov", "maximize")}

    def update(gradients: list[Tensor]) -> None:
        torch._fused_sgd_(parameters, gradients, buffers, lr=group["lr"], is_first_step=False, **fixed)

    return update


KERNELS: dict[type, Callable[[dict[str, Any], list[Tensor], list[Any]], Direct]] = {
    torch.optim.Adam: _adam,
    torch.optim.AdamW: _adam,
    torch.optim.SGD: _sgd,
}
"""Of the optimizers that `kdcore/optim.py` builds."""
