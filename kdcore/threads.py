"""How many CPU threads a job's steps are worth here: some of them are made, on numbers drawn at random."""

import math
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext

import torch

from kdcore.choices import ONE_THREAD_FLOPS, Choices, apply, largest_work
from kdcore.errors import is_memory_error
from kdcore.inputs import Reader, example_inputs
from kdcore.plan import Plan
from kdcore.spec import JobSpec
from kdcore.update import Update

MEASURED = (ONE_THREAD_FLOPS, 5_000_000_000)
"""Forward FLOPs of a batch between which it is worth a try. With fewer, one thread is best; more take too long."""
WORTH = 1.3
"""Times faster that twice the threads have to be. 784-1200-1200-10 at batch 32 gains 1.5 times on two idle cores, and
takes 1.6 times as long beside one busy process, where one thread loses nothing; convolutions gain up to 1.8 times."""
ROUNDS = 3
ROUND_SECONDS = 0.02
"""Of steps in a row, at least: the first one after a change of threads is slower than those of a job."""


def measured(spec: JobSpec, plan: Plan, choices: Choices, cores: int) -> Choices:
    """The choices with as many threads as are worth it, where that is open and can be found out soon.

    Leaves torch set up for these choices, as every job begins.
    """
    low, high = MEASURED
    if (
        not plan.stages
        or choices.device != "cpu"
        or cores < 2
        or spec.tuning.threads != "auto"
        or not low <= largest_work(plan) <= high
    ):
        return choices
    try:
        seconds, best = step_seconds(spec, plan, choices, cores), 1
    except (RuntimeError, MemoryError) as error:
        if not is_memory_error(error):
            raise
        return choices  # the job will say what to do about it
    for count in sorted(seconds)[1:]:
        if seconds[best] < WORTH * seconds[count]:
            break
        best = count
    return choices.model_copy(update={"threads": best})


def step_seconds(spec: JobSpec, plan: Plan, choices: Choices, cores: int) -> Mapping[int, float]:
    """Seconds of a step of the largest network with 1, 2, 4, … threads, in turn, the median of a few."""
    counts = [count for count in (2**power for power in range(11)) if count <= cores]
    taken: dict[int, list[float]] = {count: [] for count in counts}
    apply(choices)
    with torch.random.fork_rng([]):
        step = training_step(spec, plan, choices)
        step()  # what only the very first one does
        for _ in range(ROUNDS):
            for count in counts:
                torch.set_num_threads(count)
                steps = math.ceil(ROUND_SECONDS / seconds_of(step, 1))
                taken[count].append(seconds_of(step, steps))
    return {count: statistics.median(each) for count, each in taken.items()}


def seconds_of(step: Callable[[], None], steps: int) -> float:
    """Of one of so many steps in a row, the mean."""
    began = time.perf_counter()
    for _ in range(steps):
        step()
    return (time.perf_counter() - began) / steps


def training_step(spec: JobSpec, plan: Plan, choices: Choices) -> Callable[[], None]:
    """With its update where the network is trained; of a given one the forward pass."""
    sizes = [each.flops for each in (*plan.teachers, plan.student)]
    place = sizes.index(max(sizes))
    owner = spec.teachers[place] if place < len(spec.teachers) else spec.student
    longest = max(spec.stages, key=lambda stage: stage.batch_size, default=None)
    train = spec.teachers[place].train if place < len(spec.teachers) else longest
    facts = Reader(spec.data.facts(), owner.view).facts
    network = owner.model.build(facts.input_shape, len(facts.classes), facts.vocabulary)
    if choices.channels_last:
        network = network.to(memory_format=torch.channels_last)
    batch = max(stage.batch_size for stage in plan.stages) if train is None else train.batch_size
    batch = max(2, batch)  # batch normalisation refuses one: the loop will say so
    inputs = example_inputs(facts, batch, torch.Generator().manual_seed(0))
    update = Update(train.optimizer.build(network.parameters())) if train is not None else None

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16) if choices.precision == "bf16" else nullcontext():
            logits = network.views(inputs)["logits"]
        if update is not None and train is not None:
            update.forget_gradients()
            logits.float().square().mean().backward()  # type: ignore[no-untyped-call]
            update.make(train.optimizer.lr)

    return step
