"""Choices: one rule, stored, applied."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

from kdcore import choices as module
from kdcore.choices import ONE_THREAD_FLOPS, Choices, apply, can_compile, choose, cpu_name, is_exact, laid_out, steps_of
from kdcore.models import ModelConfig
from kdcore.opening import choose_here
from kdcore.plan import make_plan
from kdcore.recorder import Recorder
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
    is_exact.cache_clear()


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
    assert torch.get_float32_matmul_precision() == "medium" if is_exact("medium") else "highest"
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
    fast = chosen(TINY).model_copy(update={"products": "by_size"})
    monkeypatch.setattr(module, "LARGER_ERROR", 0.0)
    is_exact.cache_clear()
    assert not is_exact("medium")
    assert chosen(TINY).products == "highest"
    apply(fast)
    assert torch.get_float32_matmul_precision() == "highest"
    assert chosen(TINY, device="cuda").products == "highest"


def test_small_networks_train_with_the_products_that_begin_at_once(
    light: Any, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The teacher is large: its stage, and one in which it is asked in every step, have the others."""
    seen: dict[str, set[str]] = {}
    add = Recorder.add

    def watched(self: Recorder, *given: Any) -> None:
        seen.setdefault(self._stage, set()).add(torch.get_float32_matmul_precision())
        add(self, *given)

    monkeypatch.setattr(Recorder, "add", watched)
    tiny["teachers"][0]["model"]["hidden"] = [700]
    tiny["stages"].append({**tiny["stages"][0], "augment": {}})
    first = choose_here(parse_spec(tiny)).model_copy(update={"threads": 1, "products": "by_size"})
    light(tiny, choices=first)
    large = "medium" if is_exact("medium") else "highest"
    assert seen == {
        "teacher-1": {large}, "baseline-1": {"highest"}, "baseline-2": {"highest"}, "distill-1": {large},
        "distill-2": {"highest"},
    }  # fmt: skip
    assert torch.get_float32_matmul_precision() == large
    seen.clear()
    light(tiny, choices=first.model_copy(update={"products": "medium"}))  # of a job that began before
    assert set.union(*seen.values()) == {large}


def test_looking_at_products_changes_nothing() -> None:
    is_exact.cache_clear()
    torch.set_float32_matmul_precision("high")
    before = torch.get_rng_state()
    is_exact("medium")
    assert torch.get_float32_matmul_precision() == "high"
    assert torch.equal(torch.get_rng_state(), before)


def test_choices_of_an_earlier_version_are_slow_and_the_same() -> None:
    later = {"products", "masks", "channels_last", "trace_from", "compile_from", "keep_bytes", "one_thread_below"}
    earlier = Choices.model_validate(chosen(TINY).model_dump(exclude=later | {"at_once"}))
    plain = (earlier.products, earlier.masks, earlier.channels_last, earlier.keep_bytes)
    assert plain == ("highest", "torch", False, 0)
    assert (earlier.trace_from, earlier.compile_from) == (None, None)
    assert (earlier.one_thread_below, earlier.at_once) == (0, 256)


def test_maps_channel_by_channel_change_no_more_than_the_order_of_sums(light: Any, tiny: dict[str, Any]) -> None:
    tiny["student"]["model"] = tiny["teachers"][0]["model"] = {"type": "cnn", "channels": [4, 6], "batch_norm": True}
    tiny["stages"][0]["losses"].append({"type": "hint"})
    first = choose_here(parse_spec(tiny)).model_copy(update={"threads": 1})
    found = {}
    for last in (True, False):
        left, _ = light(tiny, choices=first.model_copy(update={"channels_last": last}))
        found[last] = left["models"]
    for name, weights in found[True].items():
        for key, value in weights.items():
            assert value.is_contiguous()
            assert torch.allclose(value, found[False][name][key], rtol=1e-3, atol=1e-4), (name, key)


SINGLE_PIXELS = """
data: {type: digits, train_samples: 200}
teachers: [{model: {type: mlp}, train: {epochs: 1}}]
student:
  model:
    type: sequential
    layers:
      - {type: conv2d, channels: 2, kernel: 3}
      - {type: conv2d, channels: 4, kernel: 1, stride: 2}
      - {type: flatten}
stages: [{epochs: 20}]
"""


def test_convolutions_that_onednn_would_spoil_keep_their_channels_apart(tmp_path: Path) -> None:
    """The process ended by a signal, here or there, its heap being damaged."""
    (tmp_path / "job.yaml").write_text(SINGLE_PIXELS)
    command = [sys.executable, "-m", "kdcore", str(tmp_path / "job.yaml"), "--out", str(tmp_path / "out")]
    done = subprocess.run([*command, "--device", "cpu"], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]

    choices = chosen(TINY)
    for channels, stride, kernel, apart in ((3, 2, 1, True), (16, 2, 1, False), (3, 1, 1, False), (3, 2, 3, False)):
        layer = {"type": "conv2d", "channels": 32, "kernel": kernel, "stride": stride}
        model = TypeAdapter(ModelConfig).validate_python({"type": "sequential", "layers": [layer, {"type": "flatten"}]})
        network = laid_out(model.build((channels, 8, 8), 3), choices)
        weight = next(each for name, each in network.named_parameters() if name.endswith("weight"))
        assert (weight.stride() == torch.empty(weight.shape).stride()) is apart


def test_steps_of_small_networks_are_made_by_one_thread() -> None:
    choices = chosen(TINY).model_copy(update={"threads": 3})
    apply(choices)
    for flops, threads in ((ONE_THREAD_FLOPS - 1, 1), (ONE_THREAD_FLOPS, 3)):
        with steps_of(choices, flops):
            assert torch.get_num_threads() == threads
        assert torch.get_num_threads() == 3, "evaluations have all of them"
    with steps_of(choices.model_copy(update={"one_thread_below": 0}), 1):
        assert torch.get_num_threads() == 3


def test_a_spec_switches_each_of_them_off() -> None:
    tuning = "tuning: {threads: 3, products: highest, masks: torch, layout: channels_first, compile: never}"
    plain = chosen(f"{{{tuning}, {TINY[1:]}")
    found = (plain.threads, plain.products, plain.masks, plain.channels_last, plain.trace_from, plain.compile_from)
    assert found == (3, "highest", "torch", False, None, None)
    assert plain.one_thread_below == 0, "so many threads are so many in every step"
    fast = chosen(TINY)
    assert (fast.masks, fast.channels_last, fast.trace_from) == ("words", True, 2_000)
    assert fast.compile_from == (100_000 if can_compile() else None)
    on_gpu = chosen(TINY, device="cuda")
    assert (on_gpu.threads, on_gpu.masks, on_gpu.channels_last) == (1, "torch", False)
    assert (on_gpu.trace_from, on_gpu.compile_from) == (None, None)
