"""Threads and products are chosen by what steps with them take."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from kdcore import opening, trial
from kdcore.choices import Choices, choose
from kdcore.models.mlp import MLP
from kdcore.opening import choose_here
from kdcore.plan import Plan, make_plan
from kdcore.spec import JobSpec, parse_spec

LARGE = (
    "{data: {type: mnist}, teachers: [{model: {type: mlp, hidden: [1200, 1200], dropout: 0.5}}],"
    " student: {model: {type: mlp, hidden: [8]}}}"
)
SMALL = "{data: {type: digits}, teachers: [{model: {type: mlp}}], student: {model: {type: mlp, hidden: [8]}}}"
ONNX = "model: {type: onnx}, weights: {file: t.onnx}"
GIVEN = (
    "{data: {type: cifar10}, precision: bf16, student: {model: {type: cnn, channels: [8]}},"
    " teachers: [{model: {type: resnet, depth: 8}, weights: {file: t.safetensors}}], stages: [{batch_size: 4}]}"
)


@pytest.fixture(autouse=True)
def _as_before() -> Any:
    yield
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(False)


def job(text: str, cores: int = 8) -> tuple[JobSpec, Plan, Choices]:
    spec = parse_spec(text)
    plan = make_plan(spec)
    return spec, plan, choose(spec, plan, device="cpu", cores=cores)


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        ({1: 1.0, 2: 0.6, 4: 0.3, 8: 0.29}, 4),
        ({1: 1.0, 2: 0.8, 4: 0.2}, 1),  # not worth the first step
        ({1: 1.0, 2: 9.0}, 1),  # beside a busy neighbour
        ({1: 1.0, 2: 0.6}, 2),
    ],
)
def test_twice_the_threads_have_to_be_worth_it(
    monkeypatch: pytest.MonkeyPatch, seconds: dict[int, float], best: int
) -> None:
    spec, plan, choices = job(LARGE)
    monkeypatch.setattr(trial, "step_seconds", lambda *given: dict.fromkeys(given[3], 1.0))
    monkeypatch.setattr(trial, "settled_seconds", lambda *given: seconds[given[3][0]])
    assert trial.measured(spec, plan, choices, max(seconds)).threads == best


def by_size(choices: Choices) -> Choices:
    """As on a processor where oneDNN's products are as exact as MKL's."""
    return choices.model_copy(update={"products": "by_size"})


@pytest.mark.parametrize(
    ("seconds", "threads", "products"),
    [
        ({(1, "medium"): 1.0, (1, "highest"): 0.5, (2, "medium"): 0.9, (2, "highest"): 0.45}, 1, "highest"),
        ({(1, "medium"): 0.5, (1, "highest"): 1.0, (2, "medium"): 0.3, (2, "highest"): 0.6}, 2, "by_size"),
        ({(1, "medium"): 1.0, (1, "highest"): 0.95, (2, "medium"): 1.0, (2, "highest"): 1.0}, 1, "by_size"),  # chance
        # Each number of threads with its own faster products.
        ({(1, "medium"): 2.0, (1, "highest"): 1.0, (2, "medium"): 0.6, (2, "highest"): 1.0}, 2, "by_size"),
        ({(1, "medium"): 1.0, (1, "highest"): 2.0, (2, "medium"): 2.0, (2, "highest"): 0.7}, 2, "highest"),
    ],
)
def test_products_that_are_slower_here_are_left(
    monkeypatch: pytest.MonkeyPatch, seconds: dict[trial.Way, float], threads: int, products: str
) -> None:
    """As with a text Transformer of width 128, where oneDNN takes twice as long as MKL on one processor."""
    spec, plan, choices = job(LARGE, cores=2)
    asked: list[Any] = []
    monkeypatch.setattr(trial, "step_seconds", lambda *given: asked.append(given[3]) or seconds)
    monkeypatch.setattr(trial, "settled_seconds", lambda *given: seconds[given[3]])
    found = trial.measured(spec, plan, by_size(choices), 2)
    assert (found.threads, found.products) == (threads, products)
    assert sorted(asked[0]) == sorted(seconds)


def test_products_are_tried_on_one_core_and_with_pinned_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    spec, plan, choices = job(LARGE, cores=1)
    monkeypatch.setattr(trial, "step_seconds", lambda *given: {way: float(way[1] == "medium") for way in given[3]})
    assert trial.measured(spec, plan, by_size(choices), 1).products == "highest"
    pinned = parse_spec({**spec.model_dump(mode="json"), "tuning": {"threads": 3}})
    found = trial.measured(pinned, plan, by_size(choose(pinned, plan, device="cpu", cores=8)), 8)
    assert (found.threads, found.products) == (3, "highest")


def test_a_batch_of_one_is_left_to_the_loop() -> None:
    """Batch normalisation refuses one sample, and the loop says what to do about it."""
    text = (
        "{data: {type: cifar10}, student: {model: {type: cnn, channels: [8]}}, stages: [{batch_size: 1}], teachers: ["
    )
    text += "{model: {type: resnet, form: imagenet, depth: 18}, train: {batch_size: 1, epochs: 1}}]}"
    spec, plan, choices = job(text)
    ways: list[trial.Way] = [(1, "highest"), (2, "highest")]
    assert list(trial.step_seconds(spec, plan, choices, ways)) == ways


def test_nothing_is_measured_where_the_answer_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "step_seconds", None)  # would fail
    monkeypatch.setattr(trial, "settled_seconds", None)
    spec, plan, choices = job(SMALL)
    assert trial.measured(spec, plan, choices, 8).threads == 1
    spec, plan, choices = job(LARGE)
    choices = choices.model_copy(update={"products": "highest"})
    assert trial.measured(spec, plan, choices, 1) == choices
    assert trial.measured(spec, plan, choices.model_copy(update={"device": "cuda"}), 8).threads == choices.threads
    pinned = parse_spec({**spec.model_dump(mode="json"), "tuning": {"threads": 3}})
    three = choose(pinned, plan, device="cpu", cores=8).model_copy(update={"products": "highest"})
    assert trial.measured(pinned, plan, three, 8) == three


def test_too_little_memory_to_try_is_left_to_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*given: Any) -> Any:
        raise error

    monkeypatch.setattr(trial, "step_seconds", fails)
    monkeypatch.setattr(trial, "settled_seconds", fails)
    spec, plan, choices = job(LARGE)
    error: Exception = RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory")
    assert trial.measured(spec, plan, choices, 8) == choices
    error = RuntimeError("something else")
    with pytest.raises(RuntimeError, match="something else"):
        trial.measured(spec, plan, choices, 8)


@pytest.mark.parametrize("text", [LARGE, GIVEN], ids=["trained", "given"])
def test_steps_are_made_each_way_and_chance_is_left_alone(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, plan, choices = job(text)
    seen, before = set(), torch.get_rng_state()
    real = trial.seconds_of

    def watched(*given: Any) -> float:
        seen.add((torch.get_num_threads(), torch.get_float32_matmul_precision()))
        return real(*given)

    monkeypatch.setattr(trial, "seconds_of", watched)
    ways: list[trial.Way] = [(1, "medium"), (1, "highest"), (2, "medium"), (2, "highest")]
    seconds = trial.step_seconds(spec, plan, choices, ways)
    assert seen == set(seconds) == set(ways)
    assert all(0 < each < 60 for each in seconds.values())
    seen.clear()
    assert 0 < trial.settled_seconds(spec, plan, choices, (2, "medium")) < 60
    assert seen == {(2, "medium")}
    assert torch.equal(torch.get_rng_state(), before)


def test_steps_that_come_before_the_threads_have_settled_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    slow, fast = iter([9.0] * trial.ROUNDS), 0.1
    monkeypatch.setattr(trial, "SETTLING_SECONDS", 0.0)
    monkeypatch.setattr(trial, "training_step", lambda *given: None)
    monkeypatch.setattr(trial, "seconds_of", lambda *given: next(slow, fast))
    spec, plan, choices = job(LARGE)
    assert trial.settled_seconds(spec, plan, choices, (2, "highest")) == fast


Seconds = dict[int, float]


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the batches that were tried, whose seconds are `answered.seconds`."""

    class Tried(list[int]):
        seconds: Seconds

    tried = Tried()
    monkeypatch.setattr(trial, "answers", lambda *given: tried.append)
    monkeypatch.setattr(trial, "seconds_of", lambda answer, steps: tried.seconds[tried[-1]])
    return tried


