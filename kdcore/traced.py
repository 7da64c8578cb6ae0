"""A step of a small student as the list of torch's calls that it is made of, without what finds them.

Modules, the graph that autograd records and its walk back take longer than a small step's arithmetic. Here one step is
traced, and all steps make the calls that the trace holds, one after the other: the loop's own kernels on the same
numbers in the same order. The first step is made both ways, and only where the bytes are the same it goes on so.
`kdcore/compiled.py` gives such a trace to a compiler.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from kdcore.errors import is_memory_error
from kdcore.losses import Batch, WhenRead
from kdcore.models import Network
from kdcore.reporter import Reporter
from kdcore.state import Training

ATEN = torch.ops.aten
BINDINGS = {
    ATEN.add.Tensor: torch.add,
    ATEN.addmm.default: torch.addmm,
    ATEN.div.Tensor: torch.div,
    ATEN.exp.default: torch.exp,
    ATEN.expand.default: Tensor.expand,
    ATEN.mm.default: torch.mm,
    ATEN.mul.Tensor: torch.mul,
    ATEN.neg.default: torch.neg,
    ATEN.relu.default: torch.relu,
    ATEN.sub.Tensor: torch.sub,
    ATEN.sum.default: torch.sum,
    ATEN.sum.dim_IntList: torch.sum,
    ATEN.t.default: torch.t,
    ATEN.view.default: Tensor.view,
    ATEN._log_softmax.default: torch._log_softmax,
    ATEN._log_softmax_backward_data.default: torch._log_softmax_backward_data,
}
"""What a small step calls most, by the functions that take the same arguments and find the kernel sooner than
`torch.ops` does."""

Made = Callable[..., Sequence[Tensor | None]]
"""What was made of a trace: called with the tensors of a step one by one, it gives what the trace gives."""
Find = Callable[[Batch, Sequence[float]], tuple[Batch, list[Tensor]]]
"""The loop's own forward, losses and backward (`find_gradients` of `kdcore/train.py`), by the terms' weights."""


class GraphStep(ABC):
    """Makes the steps of a stage of a trace of its first; that one takes as long as making it does.

    It works on the model and the optimizer as they are, so that checkpoints know nothing of it.
    """

    def __init__(self, training: Training, size: int, reporter: Reporter) -> None:
        """
        Args:
            size: samples of a step; a step of fewer is left to the loop.
        """
        self._size, self._reporter = size, reporter
        self._objective = Objective(training.model, training.terms)
        self._made: Made | None = None
        self._failed = False

    def __call__(self, seen: Batch, weights: Sequence[float], rate: float) -> list[Tensor] | None:
        """Make one step.

        Args:
            seen: the batch; it has no views of the student yet.
            weights: of each term.
            rate: the learning rate.

        Returns:
            Each term's raw loss; none for a step that is left to the loop: nothing has changed then.
        """
        if self._failed or len(seen.indices) != self._size:
            return None
        given = self._given(seen, weights, rate)
        if self._made is None:
            try:
                self._made = self._make(seen, given)
            except Exception as error:
                if is_memory_error(error):
                    raise
                self._failed = True
                self._say_failed(f"{type(error).__name__}: {error}".splitlines()[0][:500])
                return None
        return self._take(self._made, given, rate)

    @abstractmethod
    def _given(self, seen: Batch, weights: Sequence[float], rate: float) -> list[Tensor]:
        """The tensors of a step."""

    @abstractmethod
    def _make(self, seen: Batch, given: Sequence[Tensor]) -> Made:
        """What makes steps of tensors like these, whatever they hold; nothing but their values differs in a stage."""

    @abstractmethod
    def _take(self, made: Made, given: Sequence[Tensor], rate: float) -> list[Tensor]:
        """One step: each term's raw loss."""

    @abstractmethod
    def _say_failed(self, reason: str) -> None:
        """Tell the job's history that the loop makes the steps."""


class TracedStep(GraphStep):
    """Makes each step's calls one after the other, then the update as the loop makes it."""

    def __init__(self, training: Training, size: int, reporter: Reporter, find: Find) -> None:
        super().__init__(training, size, reporter)
        self._update, self._find = training.update, find
        self._parameters = list(self._objective.trained().values())
        self._state = [each.detach() for each in (*self._objective.constants().values(), *self._parameters)]

    def _given(self, seen: Batch, weights: Sequence[float], rate: float) -> list[Tensor]:
        return [*self._state, torch.tensor(weights, dtype=torch.float32), *tensors_of(seen)]

    def _make(self, seen: Batch, given: Sequence[Tensor]) -> Made:
        """
        Raises:
            RuntimeError: the calls do not repeat the loop's step to the bit. Some of torch's functions choose other
                kernels while they are traced.
        """

        def step(*tensors: Tensor) -> list[Tensor | None]:
            constants, parameters, (numbers, *batch) = self._objective.parted(tensors)
            values, gradients = self._objective.gradients(constants, parameters, numbers, refilled(seen, batch))
            pairs = zip(gradients, parameters.values(), strict=True)
            return [*values, *(own if own is None else laid_like(own, like) for own, like in pairs)]

        made = shortened(trace(step, given)).forward
        # Not with the step's own weights: one that is 0 for now would hide its term's gradients.
        weights = [float(place) for place, _ in enumerate(self._objective.terms, start=1)]
        with torch.no_grad():
            found = made(*self._given(seen, weights, rate=0.0))
        _, raw = self._find(seen, weights)
        own = [*(each.detach() for each in raw), *(each.grad for each in self._parameters)]
        if not all(is_same(*pair) for pair in zip(found, own, strict=True)):
            raise RuntimeError("the calls of a step, traced, do not repeat it to the bit")
        return made

    def _take(self, made: Made, given: Sequence[Tensor], rate: float) -> list[Tensor]:
        self._update.forget_gradients()
        with torch.no_grad():
            found = made(*given)
        values, gradients = found[: -len(self._parameters)], found[-len(self._parameters) :]
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient
        self._update.make(rate)
        return cast(list[Tensor], list(values))

    def _say_failed(self, reason: str) -> None:
        self._reporter.event("not_traced", {"reason": reason})


