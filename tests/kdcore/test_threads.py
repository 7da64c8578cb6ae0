"""Threads are chosen by what steps with them take."""

from typing import Any

import pytest
import torch

from kdcore import threads
from kdcore.choices import Choices, choose
from kdcore.plan import Plan, make_plan
from kdcore.spec import JobSpec, parse_spec

LARGE = (
    "{data: {type: mnist}, teachers: [{model: {type: mlp, hidden: [1200, 1200], dropout: 0.5}}],"
    " student: {model: {type: mlp, hidden: [8]}}}"
)
SMALL = "{data: {type: digits}, teachers: [{model: {type: mlp}}], student: {model: {type: mlp, hidden: [8]}}}"
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
    monkeypatch.setattr(threads, "step_seconds", lambda *given: seconds)
    spec, plan, choices = job(LARGE)
    assert threads.measured(spec, plan, choices, 8).threads == best


def test_a_batch_of_one_is_left_to_the_loop() -> None:
    """Batch normalisation refuses one sample, and the loop says what to do about it."""
    text = (
        "{data: {type: cifar10}, student: {model: {type: cnn, channels: [8]}}, stages: [{batch_size: 1}], teachers: ["
    )
    text += "{model: {type: resnet, form: imagenet, depth: 18}, train: {batch_size: 1, epochs: 1}}]}"
    spec, plan, choices = job(text)
    assert set(threads.step_seconds(spec, plan, choices, 2)) == {1, 2}


def test_nothing_is_measured_where_the_answer_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "step_seconds", None)  # would fail
    spec, plan, choices = job(SMALL)
    assert threads.measured(spec, plan, choices, 8).threads == 1
    spec, plan, choices = job(LARGE)
    assert threads.measured(spec, plan, choices, 1) == choices
    assert threads.measured(spec, plan, choices.model_copy(update={"device": "cuda"}), 8).threads == choices.threads
    pinned = parse_spec({**spec.model_dump(mode="json"), "tuning": {"threads": 3}})
    assert threads.measured(pinned, plan, choose(pinned, plan, device="cpu", cores=8), 8).threads == 3


def test_too_little_memory_to_try_is_left_to_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*given: Any) -> Any:
        raise error

    monkeypatch.setattr(threads, "step_seconds", fails)
    spec, plan, choices = job(LARGE)
    error: Exception = RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory")
    assert threads.measured(spec, plan, choices, 8) == choices
    error = RuntimeError("something else")
    with pytest.raises(RuntimeError, match="something else"):
        threads.measured(spec, plan, choices, 8)


@pytest.mark.parametrize("text", [LARGE, GIVEN], ids=["trained", "given"])
def test_steps_are_made_with_each_number_and_chance_is_left_alone(text: str) -> None:
    spec, plan, choices = job(text)
    before = torch.get_rng_state()
    seconds = threads.step_seconds(spec, plan, choices, 3)
    assert sorted(seconds) == [1, 2]
    assert all(0 < each < 60 for each in seconds.values())
    assert torch.equal(torch.get_rng_state(), before)
