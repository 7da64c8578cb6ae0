"""What a job's steps are worth here, where that cannot be known in advance: how many CPU threads, and which library's
matrix products; and how many samples a GPU is to be given at once. Some steps are made, on numbers drawn at random."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import product
from typing import Any, Literal, NamedTuple

import torch

from kdcore.choices import KEPT_SHARE, ONE_THREAD_FLOPS, Choices, apply, laid_out, largest_work
from kdcore.data import DataFacts
from kdcore.errors import is_memory_error
from kdcore.evaluate import BATCH
from kdcore.inputs import Reader, example_inputs
from kdcore.models import Network
from kdcore.plan import Plan
from kdcore.spec import JobSpec
from kdcore.training import TrainConfig
from kdcore.update import Update

MEASURED = (ONE_THREAD_FLOPS, 5_000_000_000)
"""Forward FLOPs of a batch between which it is worth a try. With fewer, one thread is best; more take too long."""
WORTH = 1.3
"""Times faster that twice the threads have to be. 784-1200-1200-10 at batch 32 gains 1.4 to 1.6 times on two idle
cores, and takes 1.6 times as long beside one busy process, where one thread loses nothing; convolutions gain up to 1.8
times."""
WORTH_LEAVING = 1.1
"""Times faster that MKL's products have to be than oneDNN's, or a larger batch than the one before, to be taken: less
is chance, and jobs that choose alike share what they keep."""
AT_ONCE = (BATCH, 1024, 4096)
"""Samples of a batch that a GPU may be given in an evaluation, or when a teacher is asked: more of them keep more of it
busy. On a CPU it is the first."""
ROUNDS = 3
ROUND_SECONDS = 0.02
"""Of steps in a row, at least: the first one after a change of threads is slower than those of a job."""
SETTLING_SECONDS = 0.5
"""The system may leave the second of two threads on the first one's core for a few tenths of a second."""

HALF_SIZE = 256
"""Rows and columns of the matrices whose product bf16 and float32 are compared by."""

Products = Literal["highest", "medium"]
"""torch's float32 matmul precision, as in `Choices.products`."""
Way = tuple[int, Products]
"""Threads and products."""


def measured(spec: JobSpec, plan: Plan, choices: Choices, cores: int, room: int | None = None) -> Choices:
    """The choices with what is fastest here, where that is open and can be found out soon: as many threads as are worth
    it, the faster products, and the samples that a GPU evaluates at once.

    Leaves torch with the last way tried: whoever goes on applies the choices.

    Args:
        room: bytes of the device's memory that there are for the job; None where nobody knows.
    """
    if not plan.stages:
        return choices
    if choices.device == "cuda":
        return choices.model_copy(update={"at_once": best_at_once(spec, plan, choices, room)})
    try:
        return choices.model_copy(update=best_way(spec, plan, choices, cores))
    except (RuntimeError, MemoryError) as error:
        if not is_memory_error(error):
            raise
        return choices  # the job will say what to do about it


def best_way(spec: JobSpec, plan: Plan, choices: Choices, cores: int) -> dict[str, Any]:
    """The threads and products, as `Choices` has them; nothing where they are known, or take too long to try."""
    low, high = MEASURED
    counts, kinds = open_counts(spec, choices, cores), open_products(choices)
    if len(counts) * len(kinds) < 2 or not low <= largest_work(plan) <= high:
        return {}
    faster = dict.fromkeys(counts, kinds[0])
    if len(kinds) > 1:
        seconds = step_seconds(spec, plan, choices, list(product(counts, kinds)))
        faster = {count: faster_products({kind: seconds[count, kind] for kind in kinds}) for count in counts}
    best, *more = counts
    least = settled_seconds(spec, plan, choices, (best, faster[best])) if more else math.inf
    for count in more:
        found = settled_seconds(spec, plan, choices, (count, faster[count]))
        if least < WORTH * found:
            break
        best, least = count, found
    left = len(kinds) > 1 and faster[best] == "highest"
    return {"threads": best} | ({"products": "highest"} if left else {})