@pytest.mark.parametrize(
    ("seconds", "room", "best"),
    [
        ({256: 1.0, 1024: 2.0, 4096: 6.0}, 10**9, 4096),  # of a batch
        ({256: 1.0, 1024: 2.0, 4096: 40.0}, 10**9, 1024),
        ({256: 1.0, 1024: 2.0, 4096: 7.5}, 10**9, 1024),  # chance
        ({256: 1.0, 1024: 3.7, 4096: 6.0}, 10**9, 256),  # no larger one is tried then
        ({256: 1.0, 1024: 2.0}, 275_000_000, 1024),  # what 4,096 write does not fit
        ({}, None, 256),
    ],
)
def test_a_batch_of_evaluation_is_as_large_as_is_fast_and_fits(
    answered: Any, seconds: Seconds, room: int | None, best: int
) -> None:
    spec, plan, choices = job(LARGE)
    answered.seconds = seconds
    assert trial.best_at_once(spec, plan, choices, room) == best


def test_what_fits_is_told_of_small_splits_too() -> None:
    """The plan's evaluation is of as many samples then, not of 256."""
    spec, plan, _ = job(LARGE.replace("mnist", "synthetic, samples: 100"))
    facts = spec.data.facts()
    evaluated = max(facts.validation, facts.test)
    assert evaluated < 256
    room = plan.memory.total - plan.memory.activations + 2 * 1024 * plan.memory.evaluation // evaluated
    assert trial.fits(1024, spec, plan, room + 1000)
    assert not trial.fits(1024, spec, plan, room - 1000)


