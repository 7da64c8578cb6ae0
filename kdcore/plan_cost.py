"""What a model and its training cost, found on the meta device: shapes without numbers."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import nn

from kdcore.config import Config
from kdcore.data import DataFacts
from kdcore.evaluate import BATCH
from kdcore.inputs import example_inputs
from kdcore.meter import Meter
from kdcore.models import HttpConfig, ModelConfig, Network, mapped
from kdcore.optim import OptimizerConfig, SGDConfig
from kdcore.stages import Stage

FLOAT = 4
HANDED = 2
"""Copies of the student beside those that are finished, at most: what one stage hands to the next, and what that one
is about to hand on; or the two that an offset is tried with."""
HOLES = 2
"""Times a stage's gradients, made and freed in every step: what the C library takes for them beside their own size,
since it cannot put them where the last step's were. 1.1, measured with glibc 2.36."""
EXPORT_COPIES = 10
"""Of the largest network, for what writes and checks its files: 4 for a teacher's ONNX, 5 for the student that takes
pictures, 7 for the one of whole numbers, measured, and more in the holes of the C library beside other work."""
COMPARED = 4 * FLOAT
"""Bytes of a comparison: itself, what the loss makes of it, and a gradient of each."""
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
    """0 of an ONNX file, which is not read yet, as are its FLOPs and bytes."""
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
    """Of what is finished, of the best epoch and of what stages hand on; and what writing the files takes beyond all
    that training has freed by then. On a GPU these are in the host's memory."""
    optimizer: int
    """Gradients, the holes that they leave, and the optimizer's state."""
    activations: int
    """What the forward passes of a batch write, in training or in evaluation."""
    evaluation: int = 0
    """Of it, what an evaluation writes; 0 in plans of an earlier version."""
    per_sample: int = 0
    """What a sample of a training batch writes, at most; 0 in plans of an earlier version."""
    data: int
    """All splits: labels, and unless they stay in a file the samples and a teacher's logits, asked over HTTP or not."""
    total: int


class TermPlan(Config):
    """A loss of a stage."""

    type: str
    layers: list[tuple[str, str]] = Field(default_factory=list)
    """The pairs of the student's and the teacher's layers that it compares."""
    comparisons: int = 0
    """Pairs or triples, of samples or of channels, that it compares in a step; 0 where they are few."""
    held: int = 0
    """Of these, the ones that are in memory at once; 0 in plans of an earlier version."""
    parameters: int = 0
    """That train with the student, and are no part of what is exported."""
    buffers: int = 0
    """Bytes that it keeps beside them, such as a bank of embeddings."""
    flops: int = 0
    """Of one sample's forward pass through a network of its own, a peer."""
    activations: int = 0
    """Bytes that this pass writes; 0, like its FLOPs, in plans of an earlier version."""


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
    """What its teachers say of all training samples takes so many bytes, to be kept in memory or in a file where there
    is as much room; none where they are asked in every step."""
    target_views: list[str] = Field(default_factory=list)
    """What that is, as in `teacher-1/logits`; empty in plans of an earlier version."""
    asked_because: str | None = None
    """Why they are asked in every step; none where they are not, or only for lack of room, which is seen when the job
    begins."""


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
        asked: whether it is asked over HTTP, once about every sample.
    """

    plan: ModelPlan
    shapes: dict[str, tuple[int, ...]]
    facts: DataFacts
    network: Network
    buffers: int
    activations: int
    asked: bool = False


def model_costs(config: ModelConfig, facts: DataFacts, theirs: Sequence[str] | None = None) -> Costs:
    """Build a model on the meta device and run one sample through it.

    Args:
        theirs: the names of its outputs, where these are not the data's classes as they are.

    Raises:
        ModelError: the model cannot be built for this data.
    """
    with torch.device("meta"), torch.no_grad(), Meter() as meter:
        built = config.build(facts.input_shape, len(theirs or facts.classes), facts.vocabulary)
        network = mapped(built, theirs, facts.classes).eval()
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
    written = meter.written + inputs.numel() * FLOAT
    return Costs(plan, shapes, facts, network, buffers, written, isinstance(config, HttpConfig))


def sample_flops(stage: Stage, planned: StagePlan, teachers: Sequence[ModelPlan], student: ModelPlan) -> int:
    """To train on one sample once, a backward pass counted as two forward ones; teachers whose answers are kept are
    asked in one epoch of all."""
    trained = teachers[stage.index] if stage.role == "teacher" else student
    learned = 3 * (trained.flops + sum(term.flops for term in planned.losses))
    asked = sum(teachers[index].flops for index in stage.teachers(len(teachers)))
    return learned + (asked if planned.asked_because is not None else asked // planned.epochs)


def forward_cost(network: nn.Module, facts: DataFacts) -> tuple[int, int]:
    """FLOPs of one sample's forward pass through a network on the meta device, and the bytes that it writes."""
    with torch.device("meta"), torch.no_grad(), Meter() as meter:
        network(example_inputs(facts, 1))
    return meter.flops, meter.written


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
    finished = len({(stage.role, stage.repeat) for stage in stages if stage.role != "teacher"})
    weights, copies = large + small + own, large + (finished + HANDED) * small
    evaluated = min(BATCH, max(facts.validation, facts.test))
    evaluation = max(model.activations for model in (*teachers, student)) * evaluated
    optimizer, activations, most = 0, evaluation, 0
    for stage, extra, about in zip(stages, learned, planned, strict=True):
        trained = teachers[stage.index] if stage.role == "teacher" else student
        rivals = extra * (1 + HOLES + RIVAL_COPIES)  # some of it may have an Adam of its own
        optimizer = max(optimizer, trained.plan.bytes * (1 + HOLES + _state_copies(stage.train.optimizer)) + rivals)
        read = stage.teachers(len(teachers))
        per_sample = trained.activations + sum(teachers[index].activations for index in read)
        per_sample += sum(term.activations for term in about.losses)
        most = max(most, per_sample)
        compared = COMPARED * sum(term.held for term in about.losses)
        activations = max(activations, per_sample * stage.train.batch_size + compared)
    asked = sum(FLOAT * len(facts.classes) for teacher in teachers if teacher.asked)
    stored = facts.input_bytes + facts.logits_bytes + asked if facts.resident else 0
    data = (stored + facts.label_bytes) * (facts.train + facts.validation + facts.test)
    largest = max(model.plan.bytes + model.buffers for model in (*teachers, student))
    export = large + small + EXPORT_COPIES * largest  # of each a network that it is traced from
    copies += max(0, export - optimizer - activations)
    return MemoryPlan(
        weights=weights,
        copies=copies,
        optimizer=optimizer,
        activations=activations,
        evaluation=evaluation,
        per_sample=most,
        data=data,
        total=weights + copies + optimizer + activations + data,
    )


def _state_copies(config: OptimizerConfig) -> int:
    """How many numbers an optimizer keeps for each parameter."""
    if isinstance(config, SGDConfig):
        return 1 if config.momentum else 0
    return 2
