"""A step of a small student as the list of torch's calls that it is made of, without what finds them.

Modules, the graph that autograd records and its walk back take longer than a small step's arithmetic. Here one step is
traced, and each later step makes the calls that the trace holds, one after the other: the loop's own kernels on the
same numbers in the same order, and so the same bytes. `kdcore/compiled.py` gives such a trace to a compiler.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.func import functional_call

from kdcore.errors import is_memory_error
from kdcore.losses import Batch
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
"""What a small step calls most, by the functions that take the same arguments and find the kernel two to four
microseconds faster than `torch.ops` does."""

Made = Callable[..., Sequence[Tensor]]
"""What was made of a trace: called with the tensors of a step one by one, it gives what the trace gives."""


class TracedStep:
    """Makes the steps of a stage; the first one takes as long as tracing does.

    It works on the model and the optimizer as they are, so that checkpoints know nothing of it.
    """

    def __init__(self, training: Training, size: int, reporter: Reporter) -> None:
        """
        Args:
            size: samples of a step; a step of fewer is left to the loop.
        """
        self._size, self._reporter, self._update = size, reporter, training.update
        self._losses = Losses(training.model, training.terms)
        self._parameters = list(self._losses.parameters())
        self._state = [*self._losses.buffers(), *(each.detach() for each in self._parameters)]
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
        given = [*self._state, torch.tensor(weights, dtype=torch.float32), *tensors_of(seen)]
        if self._made is None:
            self._made = made(self._reporter, lambda: shortened(trace(self._step(seen), given)).forward)
            self._failed = self._made is None
        if self._made is None:
            return None
        with torch.no_grad():
            found = self._made(*given)
        for parameter, gradient in zip(self._parameters, found[len(weights) :], strict=True):
            parameter.grad = gradient
        self._update.make(rate)
        return list(found[: len(weights)])

    def _step(self, seen: Batch) -> Callable[..., list[Tensor]]:
        """The function that is traced: each term's raw loss, then the parameters' gradients, of a step's tensors."""

        def step(*tensors: Tensor) -> list[Tensor]:
            constants, parameters, (weights, *batch) = self._losses.parted(tensors)
            values, gradients = self._losses.gradients(constants, parameters, weights, refilled(seen, batch))
            pairs = zip(parameters.values(), gradients, strict=True)
            # The update's kernel reads both as they lie in memory; autograd lays a gradient out like its parameter.
            alike = [own if own.stride() == like.stride() else torch.empty_like(like).copy_(own) for like, own in pairs]
            return [*values, *alike]

        return step


class Losses(nn.Module):
    """A network and the losses that it is trained by."""

    def __init__(self, network: Network, terms: nn.ModuleList) -> None:
        super().__init__()
        self.network, self.terms = network, terms

    def forward(self, seen: Batch) -> list[Tensor]:
        """Each term's raw loss."""
        views = {name: view.float() for name, view in self.network.views(seen.inputs).items()}
        batch = replace(seen, student=views)
        return [term(batch) for term in self.terms]

    def parted(self, tensors: Sequence[Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor], list[Tensor]]:
        """Tensors that stand for the buffers and the parameters, by their names, and what comes after them."""
        left = iter(tensors)
        buffers = {name: next(left) for name, _ in self.named_buffers()}
        parameters = {name: next(left) for name, _ in self.named_parameters()}
        return buffers, parameters, list(left)

    def gradients(
        self, buffers: Mapping[str, Tensor], parameters: dict[str, Tensor], weights: Tensor, seen: Batch
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Each term's raw loss, and the gradient of their weighted sum for each parameter.

        Args:
            weights: (terms,).
        """
        with torch.enable_grad():
            leaves = {name: each.detach().requires_grad_() for name, each in parameters.items()}
            values = functional_call(self, {**leaves, **buffers}, (seen,))
            found = torch.autograd.grad(values, list(leaves.values()), list(weights.unbind()))
        return [value.detach() for value in values], list(found)


def made(reporter: Reporter, make: Callable[[], Made]) -> Made | None:
    """What `make` makes; none where it fails, which the job's history says then: the loop makes the steps."""
    try:
        return make()
    except Exception as error:
        if is_memory_error(error):
            raise
        said = f"{type(error).__name__}: {error}".splitlines()[0][:500]
        reporter.event("not_compiled", {"reason": said})
        return None


def trace(step: Callable[..., Sequence[Tensor]], given: Sequence[Tensor]) -> torch.fx.GraphModule:
    """The calls that a step makes with tensors like these, whatever numbers they hold."""
    from torch.fx.experimental.proxy_tensor import make_fx

    with torch.no_grad():
        return make_fx(step, tracing_mode="fake")(*given)


def shortened(graph: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """The graph without calls that change nothing, two transpositions in turn and views of the whole tensor, and with
    torch's own bindings of the others."""
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
