"""A whole step of a small student as one compiled graph: forward, losses, backward and the optimizer's update.

What such a step takes is not arithmetic but the hundred calls it is made of, and one graph is one call. The compiler
(inductor, a C++ compiler beneath it) takes as long as tens of thousands of steps, so only long stages are compiled.
Sums are made in another order than the loop's: equal within rounding, and the job's choices say that it was so.
"""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from kdcore.choices import SMALL_FLOPS
from kdcore.data import Places
from kdcore.job import Job
from kdcore.losses import Batch
from kdcore.losses.temperature import Temperature
from kdcore.models.dropout import Dropout
from kdcore.reporter import Reporter
from kdcore.reuse import is_of_the_house
from kdcore.stages import Stage
from kdcore.state import Training
from kdcore.traced import Find, GraphStep, Made, TracedStep, refilled, tensors_of, trace
from kdcore.update import counts
from kdcore.uploads.cache import cached

LOSSES = frozenset(
    {"cross_entropy", "kd", "dkd", "nkd", "dist", "jsd", "hard_distillation", "mse", "logit_mse", "binary_kd",
     "binary_cross_entropy"}
)  # fmt: skip
"""Those that are functions of one batch's outputs alone, not of the epoch."""

Backend = Callable[[torch.fx.GraphModule, Sequence[Tensor]], Made]
"""Compiles a graph for tensors like these."""
Moments = dict[str, Sequence[Tensor]]
"""An optimizer's state, by its name, in the order of the parameters."""
Scales = Callable[[dict[str, Any], int, float], tuple[float, ...]]
"""Of an optimizer's options, the number of the step (from 1) and the learning rate: what is one number for all weights.
Inside the graph it would be computed anew for every few of them."""
Rule = Callable[[dict[str, Any], Sequence[Tensor], Sequence[Tensor], Moments, Tensor], None]
"""The update of the parameters, given their gradients, in place; the scales are float32, one dimension."""


def graph_step(job: Job, stage: Stage, training: Training, find: Find) -> GraphStep | None:
    """What makes the stage's steps of a trace of one, where the stage is long and its steps are small enough, and
    nothing happens beside the graph.

    Left out are steps that draw (dropout), keep statistics (batch normalisation), clip gradients, train a rival or a
    term's own parameters, or change from epoch to epoch (a temperature's schedule), and models that an operator has
    installed: nobody knows what they do from call to call. A job that asks for a profile is not traced: its table is of
    the loop's parts. What would be compiled is compiled: a profile changes no bit.

    Args:
        find: the loop's own way to a batch's gradients.
    """
    choices, size = job.choices, stage.train.batch_size
    modules = list(training.model.modules())
    drawn = any(isinstance(each, (Dropout, nn.Dropout)) and each.p > 0 for each in modules)
    recurrent = any(isinstance(each, nn.RNNBase) for each in modules)
    scheduled = any(isinstance(each, Temperature) and each.temperature_schedule is not None for each in stage.losses)
    stateful = next(training.model.buffers(), None) is not None or next(training.terms.parameters(), None) is not None
    if (
        stage.role == "teacher"
        or not is_of_the_house([job.spec.student.model])
        or not {loss.type for loss in stage.losses} <= LOSSES
        or drawn or recurrent or scheduled or stateful
        or type(training.optimizer) not in RULES
        or stage.train.gradient_clip is not None
        or choices.precision != "float32"
    ):  # fmt: skip
        return None
    steps = stage.train.epochs * job.steps_per_epoch(stage)
    small = job.plan.student.flops * size < SMALL_FLOPS
    if choices.compile_from is not None and steps >= choices.compile_from and (small or choices.compile_from == 0):
        return CompiledStep(training, size, job.reporter, job.places)
    if choices.trace_from is not None and steps >= choices.trace_from and small and not job.spec.profile:
        return TracedStep(training, size, job.reporter, find)
    return None


class CompiledStep(GraphStep):
    """Makes each step, its update with it, by one compiled graph."""

    def __init__(
        self, training: Training, size: int, reporter: Reporter, places: Places, backend: Backend | None = None
    ) -> None:
        """
        Args:
            places: where there is a cache, what the compiler made is kept in it for later jobs.
            backend: the compiler; left out: inductor.
        """
        super().__init__(training, size, reporter)
        self._places, self._backend = places, backend or inductor
        self._group = training.optimizer.param_groups[0]
        trained = list(self._objective.trained().values())
        moments, self._counts = _state(training.optimizer, trained)
        self._moments = list(moments)
        state = (
            *self._objective.constants().values(),
            *trained,
            *(each for those in moments.values() for each in those),
        )
        self._state = [each.detach() for each in state]
        self._count = self._counts[0]
        self._scales, self._rule = RULES[type(training.optimizer)]

    def _given(self, seen: Batch, weights: Sequence[float], rate: float) -> list[Tensor]:
        scales = self._scales(self._group, int(self._count) + 1, rate)
        return [*self._state, torch.tensor([*weights, *scales], dtype=torch.float32), *tensors_of(seen)]

    def _make(self, seen: Batch, given: Sequence[Tensor]) -> Made:
        """
        Raises:
            RuntimeError: a parameter has no gradient, so that the optimizer's counts would differ from one to another.
        """
        terms = len(self._objective.terms)

        def step(*tensors: Tensor) -> list[Tensor]:
            constants, parameters, left = self._objective.parted(tensors)
            size = len(parameters)
            moments: Moments = {name: left[place * size :][:size] for place, name in enumerate(self._moments)}
            numbers, *batch = left[len(moments) * size :]
            values, found = self._objective.gradients(constants, parameters, numbers[:terms], refilled(seen, batch))
            if any(each is None for each in found):
                raise RuntimeError("a parameter has no gradient")
            self._rule(self._group, list(parameters.values()), cast(list[Tensor], found), moments, numbers[terms:])
            return [torch.stack(values)]

        with _compiler(self._places):
            return self._backend(trace(step, given), given)

    def _take(self, made: Made, given: Sequence[Tensor], rate: float) -> list[Tensor]:
        with torch.no_grad():
            self._counts.add_(1)
            (values,) = made(*given)
            return list(cast(Tensor, values).unbind())

    def _say_failed(self, reason: str) -> None:
        self._reporter.event("not_compiled", {"reason": reason})


