"""Limits: the convolutions and matrix products of a step of distillation, bare, and nothing else; and the calls into
torch that such a step is made of, one by one, with no loop around them."""

import time
from collections.abc import Callable, Sequence
from itertools import product

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone knows it by
from torch import Tensor, nn

from benchmarks.speed.arms import Arm, Place, Run
from benchmarks.speed.peers import distillation_loss
from kdcore.choices import is_exact
from kdcore.plan import make_plan
from kdcore.spec import JobSpec, parse_spec
from kdcore.update import Update

Call = Callable[[], object]
SECONDS = 2.0


def limit(document: dict[str, object], *, teacher: bool = True) -> Arm:
    """As long as the last stage's steps would take: the teacher's products forward, the student's forward and backward,
    in float32 or bf16, whichever is faster here, on every core."""

    def arm(place: Place) -> Run:
        spec = parse_spec(document)
        stage = make_plan(spec).stages[-1]
        if is_exact("medium"):
            torch.set_float32_matmul_precision("medium")
        each = min(step_seconds(spec, dtype, teacher) for dtype in (torch.float32, torch.bfloat16))
        return Run(each * stage.steps, stage.samples * stage.epochs)

    return arm


def step_seconds(spec: JobSpec, dtype: torch.dtype, teacher: bool) -> float:
    """Of one batch, the mean over `SECONDS`."""
    facts, size = spec.data.facts(), spec.stages[-1].batch_size
    inputs = torch.randn(size, *facts.input_shape)
    student = spec.student.model.build(facts.input_shape, len(facts.classes))
    calls = bare(student, inputs, dtype, backward=True)
    if teacher:
        calls += bare(spec.teachers[0].model.build(facts.input_shape, len(facts.classes)), inputs, dtype)
    return seconds_of(calls)


def seconds_of(calls: Sequence[Call]) -> float:
    """Of all of them in turn, the mean over `SECONDS`."""
    for call in calls:
        call()
    steps, began = 0, time.perf_counter()
    while time.perf_counter() - began < SECONDS:
        for call in calls:
            call()
        steps += 1
    return (time.perf_counter() - began) / steps


def teacher_limit(document: dict[str, object]) -> Arm:
    """As long as the steps of training a teacher in float32 would take: its products forward and backward, by the
    faster of two libraries where they are as exact, and torch's fused update, on every core."""

    def arm(place: Place) -> Run:
        spec = parse_spec(document)
        stage, train = make_plan(spec).stages[0], spec.teachers[0].train
        assert train is not None
        facts = spec.data.facts()
        teacher = spec.teachers[0].model.build(facts.input_shape, len(facts.classes))
        calls = bare(teacher, torch.randn(train.batch_size, *facts.input_shape), torch.float32, backward=True)
        for weights in teacher.parameters():
            weights.grad = torch.randn_like(weights) * 1e-6
        calls.append(torch.optim.Adam(teacher.parameters(), fused=True).step)
        taken = []
        for products in ("highest", "medium") if is_exact("medium") else ("highest",):
            torch.set_float32_matmul_precision(products)
            taken.append(seconds_of(calls))
        return Run(min(taken) * stage.steps, stage.samples * stage.epochs)

    return arm


def calls_alone(document: dict[str, object]) -> Arm:
    """As long as the last stage's steps would take if they were torch's calls alone, one by one: the student's forward
    pass, both losses on answers that are there, backward, the update's kernel; of one and the same batch. By modules
    and autograd: the limit of steps that are neither traced nor compiled. In the spec's precision, on one thread or
    every core, by the faster of two libraries."""

    def arm(place: Place) -> Run:
        spec = parse_spec(document)
        stage, facts, config = make_plan(spec).stages[-1], spec.data.facts(), spec.stages[-1]
        student = spec.student.model.build(facts.input_shape, len(facts.classes)).to(memory_format=torch.channels_last)
        update = Update(config.optimizer.build(student.parameters()))
        inputs = torch.randn(config.batch_size, *facts.input_shape)
        labels = torch.randint(len(facts.classes), (config.batch_size,))
        said = torch.randn(config.batch_size, len(facts.classes))

        def step() -> None:
            with torch.autocast("cpu", torch.bfloat16, enabled=spec.precision == "bf16"):
                logits = student(inputs)
            loss = distillation_loss(logits.float(), said, labels, 4.0, 0.9)
            update.forget_gradients()
            loss.backward()  # type: ignore[no-untyped-call]
            update.make(config.optimizer.lr)

        taken = []
        for threads, products in product({1, torch.get_num_threads()}, ("highest", "medium")):
            if is_exact(products):
                torch.set_num_threads(threads)
                torch.set_float32_matmul_precision(products)
                taken.append(seconds_of([step]))
        return Run(min(taken) * stage.steps, stage.samples * stage.epochs)

    return arm


def bare(network: nn.Module, inputs: Tensor, dtype: torch.dtype, backward: bool = False) -> list[Call]:
    """A call for each convolution and matrix product of a forward pass, and for each that its gradient takes: of the
    inputs of all but the first, and of the weights."""
    found: list[Call] = []

    def note(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        make = convolution if isinstance(module, nn.Conv2d) else matrix_product
        found.extend(make(module, given[0].shape, output.shape, dtype, backward, first=not found))

    hooks = [each.register_forward_hook(note) for each in network.modules() if isinstance(each, (nn.Conv2d, nn.Linear))]
    with torch.no_grad():
        network.eval()(inputs)
    for hook in hooks:
        hook.remove()
    return found


def convolution(
    layer: nn.Module, given: torch.Size, made: torch.Size, dtype: torch.dtype, backward: bool, first: bool
) -> list[Call]:
    assert isinstance(layer, nn.Conv2d)
    last = torch.channels_last
    inputs, outputs = (torch.randn(shape, dtype=dtype).to(memory_format=last) for shape in (given, made))
    weight = layer.weight.detach().to(dtype, memory_format=last)
    how = (layer.stride, layer.padding, layer.dilation, False, [0, 0], layer.groups, [not first, True, False])
    calls: list[Call] = [
        lambda: F.conv2d(inputs, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)  # type: ignore[arg-type]
    ]
    if backward:
        calls.append(lambda: torch.ops.aten.convolution_backward(outputs, inputs, weight, None, *how))
    return calls


def matrix_product(
    layer: nn.Module, given: torch.Size, made: torch.Size, dtype: torch.dtype, backward: bool, first: bool
) -> list[Call]:
    assert isinstance(layer, nn.Linear)
    inputs, outputs = torch.randn(given, dtype=dtype).flatten(0, -2), torch.randn(made, dtype=dtype).flatten(0, -2)
    weight = layer.weight.detach().to(dtype)
    calls: list[Call] = [lambda: inputs @ weight.T]
    if backward:
        calls += [lambda: outputs.T @ inputs] + ([] if first else [lambda: outputs @ weight])
    return calls
