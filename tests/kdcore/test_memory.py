"""Out of memory: the arithmetic, what is recognised as such, and a batch size that really fits."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from kdcore import export, job, memory, train
from kdcore.data import DataError
from kdcore.errors import TrainingError, data_errors, memory_errors
from kdcore.memory import MIB, Need, cgroup_limit, room_here
from kdcore.plan import make_plan
from kdcore.spec import parse_spec

from .conftest import Train

NEED = Need(
    {"the models": 10 * MIB, "the optimizer's state": 20 * MIB, "the data": 2 * MIB,
     "evaluating 256 samples at a time": 8 * MIB}, 2 * MIB, 0,
)  # fmt: skip


@pytest.mark.parametrize(
    ("room", "largest"),
    [(32 * MIB, 0), (39 * MIB, 0), (40 * MIB, 2), (32 * MIB + 96 * MIB, 32), (32 * MIB + 95 * MIB, 31), (-1, 0)],
)
def test_the_largest_batch_by_hand(room: int, largest: int) -> None:
    assert NEED.largest_batch(room) == largest  # a sample counts 1.5 times: 3 MiB; evaluation needs its 8 MiB first


@pytest.mark.parametrize(
    ("batch_size", "room", "said"),
    [
        (1000, 32 * MIB + 3 * 100 * MIB, "batch_size 64 would fit"),  # 100 would, rounded down
        (64, 32 * MIB + 3 * 100 * MIB, "batch_size 32 would fit"),  # 64 has just not fitted, whatever the plan says
        (100, None, "batch_size 32 needs about half"),
        (1, None, "use a smaller model, or more memory"),
        (1000, 39 * MIB, "not even batch_size 1 is sure to fit: 39 MiB are there for it, the optimizer's state alone "
         "may need 20 MiB; use a smaller model, or more memory"),
        (1000, -5, "0 MiB are there"),
        (1, 2**40, "not even batch_size 1"),
    ],
)  # fmt: skip
def test_the_advice(batch_size: int, room: int | None, said: str) -> None:
    assert said in NEED.advise(batch_size, room)


def test_a_single_sample_may_be_what_is_too_big() -> None:
    need = Need({"the models": MIB, "evaluating 256 samples at a time": 0}, 500 * MIB, 0)
    assert "a single sample alone may need 750 MiB" in need.advise(64, 100 * MIB)


def test_a_plan_becomes_a_need_and_one_of_an_earlier_version_as_well() -> None:
    plan = make_plan(parse_spec({
        "data": {"type": "digits"}, "teachers": [{"model": {"type": "mlp", "hidden": [32]}}],
        "student": {"model": {"type": "mlp", "hidden": [8]}},
    })).memory  # fmt: skip
    here, there = Need.of(plan.model_dump(), "cpu"), Need.of(plan.model_dump(), "cuda")
    assert plan.per_sample == 4 * ((64 + 2 * 32 + 10) + (64 + 2 * 8 + 10))
    assert plan.evaluation == 256 * 4 * (64 + 2 * 32 + 10) == plan.activations
    assert (here.total, there.total) == (plan.total, plan.total - plan.copies)
    assert here.parts["the models"] - there.parts["the models"] == plan.copies
    old = plan.model_dump(exclude={"per_sample", "evaluation"})
    assert "batch_size 32 needs about half" in Need.of(old, "cpu").advise(64, 2**30)


CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of …")
OUT = [
    CUDA,
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: …"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("std::bad_alloc"),
    OSError(12, "Cannot allocate memory"),
]


@pytest.mark.parametrize("error", OUT, ids=lambda error: f"{type(error).__name__}-{str(error)[-20:]}")
def test_what_says_that_memory_ran_out_is_the_users(error: Exception) -> None:
    with pytest.raises(TrainingError) as caught, memory_errors("stage 'x' with batch_size 8", lambda: "do this"):
        raise error
    assert (caught.value.kind, caught.value.code) == ("user", "out_of_memory")
    assert caught.value.message == "stage 'x' with batch_size 8 ran out of memory; do this"
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", [RuntimeError("shape mismatch"), OSError(28, "No space left"), DataError("bad")])
def test_other_errors_pass(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, memory_errors("here", lambda: "never asked"):
        raise error
    assert caught.value is error


def test_real_torch_and_numpy_say_it_so() -> None:
    import numpy

    for allocate in (lambda: torch.empty(2**58), lambda: numpy.empty(2**58)):
        with pytest.raises(TrainingError), memory_errors("here", lambda: "less"):
            allocate()


def test_what_the_step_held_is_free_again_when_advice_is_asked_for() -> None:
    class Held:
        alive = 0

        def __init__(self) -> None:
            Held.alive += 1

        def __del__(self) -> None:
            Held.alive -= 1

    def step() -> None:
        kept = Held()
        assert kept is not None
        raise CUDA

    with pytest.raises(TrainingError, match="0 held"), memory_errors("here", lambda: f"{Held.alive} held"):
        step()


def test_out_of_memory_while_data_is_read_is_not_bad_data() -> None:
    with pytest.raises(TrainingError) as caught, memory_errors("reading the data", lambda: "less"), data_errors():
        raise OSError(12, "Cannot allocate memory")
    assert caught.value.code == "out_of_memory"


def test_out_of_memory_in_an_export_is_not_tried_again() -> None:
    with pytest.raises(TrainingError) as caught, memory_errors("export", lambda: "less"), export.quiet("torch.onnx"):
        raise MemoryError
    assert (caught.value.code, caught.value.kind) == ("out_of_memory", "user")


def test_a_stage_on_a_gpu_that_is_full_names_a_batch_size(
    tiny: dict[str, Any], light: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise CUDA

    monkeypatch.setattr(train, "train_epoch", full)
    monkeypatch.setattr("kdcore.opening.room_here", lambda _: 2**30)
    with pytest.raises(TrainingError) as caught:
        light(tiny)
    expected = "stage 'teacher-1' with batch_size 48 ran out of memory; batch_size 16 would fit"
    assert (caught.value.kind, caught.value.message) == ("user", expected)


def test_the_least_of_all_limits_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plenty, limited = room_here(None), room_here(2**31)
    if plenty is None or limited is None:
        pytest.skip("only Linux tells a process's size")
    assert limited <= 2**31
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    mine = memory._sizes(Path("/proc/self/status"), "VmSize")["VmSize"]
    try:
        resource.setrlimit(resource.RLIMIT_AS, (mine + 768 * MIB, hard))
        room = room_here(None)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert room is not None
    assert 240 * MIB < room <= 256 * MIB  # 512 MiB are kept for what comes after training


def test_the_limit_of_a_container_is_found_in_both_versions(tmp_path: Path) -> None:
    own = tmp_path / "own"
    new, old = tmp_path / "new", tmp_path / "old"
    (new / "a" / "b").mkdir(parents=True)
    own.write_text("0::/a/b\n")
    assert cgroup_limit(new, own) is None
    (new / "a" / "b" / "memory.max").write_text("max\n")
    (new / "a" / "memory.max").write_text("1000\n")
    assert cgroup_limit(new, own) == 1000
    (old / "memory").mkdir(parents=True)
    (old / "memory" / "memory.limit_in_bytes").write_text("2000\n")  # seen from inside, where the path leads nowhere
    own.write_text("5:memory:/docker/123\n3:cpu:/\n0::/\n")
    assert cgroup_limit(old, own) == 2000
    (old / "memory" / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert cgroup_limit(old, own) is None
    assert cgroup_limit(old, tmp_path / "none") is None


LIMITED = """
import json, resource, sys
from pathlib import Path
from kdcore.__main__ import main
(size,) = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmSize")]
limit = int(size) * 1024 + int(sys.argv[1]) * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells a process's size")
@pytest.mark.timeout(400)
def test_the_batch_size_that_is_named_fits_under_the_same_limit(tmp_path: Path) -> None:
    def run(batch_size: int) -> subprocess.CompletedProcess[str]:
        stage = {"epochs": 1, "batch_size": batch_size}
        spec = {
            "data": {"type": "digits"}, "teachers": [{"model": {"type": "mlp", "hidden": [65536]}, "train": stage}],
            "student": {"model": {"type": "mlp", "hidden": [8]}}, "stages": [{"epochs": 1}], "baseline": False,
        }  # fmt: skip
        (tmp_path / "job.yaml").write_text(json.dumps(spec))
        command = [str(tmp_path / "job.yaml"), "--out", str(tmp_path / f"out-{batch_size}"), "--device", "cpu"]
        return subprocess.run(
            [sys.executable, "-c", LIMITED, "985", *command],
            capture_output=True, text=True, timeout=180, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    greedy = run(1293)
    assert greedy.returncode == 1, greedy.stderr
    said = greedy.stderr.strip().splitlines()[-1]
    assert said.startswith("failed (out_of_memory): stage 'teacher-1' with batch_size 1293 ran out of memory; ")
    named = int(said.removesuffix(" would fit").rsplit(" ", 1)[1])
    assert named >= 64  # the advice is no joke
    modest = run(named)
    assert modest.returncode == 0, modest.stderr


@pytest.mark.parametrize("kept", [0, 2**30])
def test_what_a_large_evaluation_took_is_given_back(
    light: Train, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    """Or it would come on top of what the next steps need, whose blocks have other sizes."""
    done: list[str] = []
    predict = job.predict

    def noted(*given: Any) -> torch.Tensor:
        done.append("evaluated")
        return predict(*given)

    monkeypatch.setattr(job, "KEPT", kept)
    monkeypatch.setattr(job, "predict", noted)
    monkeypatch.setattr(job, "give_back", lambda: done.append("gave back"))
    light(tiny)
    assert len(done) >= 4
    assert done == ["evaluated"] * len(done) if kept else ["evaluated", "gave back"] * (len(done) // 2)