def open_counts(spec: JobSpec, choices: Choices, cores: int) -> list[int]:
    """1, 2, 4, … up to the cores; the chosen number alone where the spec says it."""
    if spec.tuning.threads != "auto":
        return [choices.threads]
    return [count for count in (2**power for power in range(11)) if count <= max(1, cores)]


def open_products(choices: Choices) -> list[Products]:
    """Of the largest network: both kinds where they are as exact."""
    return ["medium", "highest"] if choices.products == "by_size" else ["highest"]


def faster_products(seconds: Mapping[Products, float]) -> Products:
    """oneDNN's where there is a choice, unless MKL's are worth leaving them."""
    if "medium" in seconds and seconds["medium"] < WORTH_LEAVING * seconds["highest"]:
        return "medium"
    return "highest"


def step_seconds(spec: JobSpec, plan: Plan, choices: Choices, ways: Sequence[Way]) -> Mapping[Way, float]:
    """Seconds of a step of the largest network in each of these ways, in turn, the median of a few."""
    taken: dict[Way, list[float]] = {way: [] for way in ways}
    apply(choices)
    with torch.random.fork_rng([]):
        step = training_step(spec, plan, choices)
        step()  # what only the very first one does
        for _ in range(ROUNDS):
            for threads, products in ways:
                torch.set_num_threads(threads)
                torch.set_float32_matmul_precision(products)
                steps = math.ceil(ROUND_SECONDS / seconds_of(step, 1))
                taken[threads, products].append(seconds_of(step, steps))
    return {way: statistics.median(each) for way, each in taken.items()}


