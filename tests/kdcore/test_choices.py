"""Choices: one rule, stored, applied."""

import os
from collections.abc import Iterator

import pytest
import torch

from kdcore import choices as module
from kdcore.choices import Choices, apply, choose, cpu_name, is_exact
from kdcore.plan import make_plan
from kdcore.spec import parse_spec

TINY = "{data: {type: digits}, teachers: [{model: {type: mlp}}], student: {model: {type: mlp, hidden: [8]}}}"
MIDDLE = (
    "{data: {type: mnist}, teachers: [{model: {type: mlp, hidden: [1200, 1200]}, train: {batch_size: 320}}],"
    " student: {model: {type: mlp}}, stages: [{batch_size: 320}]}"
)
LARGE = (
    "{data: {type: cifar10}, precision: bf16, student: {model: {type: mlp}},"
    " teachers: [{model: {type: cnn, channels: [256, 256], hidden: [1024]}}]}"
)


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    precision = torch.get_float32_matmul_precision()
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)
    torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)


def chosen(text: str, **values: object) -> Choices:
    spec = parse_spec(text)
    return choose(spec, make_plan(spec), **{"device": "cpu", "cores": 8, **values})


def test_small_work_gets_one_thread_and_large_work_every_core() -> None:
    assert chosen(TINY).threads == 1
    assert chosen(LARGE).threads == 8
    assert chosen(MIDDLE).threads == 4  # 2·(784·1200 + 1200·1200 + 1200·10)·320 = 1.53e9: 1 + 3
    assert chosen(LARGE, cores=3).threads == 3
    assert chosen(LARGE, cores=0).threads == 1
    assert chosen(LARGE, device="cuda").threads == 1


def test_choices_say_what_can_change_bits() -> None:
    choices = chosen(LARGE)
    assert (choices.device, choices.precision, choices.deterministic) == ("cpu", "bf16", True)
    assert choices.torch == torch.__version__
    assert choices.cpu == cpu_name() != ""
    assert Choices.model_validate_json(choices.model_dump_json()) == choices
    assert chosen(LARGE) == choices


def test_apply_sets_this_process_up() -> None:
    apply(chosen(TINY).model_copy(update={"threads": 2}))
    assert torch.get_num_threads() == 2
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert torch.get_float32_matmul_precision() == chosen(TINY).products
    apply(chosen(TINY))
    assert torch.get_num_threads() == 1


def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setitem(os.environ, "CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    with pytest.raises(RuntimeError, match="no CUDA device"):
        apply(chosen(TINY, device="cuda"))


def test_products_that_are_less_exact_are_neither_chosen_nor_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor that computes `medium` in bfloat16."""
    assert is_exact("highest")
    fast = chosen(TINY).model_copy(update={"products": "medium"})
    monkeypatch.setattr(module, "LARGER_ERROR", 0.0)
    assert not is_exact("medium")
    assert chosen(TINY).products == "highest"
    apply(fast)
    assert torch.get_float32_matmul_precision() == "highest"
    assert chosen(TINY, device="cuda").products == "highest"


def test_looking_at_products_changes_nothing() -> None:
    torch.set_float32_matmul_precision("high")
    before = torch.get_rng_state()
    is_exact("medium")
    assert torch.get_float32_matmul_precision() == "high"
    assert torch.equal(torch.get_rng_state(), before)


def test_choices_of_an_earlier_version_are_slow_and_the_same() -> None:
    earlier = Choices.model_validate(chosen(TINY).model_dump(exclude={"products", "masks", "keep_bytes"}))
    assert (earlier.products, earlier.masks, earlier.keep_bytes) == ("highest", "torch", 0)