class Objective(nn.Module):
    """A network and the losses that it is trained by."""

    def __init__(self, network: Network, terms: nn.ModuleList) -> None:
        super().__init__()
        self.network, self.terms = network, terms

    def forward(self, seen: Batch) -> list[Tensor]:
        """Each term's raw loss."""
        batch = replace(seen, student=WhenRead(self.network.views(seen.inputs), Tensor.float))
        return [term(batch) for term in self.terms]

    def trained(self) -> dict[str, nn.Parameter]:
        return {name: each for name, each in self.named_parameters() if each.requires_grad}

    def constants(self) -> dict[str, Tensor]:
        """What no step changes."""
        frozen = {name: each for name, each in self.named_parameters() if not each.requires_grad}
        return {**frozen, **dict(self.named_buffers())}

    def parted(self, tensors: Sequence[Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor], list[Tensor]]:
        """Tensors that stand for the constants and what is trained, by their names, and what comes after them."""
        left = iter(tensors)
        constants = {name: next(left) for name in self.constants()}
        parameters = {name: next(left) for name in self.trained()}
        return constants, parameters, list(left)

    def gradients(
        self, constants: Mapping[str, Tensor], parameters: Mapping[str, Tensor], weights: Tensor, seen: Batch
    ) -> tuple[list[Tensor], list[Tensor | None]]:
        """Each term's raw loss, and the gradient of their weighted sum for each parameter; none where it has none.

        Args:
            weights: (terms,).
        """
        with torch.enable_grad():
            leaves = {name: each.detach().requires_grad_() for name, each in parameters.items()}
            values: list[Tensor] = functional_call(self, {**leaves, **constants}, (seen,))
            found = torch.autograd.grad(values, list(leaves.values()), list(weights.unbind()), allow_unused=True)
        return [value.detach() for value in values], list(found)


def laid_like(gradient: Tensor, parameter: Tensor) -> Tensor:
    """A gradient that lies in memory as its parameter does, as autograd leaves it: the update's kernel goes through
    both as they lie there."""
    return gradient if gradient.stride() == parameter.stride() else torch.empty_like(parameter).copy_(gradient)


def is_same(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether two float32 tensors are equal to the bit, and lie in memory alike."""
    if one is None or other is None:
        return one is other
    return one.stride() == other.stride() and torch.equal(one.view(torch.int32), other.view(torch.int32))


def trace(step: Callable[..., Sequence[Tensor | None]], given: Sequence[Tensor]) -> torch.fx.GraphModule:
    """The calls that a step makes with tensors like these, whatever numbers they hold."""
    from torch.fx.experimental.proxy_tensor import make_fx

    with torch.no_grad():
        return make_fx(step, tracing_mode="fake")(*given)


def shortened(graph: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """The graph without calls that change nothing (two transpositions in turn, `detach`, `alias`), and with torch's own
    bindings of the others."""
    turned, same = ATEN.t.default, {ATEN.detach.default, ATEN.alias.default}
    for node in graph.graph.nodes:
        if node.target in same:
            node.replace_all_uses_with(node.args[0])
        elif node.target is turned and node.args[0].target is turned:
            node.replace_all_uses_with(node.args[0].args[0])
    for node in reversed(graph.graph.nodes):
        if not node.users and node.target in {turned, *same}:
            graph.graph.erase_node(node)
        else:
            node.target = BINDINGS.get(node.target, node.target)
    graph.recompile()
    return graph


def tensors_of(seen: Batch) -> list[Tensor]:
    """What a batch holds, one after the other."""
    found = [seen.inputs, seen.indices, *(view for views in seen.teachers for view in views.values())]
    return found if seen.labels is None else [*found, seen.labels]


def refilled(seen: Batch, tensors: Sequence[Tensor]) -> Batch:
    """A batch of the same form that holds these."""
    inputs, indices, *others = tensors
    labels = others.pop() if seen.labels is not None else None
    left = iter(others)
    teachers = [{name: next(left) for name in views} for views in seen.teachers]
    return Batch({}, teachers, labels, indices, inputs)