def settled_seconds(spec: JobSpec, plan: Plan, choices: Choices, way: Way) -> float:
    """Seconds of a step of the largest network in this way, the median of those that come when others were made."""
    taken: list[float] = []
    apply(choices)
    with torch.random.fork_rng([]):
        step = training_step(spec, plan, choices)
        threads, products = way
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(products)
        began, settling = time.perf_counter(), SETTLING_SECONDS if threads > 1 else ROUNDS * ROUND_SECONDS
        while len(taken) < 2 * ROUNDS or time.perf_counter() - began < settling:
            taken.append(seconds_of(step, 1))
    return statistics.median(taken[len(taken) // 2 :])


def best_at_once(spec: JobSpec, plan: Plan, choices: Choices, room: int | None) -> int:
    """The samples of a batch with which the largest network says most in a second, from `BATCH` on as long as more fit
    and are worth it.

    No job fails of this trial: what goes wrong with `BATCH` goes wrong in the job again, and is explained there.
    """
    sizes = [size for size in AT_ONCE if size == BATCH or fits(size, spec, plan, room)]
    # What a teacher from a file computes, and takes for it, no plan knows.
    own = all(teacher.model.trainable for teacher in spec.teachers)
    if spec.tuning.batches != "auto" or not own or len(sizes) < 2 or not is_there(choices):
        return BATCH
    apply(choices)
    best, least = BATCH, math.inf
    try:
        with torch.random.fork_rng():
            answer = answers(spec, plan, choices, max(sizes))
            for size in sizes:
                answer(size)  # what only the very first one does
                seconds = statistics.median(seconds_of(partial(answer, size), 1) for _ in range(ROUNDS)) / size
                if least < WORTH_LEAVING * seconds:
                    break
                best, least = size, seconds
    except Exception:  # out of memory, or more than an operator takes: what was found until then holds
        return best
    return best


def fitting(choices: Choices, spec: JobSpec, plan: Plan, room: int) -> Choices:
    """These choices on a GPU that may have less memory than the one they were made on."""
    if choices.at_once > BATCH and not fits(choices.at_once, spec, plan, room):
        return choices.model_copy(update={"at_once": BATCH})
    return choices


def fits(size: int, spec: JobSpec, plan: Plan, room: int | None) -> bool:
    """Whether the plan has so many samples evaluated at once in the part of the room that is for it."""
    facts = spec.data.facts()
    evaluated = max(1, min(BATCH, max(facts.validation, facts.test)))  # of which the plan knows what they write
    free = (room or 0) - plan.memory.total + plan.memory.activations
    return size * plan.memory.evaluation <= evaluated * KEPT_SHARE * free


def is_there(choices: Choices) -> bool:
    """Whether the chosen device is; else the job will say so."""
    return choices.device == "cpu" or torch.cuda.is_available()


def answers(spec: JobSpec, plan: Plan, choices: Choices, most: int) -> Callable[[int], None]:
    """A forward pass of the largest network, without gradients, on so many samples, at most `most`."""
    tried = largest(spec, plan, choices)
    network = tried.network.eval().requires_grad_(False)
    inputs = example_inputs(tried.facts, most, torch.Generator().manual_seed(0)).to(choices.device)

    def answer(size: int) -> None:
        with torch.no_grad(), precision(choices):
            network.views(inputs[:size])["logits"][0].tolist()  # waits for a GPU

    return answer


def seconds_of(step: Callable[[], object], steps: int) -> float:
    """Of one of so many steps in a row, the mean."""
    began = time.perf_counter()
    for _ in range(steps):
        step()
    return (time.perf_counter() - began) / steps


def training_step(spec: JobSpec, plan: Plan, choices: Choices) -> Callable[[], None]:
    """With its update where the network is trained; of a given one the forward pass."""
    network, facts, train, batch = largest(spec, plan, choices)
    inputs = example_inputs(facts, batch, torch.Generator().manual_seed(0)).to(choices.device)
    update = Update(train.optimizer.build(network.parameters())) if train is not None else None

    def step() -> None:
        with precision(choices):
            logits = network.views(inputs)["logits"]
        if update is not None and train is not None:
            update.forget_gradients()
            logits.float().square().mean().backward()  # type: ignore[no-untyped-call]
            update.make(train.optimizer.lr)

    return step


class Tried(NamedTuple):
    """A network with weights drawn at random, what it reads, how it is trained (none: it is given), and its batch."""

    network: Network
    facts: DataFacts
    train: TrainConfig | None
    batch_size: int


def largest(spec: JobSpec, plan: Plan, choices: Choices) -> Tried:
    """The network of most FLOPs."""
    sizes = [each.flops for each in (*plan.teachers, plan.student)]
    place = sizes.index(max(sizes))
    owner = spec.teachers[place] if place < len(spec.teachers) else spec.student
    longest = max(spec.stages, key=lambda stage: stage.batch_size, default=None)
    train = spec.teachers[place].train if place < len(spec.teachers) else longest
    facts = Reader(spec.data.facts(), owner.view).facts
    network = owner.model.build(facts.input_shape, len(facts.classes), facts.vocabulary).to(choices.device)
    batch = max(stage.batch_size for stage in plan.stages) if train is None else train.batch_size
    batch = max(2, batch)  # batch normalisation refuses one: the loop will say so
    return Tried(laid_out(network, choices), facts, train, batch)


def precision(choices: Choices) -> AbstractContextManager[object]:
    """Of a forward pass."""
    return torch.autocast(choices.device, torch.bfloat16) if choices.precision == "bf16" else nullcontext()


def half_times() -> float:
    """Times as long as in float32 that this CPU takes for a product in bf16: many, where it has no instructions for
    it."""
    drawn = torch.Generator().manual_seed(0)
    left, right = torch.rand(2, HALF_SIZE, HALF_SIZE, generator=drawn).unbind()
    half, full = partial(torch.mm, left.bfloat16(), right.bfloat16()), partial(torch.mm, left, right)
    return statistics.median(seconds_of(half, 1) / seconds_of(full, 1) for _ in range(ROUNDS))
