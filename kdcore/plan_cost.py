"""What a model and its training cost, found on the meta device: shapes without numbers."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import flop_registry

from kdcore.config import Config
from kdcore.data import DataFacts
from kdcore.evaluate import BATCH
from kdcore.inputs import example_inputs
from kdcore.models import ModelConfig, Network
from kdcore.optim import OptimizerConfig, SGDConfig
from kdcore.stages import Stage

FLOAT = 4
LABEL = 8
TEACHER_COPIES, STUDENT_COPIES = 4, 6
"""At one time, at most: the best epoch, the one that replaces it, and two for what a check for NaN writes; of the
student also the baseline's weights and those that one stage hands to the next."""

RIVAL_COPIES = 2
"""Numbers that Adam keeps for each parameter."""


class LayerPlan(Config):
    """A view of a model."""

    name: str
    shape: list[int]
    """Of one sample, without the batch."""


class ModelPlan(Config):
    """A model's size."""

    parameters: int
    flops: int
    """Floating-point operations of one sample's forward pass: two per multiply-add of matrix products and
    convolutions, as torch's FlopCounterMode counts; everything else is not counted."""
    bytes: int
    """The parameters as float32."""
    layers: list[LayerPlan]
    """Every view, in order of depth."""


class MemoryPlan(Config):
    """Bytes on the training device at the hungriest stage: an estimate from above.

    Beside these a process needs what it takes to load torch, some hundred MB.
    """

    weights: int
    """Teachers and student, and what the losses of a stage have of their own: regressors, peers, banks."""
    copies: int
    """Of the best epoch, its successor and finished models, and what checking them for NaN takes; on a GPU these
    are in the host's memory."""
    optimizer: int
    """Gradients and the optimizer's state."""
    activations: int
    """What the forward passes of a batch write, in training or in evaluation."""
    evaluation: int = 0
    """Of it, what an evaluation writes; 0 in plans of an earlier version."""
    per_sample: int = 0
    """What a sample of a training batch writes, at most; 0 in plans of an earlier version."""
    data: int
    """All splits, as bytes."""
    total: int


class TermPlan(Config):
    """A loss of a stage."""

    type: str
    layers: list[tuple[str, str]] = Field(default_factory=list)
    """The pairs of the student's and the teacher's layers that it compares."""
    comparisons: int = 0
    """Pairs or triples, of samples or of channels, that it compares in a step; 0 where they are few."""
    parameters: int = 0
    """That train with the student, and are no part of what is exported."""
    buffers: int = 0
    """Bytes that it keeps beside them, such as a bank of embeddings."""


class StagePlan(Config):
    """A stage's steps."""

    name: str
    epochs: int
    steps_per_epoch: int
    """The last batch of an epoch may be smaller."""
    steps: int
    samples: int
    """In one epoch."""
    batch_size: int
    losses: list[TermPlan] = Field(default_factory=list)
    """In the spec's order; empty in plans of an earlier version."""
    target_bytes: int | None = None
    """What its teachers say of all training samples takes so much memory, to be kept where there is as much; none
    where they are asked in every step: the stage augments, or `keep_targets` is off."""


@dataclass(frozen=True)
class Costs:
    """A model on the meta device.

    Attributes:
        plan: what is shown of it.
        shapes: its views without the batch.
        facts: of what it reads.
        network: without numbers, on the meta device.
        buffers: bytes of what is saved but not trained.
        activations: bytes that one sample's forward pass writes.
    """

    plan: ModelPlan
    shapes: dict[str, tuple[int, ...]]
    facts: DataFacts
    network: Network
    buffers: int
    activations: int


class _Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]
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
        self.flops += flops
        self.written += written
        return out


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


def model_costs(config: ModelConfig, facts: DataFacts) -> Costs:
    """Build a model on the meta device and run one sample through it.

    Raises:
        ModelError: the model cannot be built for this data.
    """
    with torch.device("meta"), torch.no_grad(), _Meter() as meter:
        network = config.build(facts.input_shape, len(facts.classes), facts.vocabulary).eval()
        inputs = example_inputs(facts, 1)
        meter.flops = meter.written = 0  # until here it only spared time
        views = network.views(inputs)
    shapes = {name: tuple(view.shape[1:]) for name, view in views.items()}
    parameters = sum(parameter.numel() for parameter in network.parameters())
    plan = ModelPlan(
        parameters=parameters,
        flops=meter.flops,
        bytes=parameters * FLOAT,
        layers=[LayerPlan(name=name, shape=list(shape)) for name, shape in shapes.items()],
    )
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in network.buffers())
    return Costs(plan, shapes, facts, network, buffers, meter.written + inputs.numel() * FLOAT)


def sample_flops(stage: Stage, teachers: Sequence[ModelPlan], student: ModelPlan) -> int:
    """To train on one sample once, a backward pass counted as two forward ones."""
    trained = teachers[stage.index] if stage.role == "teacher" else student
    return 3 * trained.flops + sum(teachers[index].flops for index in stage.teachers(len(teachers)))


def plan_memory(
    stages: Sequence[Stage],
    planned: Sequence[StagePlan],
    facts: DataFacts,
    teachers: Sequence[Costs],
    student: Costs,
) -> MemoryPlan:
    """The largest of each kind over all stages."""
    large = sum(teacher.plan.bytes + teacher.buffers for teacher in teachers)
    small = student.plan.bytes + student.buffers
    learned = [FLOAT * sum(term.parameters for term in stage.losses) for stage in planned]
    kept = [sum(term.buffers for term in stage.losses) for stage in planned]
    own = max(map(sum, zip(learned, kept, strict=True)), default=0)
    weights, copies = large + small + own, TEACHER_COPIES * large + STUDENT_COPIES * small
    evaluated = min(BATCH, max(facts.validation, facts.test))
    evaluation = max(model.activations for model in (*teachers, student)) * evaluated
    optimizer, activations, most = 0, evaluation, 0
    for stage, extra in zip(stages, learned, strict=True):
        trained = teachers[stage.index] if stage.role == "teacher" else student
        rivals = extra * (1 + RIVAL_COPIES)  # some of it may have an Adam of its own
        optimizer = max(optimizer, trained.plan.bytes * (1 + _state_copies(stage.train.optimizer)) + rivals)
        read = stage.teachers(len(teachers))
        per_sample = trained.activations + sum(teachers[index].activations for index in read)
        most = max(most, per_sample)
        activations = max(activations, per_sample * stage.train.batch_size)
    data = (math.prod(facts.input_shape) * facts.bytes_each + LABEL) * (facts.train + facts.validation + facts.test)
    total = weights + copies + optimizer + activations + data
    return MemoryPlan(
        weights=weights,
        copies=copies,
        optimizer=optimizer,
        activations=activations,
        evaluation=evaluation,
        per_sample=most,
        data=data,
        total=total,
    )


def _state_copies(config: OptimizerConfig) -> int:
    """How many numbers an optimizer keeps for each parameter."""
    if isinstance(config, SGDConfig):
        return 1 if config.momentum else 0
    return 2