def inductor(graph: torch.fx.GraphModule, given: Sequence[Tensor]) -> Made:
    """torch's own compiler. No guards are around what it makes: a step is too short for them, and in a stage only the
    batch's size could differ, at which `CompiledStep` looks itself."""
    import torch._inductor  # takes a second, and most jobs do without

    # With shapes from elsewhere it leaves its cache out.
    return cast(Made, torch._inductor.standalone_compile(graph, list(given), dynamic_shapes="from_example_inputs"))


@contextmanager
def _compiler(places: Places) -> Iterator[None]:
    """While the compiler runs: in this process alone, and with its cache in the job's, where there is one."""
    from torch._inductor import config

    name, before, lock = "TORCHINDUCTOR_CACHE_DIR", os.environ.get("TORCHINDUCTOR_CACHE_DIR"), None
    if places.cache is not None:
        folder, lock = cached(places.cache, f"compiled-{torch.__version__}", lambda _: None, places.cache_bytes)
        os.environ[name] = str(folder)
    try:
        # The number of threads is part of what is made; named, it is part of the cache's key in every version of torch.
        with config.patch({"compile_threads": 1, "cpp.threads": torch.get_num_threads()}):
            yield
    finally:
        if lock is not None:
            lock.close()
            os.environ.pop(name)
            if before is not None:
                os.environ[name] = before


def _state(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> tuple[Moments, Tensor]:
    """The optimizer's tensors, made as its first step would make them where there was none, and its counts: (P,)."""
    counting = "betas" in optimizer.param_groups[0]
    names = ["exp_avg", "exp_avg_sq"] if counting else ["momentum_buffer"]
    for each in parameters:
        state = optimizer.state[each]
        if not state:
            state.update({name: torch.zeros_like(each) for name in names})
            if counting:
                state["step"] = torch.zeros((), dtype=torch.float32)
    states = [optimizer.state[each] for each in parameters]
    return {name: [state[name] for state in states] for name in names}, counts(states) if counting else torch.zeros(1)


def _adam_scales(group: dict[str, Any], number: int, rate: float) -> tuple[float, ...]:
    """The step size and the root of what Adam divides by, both without the bias of the first steps (Kingma and Ba,
    2015, section 2), and what AdamW leaves of a weight."""
    beta1, beta2 = group["betas"]
    return rate / (1 - beta1**number), math.sqrt(1 - beta2**number), 1 - rate * group["weight_decay"]


def _adam(
    group: dict[str, Any], parameters: Sequence[Tensor], gradients: Sequence[Tensor], moments: Moments, scales: Tensor
) -> None:
    (beta1, beta2), decay, decoupled = group["betas"], group["weight_decay"], group["decoupled_weight_decay"]
    size, root, left = scales.unbind()
    for place, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
        mean, square = moments["exp_avg"][place], moments["exp_avg_sq"][place]
        if decay and decoupled:
            parameter.mul_(left)
        elif decay:
            gradient = gradient + decay * parameter
        mean.lerp_(gradient, 1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        parameter.sub_(size * mean / (square.sqrt() / root + group["eps"]))


def _sgd_scales(group: dict[str, Any], number: int, rate: float) -> tuple[float, ...]:
    return (rate,)


def _sgd(
    group: dict[str, Any], parameters: Sequence[Tensor], gradients: Sequence[Tensor], moments: Moments, scales: Tensor
) -> None:
    momentum, decay = group["momentum"], group["weight_decay"]
    for parameter, gradient, buffer in zip(parameters, gradients, moments["momentum_buffer"], strict=True):
        if decay:
            gradient = gradient + decay * parameter
        if momentum:
            buffer.mul_(momentum).add_(gradient)
            gradient = gradient + momentum * buffer if group["nesterov"] else buffer
        parameter.sub_(scales[0] * gradient)


RULES: dict[type, tuple[Scales, Rule]] = {
    torch.optim.Adam: (_adam_scales, _adam),
    torch.optim.AdamW: (_adam_scales, _adam),
    torch.optim.SGD: (_sgd_scales, _sgd),
}
"""What the optimizers of `kdcore/optim.py` do in a step."""