def test_no_job_fails_of_a_batch_that_was_only_tried(answered: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, plan, choices = job(LARGE)
    for seconds, best in (({256: 1.0, 1024: 2.0}, 1024), ({256: 1.0}, 256), ({}, 256)):
        answered.seconds = seconds  # a KeyError beyond
        assert trial.best_at_once(spec, plan, choices, 10**9) == best
    monkeypatch.undo()
    cuda = choices.model_copy(update={"device": "cuda"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert trial.best_at_once(spec, plan, cuda, 10**9) == 256  # the job will say that there is none


def test_batches_are_not_tried_where_nobody_knows_or_wants_them(answered: Any) -> None:
    answered.seconds = {256: 1.0, 1024: 2.0, 4096: 6.0}
    spec, plan, choices = job(LARGE)
    fixed = parse_spec({**spec.model_dump(mode="json"), "tuning": {"batches": "fixed"}})
    assert trial.best_at_once(fixed, plan, choices, 10**9) == 256
    text = LARGE.replace("model: {type: mlp, hidden: [1200, 1200], dropout: 0.5}", ONNX)
    spec, plan, choices = job(text)
    assert trial.best_at_once(spec, plan, choices, 10**9) == 256
    assert answered == []


def test_an_attempt_with_less_memory_takes_the_usual_batch() -> None:
    spec, plan, choices = job(LARGE)
    many = choices.model_copy(update={"at_once": 4096})
    assert trial.fitting(many, spec, plan, 10**9) == many
    assert trial.fitting(many, spec, plan, 275_000_000).at_once == 256
    assert trial.fitting(choices, spec, plan, 0) == choices


def test_answers_are_made_without_gradients_and_chance_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, bool, bool]] = []
    original = MLP.views

    def watched(self: MLP, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        if len(inputs) > 1:  # one: a look at its shapes
            asked.append((len(inputs), self.training, torch.is_grad_enabled()))
        return original(self, inputs)

    monkeypatch.setattr(MLP, "views", watched)
    monkeypatch.setattr(trial, "WORTH_LEAVING", 0.0)
    spec, plan, choices = job(LARGE)
    before = torch.get_rng_state()
    assert trial.best_at_once(spec, plan, choices, 10**9) == 4096
    assert set(asked) == {(size, False, False) for size in trial.AT_ONCE}
    assert torch.equal(torch.get_rng_state(), before)


def test_a_gpu_tries_batches_and_a_cpu_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    spec, plan, choices = job(LARGE, cores=1)
    monkeypatch.setattr(trial, "best_at_once", lambda *given: 1024)
    monkeypatch.setattr(trial, "step_seconds", lambda *given: dict.fromkeys(given[3], 1.0))
    assert trial.measured(spec, plan, choices, 1).at_once == 256
    assert trial.measured(spec, plan, choices.model_copy(update={"device": "cuda"}), 1).at_once == 1024


def test_evaluations_and_teachers_see_as_many_at_once_as_were_chosen(
    light: Any, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: set[int] = set()
    original = MLP.views

    def watched(self: MLP, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        if not torch.is_grad_enabled() and len(inputs) > 1:
            asked.add(len(inputs))
        return original(self, inputs)

    monkeypatch.setattr(MLP, "views", watched)
    del tiny["stages"][0]["augment"]
    light(tiny, choices=choose_here(parse_spec(tiny)).model_copy(update={"at_once": 100}))
    assert asked == {100, 44}  # of 200 training samples, and of 144 to validate on


def test_how_much_slower_bf16_is(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = {torch.bfloat16: iter([9.0, 6.0, 90.0]), torch.float32: iter([3.0, 3.0, 3.0])}

    def told(way: Callable[[], torch.Tensor], steps: int) -> float:
        return next(taken[way().dtype])

    monkeypatch.setattr(trial, "seconds_of", told)
    before = torch.get_rng_state()
    assert trial.half_times() == 3.0
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("precision", "times", "said"),
    [("bf16", 14.04, [{"precision": "bf16", "times": 14.0}]), ("bf16", 1.4, []), ("float32", 14.04, [])],
)
def test_a_processor_that_is_slow_at_bf16_is_told_of(
    light: Any, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch, precision: str, times: float, said: list[Any]
) -> None:
    monkeypatch.setattr(opening, "half_times", lambda: times)
    _, reporter = light({**tiny, "precision": precision})
    assert [data for kind, data in reporter.events if kind == "slow_precision"] == said
    resumed = reporter.checkpoints[-1].path
    _, reporter = light({**tiny, "precision": precision}, resume=resumed)
    assert "slow_precision" not in dict(reporter.events)  # said once
    monkeypatch.setattr(opening, "cpu_name", lambda: "another")
    _, reporter = light({**tiny, "precision": precision}, resume=resumed)
    assert [data for kind, data in reporter.events if kind == "slow_precision"] == said
