"""The plan: counts by hand, torch's own FLOP counter, every error that shapes can show, and its speed."""

import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from kdcore.config import MAX_ERRORS, SpecError
from kdcore.models import CNNConfig, MLPConfig, MobileNetV2Config, ResNetConfig, TorchvisionConfig
from kdcore.plan import Plan, make_plan
from kdcore.spec import parse_spec
from kdcore.stages import list_stages
from tests.calls import calls
from tests.speed import SPEED

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))
BASE: dict[str, Any] = {
    "data": {"type": "digits"},  # 1293 training samples of 1x8x8
    "teachers": [{"model": {"type": "mlp", "hidden": [32]}}],
    "student": {"model": {"type": "mlp", "hidden": [8]}},
}

DEEP: dict[str, Any] = {
    "teachers": [{"model": {"type": "cnn", "channels": [16, 16, 16]}}],
    "student": {"model": {"type": "cnn", "channels": [8, 8, 8]}},
}

MEASURED = """
import sys
from pathlib import Path
from kdcore import train
from kdcore.plan import make_plan
from kdcore.reporter import RecordingReporter
from kdcore.spec import parse_spec

def grow(width):
    stages = [{"epochs": 3}, {"epochs": 3}]
    spec = parse_spec({
        "data": {"type": "digits", "train_samples": 64},
        "teachers": [{"model": {"type": "mlp", "hidden": [width, width]}, "train": {"epochs": 3}}],
        "student": {"model": {"type": "mlp", "hidden": [width, width]}}, "stages": stages, "export": {"int8": True},
    })
    train.run(spec, data_root=Path(sys.argv[1]), out=Path(sys.argv[1]), reporter=RecordingReporter(), download=False)
    (peak,) = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
    return make_plan(spec).memory.total, int(peak) * 1024

if sys.argv[2] == "training":
    train.finish = lambda job, out: {}
_, before = grow(8)
planned, after = grow(2048)
print(after - before, planned)
"""


def plan(**changes: Any) -> Plan:
    return make_plan(parse_spec({**BASE, **changes}))


def errors(**changes: Any) -> list[tuple[tuple[str | int, ...], str]]:
    with pytest.raises(SpecError) as caught:
        plan(**changes)
    return caught.value.errors


def test_models_by_hand() -> None:
    planned = plan()
    student = planned.student
    assert student.parameters == 64 * 8 + 8 + 8 * 10 + 10 == 610
    assert student.flops == 2 * (64 * 8 + 8 * 10) == 1184  # two per multiply-add, biases not counted
    assert student.bytes == 2440
    assert [(layer.name, layer.shape) for layer in student.layers] == [("hidden_1", [8]), ("logits", [10])]
    (teacher,) = planned.teachers
    assert teacher.parameters == 64 * 32 + 32 + 32 * 10 + 10 == 2410
    assert planned.compression.parameters == 2410 / 610
    assert planned.compression.flops == 4736 / 1184
    assert planned.compression.bytes == 2410 / 610


def test_steps_by_hand() -> None:
    planned = plan(stages=[{"epochs": 3, "batch_size": 100}, {"epochs": 2, "batch_size": 1293}])
    assert [(s.name, s.epochs, s.steps_per_epoch, s.steps, s.batch_size) for s in planned.stages] == [
        ("teacher-1", 10, 21, 210, 64),  # 1293 / 64 = 20.2: the last partial batch is kept
        ("baseline-1", 3, 13, 39, 100),
        ("baseline-2", 2, 1, 2, 1293),
        ("distill-1", 3, 13, 39, 100),
        ("distill-2", 2, 1, 2, 1293),
    ]
    assert {stage.samples for stage in planned.stages} == {1293}
    assert planned.total_steps == 292


def test_training_flops_by_hand() -> None:
    teacher, student = 4736, 1184
    # The backward pass counts twice; distillation also runs the teacher forward, where its answers are kept once.
    once = 3 * teacher + 3 * student + 3 * student
    assert plan().training_flops == (once + teacher // 10) * 1293 * 10
    assert plan(keep_targets=False).training_flops == (once + teacher) * 1293 * 10
    alone = plan(baseline=False, stages=[{"losses": [{"type": "cross_entropy"}]}])
    assert alone.training_flops == (3 * teacher + 3 * student) * 1293 * 10


def test_a_peer_is_counted() -> None:
    peer = {"type": "mlp", "hidden": [32]}
    losses = [{"type": "cross_entropy"}, {"type": "mutual", "peer": peer}]
    found, without = (plan(teachers=[], baseline=False, stages=[{"losses": each}]) for each in (losses, losses[:1]))
    assert found.stages[0].losses[1].flops == 4736
    assert found.training_flops - without.training_flops == 3 * 4736 * 1293 * 10
    assert found.memory.per_sample > without.memory.per_sample


def test_memory_by_hand() -> None:
    memory = plan().memory
    assert memory.weights == 4 * (2410 + 610)
    assert memory.optimizer == 5 * 4 * 2410  # gradients, two holes and Adam's two averages, of the teacher
    assert memory.data == 1797 * (64 + 8)
    assert memory.copies == 4 * (2410 + 4 * 610)
    assert memory.total == memory.weights + memory.copies + memory.optimizer + memory.activations + memory.data
    # Input, each linear output, each relu output, flattening and transposing writing nothing: of the teacher alone
    # for the 256 samples of an evaluation, or of teacher and student together for a batch of training.
    assert memory.activations == 256 * 4 * (64 + 2 * 32 + 10)
    together = plan(stages=[{"batch_size": 1000}]).memory
    assert together.activations == 1000 * 4 * ((64 + 2 * 32 + 10) + (64 + 2 * 8 + 10))
    sgd = {"optimizer": {"type": "sgd", "momentum": 0.0}}
    lean = plan(teachers=[{"model": {"type": "mlp", "hidden": [32]}, "train": sgd}], stages=[sgd])
    assert lean.memory.optimizer == 3 * 4 * 2410


def test_memory_counts_what_a_loss_has_of_its_own() -> None:
    bank = [{"type": "cross_entropy"}, {"type": "contrastive", "width": 16}]
    before, after = plan(), plan(stages=[{"losses": bank}])
    (_, term) = after.stages[-1].losses
    layers = (
        {layer.name: math.prod(layer.shape) for layer in after.student.layers},
        {layer.name: math.prod(layer.shape) for layer in after.teachers[0].layers},
    )
    ((ours, theirs),) = term.layers
    assert term.parameters == (layers[0][ours] + 1 + layers[1][theirs] + 1) * 16
    assert term.buffers == 1293 * (2 * 16 * 4 + 8) + 2 * 4  # two banks, each sample's class, two scales
    assert after.memory.weights - before.memory.weights == 4 * term.parameters + term.buffers
    large = plan(stages=[{"losses": [bank[0], {"type": "contrastive", "width": 1000}]}])
    learned = large.stages[-1].losses[1].parameters
    assert large.memory.optimizer == 5 * 4 * (610 + learned)


def test_a_larger_batch_needs_more_memory() -> None:
    small, large = (plan(stages=[{"batch_size": size}]).memory for size in (320, 1280))
    assert large.activations == 4 * small.activations


@pytest.mark.parametrize(
    "config",
    [
        MLPConfig(hidden=[1200, 1200], dropout=0.5),
        CNNConfig(channels=[64, 128], kernel_size=5, hidden=[1024]),
        CNNConfig(channels=[8, 8, 8], pool="avg", batch_norm=True, activation="gelu"),
        CNNConfig(channels=[4], pool="none", hidden=[]),
        ResNetConfig(depth=20),
        MobileNetV2Config(),
        TorchvisionConfig(name="densenet121"),
        TorchvisionConfig(name="efficientnet_b0"),
    ],
    ids=lambda config: getattr(config, "name", config.type),
)
def test_counts_are_those_of_the_real_model(config: Any) -> None:
    planned = plan(data={"type": "cifar10"}, student={"model": config.model_dump(mode="json")}).student
    network = config.build((3, 32, 32), 10).eval()
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        views = network.views(torch.zeros(1, 3, 32, 32))
    assert [layer.name for layer in planned.layers] == list(views)
    assert planned.flops == counter.get_total_flops()
    assert planned.parameters == sum(parameter.numel() for parameter in network.parameters())
    assert [(layer.name, tuple(layer.shape)) for layer in planned.layers] == [
        (name, tuple(view.shape[1:])) for name, view in views.items()
    ]


def test_a_recurrent_network_s_counts_are_those_of_each_place() -> None:
    """Its operations repeat at every place: each is worked out once and counted as often as it is there."""
    student = {"model": {"type": "lstm", "embedding": 8, "hidden": 16}}
    found = [
        plan(data={"type": "sst2", "vocabulary": 100, "length": length}, teachers=[student], student=student).student
        for length in (8, 32)
    ]
    place = 2 * (8 + 16) * 4 * 16
    assert found[1].flops - found[0].flops == 24 * place


def test_peers_are_few_enough_to_be_planned() -> None:
    peers = [{"type": "mutual", "peer": {"type": "mlp", "hidden": [4]}}] * 9
    stages = [{"losses": peers}] * 2
    found = errors(stages=stages)
    assert [loc for loc, _ in found] == [("stages", 1, "losses", 7, "peer"), ("stages", 1, "losses", 8, "peer")]


UPLOADED = [path for path in EXAMPLES if path.stem.startswith("upload")]
"""Only what the check of their file found makes a plan of them: tests/docs/test_methods.py."""


@pytest.mark.parametrize("path", [path for path in EXAMPLES if path not in UPLOADED], ids=lambda path: path.stem)
def test_examples_plan_without_warnings_and_quickly(path: Path) -> None:
    spec = parse_spec(path.read_text(), SPEED)
    planned = make_plan(spec)
    known = ("digits-born-again", "folder-onnx")  # a student as large as its teacher; a teacher of unknown size
    assert planned.warnings == [] or path.stem in known
    assert [stage.name for stage in planned.stages] == [stage.name for stage in list_stages(spec)]
    assert Plan.model_validate_json(planned.model_dump_json()) == planned
    # A million calls are half a second. Of MLPs and plain CNNs it takes a tenth; these two are the deepest.
    deepest = path.stem in ("folder-torchvision", "folder-timm")
    assert calls(lambda: make_plan(spec)) < (1_000_000 if deepest else 500_000)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells a process's peak")
@pytest.mark.parametrize("what", ["training", "training and files"])
def test_the_memory_is_an_estimate_from_above(tmp_path: Path, what: str) -> None:
    found = subprocess.run(
        [sys.executable, "-c", MEASURED, str(tmp_path), what],
        capture_output=True, text=True, timeout=300, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    grown, planned = map(int, found.stdout.split())
    assert planned / 2 < grown < planned


def test_the_largest_model_is_refused_within_bounds_and_takes_no_memory() -> None:
    huge = {"type": "cnn", "channels": [8192] * 64, "kernel_size": 7, "pool": "none", "hidden": [65536] * 64}
    terms = [{"losses": [{"type": "kd"}] * 32}] * 100
    ((loc, said),) = errors(data={"type": "cifar10"}, teachers=[{"model": huge}], stages=terms)
    work = calls(lambda: errors(data={"type": "cifar10"}, teachers=[{"model": huge}], stages=terms))
    assert work < 2_500_000  # half a second's
    assert loc == ("teachers", 0, "model")
    assert "more than an ONNX file can hold (2 GiB)" in said


def test_the_largest_that_can_be_exported_is_planned() -> None:
    model = {"type": "mlp", "hidden": [22_000, 22_000]}
    assert plan(teachers=[{"model": model}]).teachers[0].bytes < 2**31
    ((loc, _),) = errors(teachers=[{"model": {**model, "hidden": [24_000, 24_000]}}])
    assert loc == ("teachers", 0, "model")


def test_many_errors_are_bounded() -> None:
    losses = [{"type": "kd", "teacher_layer": "fc"}] * 32
    assert len(errors(stages=[{"losses": losses}] * 100)) == MAX_ERRORS


def test_plans_in_threads_do_not_disturb_each_other() -> None:
    specs = [parse_spec({**BASE, "student": {"model": {"type": "cnn", "channels": [n]}}}) for n in range(1, 9)]
    expected = [make_plan(spec) for spec in specs]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(make_plan, specs * 4)) == expected * 4


def test_a_plan_leaves_the_generator_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    plan()
    assert torch.equal(torch.get_rng_state(), before)


CASES: list[tuple[dict[str, Any], tuple[str | int, ...], str]] = [
    (
        {"student": {"model": {"type": "cnn", "channels": [8] * 4}}},
        ("student", "model", "channels"),
        "4 poolings shrink 8x8 below 1x1; use at most 3",
    ),
    (
        {"teachers": [{"model": {"type": "cnn", "channels": [8] * 4}}]},
        ("teachers", 0, "model", "channels"),
        "below 1x1",
    ),
    (
        {"teachers": [{"model": {"type": "mlp", "classes": 100}}]},
        ("teachers", 0, "model", "classes"),
        "the model has 100 classes, the data has 10; leave `classes` out",
    ),
    ({"student": {"model": {"type": "mlp", "classes": 9}}}, ("student", "model", "classes"), "has 9 classes"),
    (
        {"stages": [{}, {"losses": [{"type": "cross_entropy"}, {"type": "kd", "teacher_layer": "fc"}]}]},
        ("stages", 1, "losses", 1, "teacher_layer"),
        "the teacher has no layer 'fc'; it has 'hidden_1', 'logits'",
    ),
    (
        {"stages": [{"losses": [{"type": "kd", "teacher_layer": "hidden_1"}]}]},
        ("stages", 0, "losses", 0, "teacher_layer"),
        "the student's 'logits' has 10 classes, the teacher's 'hidden_1' has 32",
    ),
    (
        {"stages": [{"losses": [{"type": "cross_entropy", "student_layer": "hidden_1"}]}]},
        ("stages", 0, "losses", 0, "student_layer"),
        "'hidden_1' has 8 outputs, the data has 10 classes",
    ),
    (
        {"stages": [{"batch_size": 1294}]},
        ("stages", 0, "batch_size"),
        "more than the 1293 training samples; use at most",
    ),
    (
        {"teachers": [{"model": {"type": "mlp", "hidden": [32]}, "train": {"batch_size": 2000}}]},
        ("teachers", 0, "train", "batch_size"),
        "more than the 1293 training samples",
    ),
    ({"data": {"type": "digits", "validation": 1437}}, ("data", "validation"), "leaves no training sample of 1437"),
    ({"data": {"type": "digits", "train_samples": 2000}}, ("data", "train_samples"), "ask for at most 1293"),
    ({"stages": [{"losses": [{"type": "kd", "weight": 0}]}]}, ("stages", 0, "losses"), "nothing would train"),
    ({"stages": [{"augment": {"crop": 8}}]}, ("stages", 0, "augment", "crop"), "push the whole 8-pixel image out"),
]


@pytest.mark.parametrize(("changes", "loc", "message"), CASES, ids=[".".join(map(str, case[1])) for case in CASES])
def test_what_only_the_plan_sees(changes: dict[str, Any], loc: tuple[str | int, ...], message: str) -> None:
    ((found, said),) = errors(**changes)
    assert found == loc
    assert message in said


def test_all_errors_are_collected() -> None:
    found = errors(
        student={"model": {"type": "cnn", "channels": [1] * 9}},
        teachers=[{"model": {"type": "mlp", "classes": 4}, "train": {"batch_size": 5000}}],
        stages=[{"batch_size": 5000}, {"losses": [{"type": "kd", "weight": 0}]}],
    )
    assert [loc for loc, _ in found] == [
        ("teachers", 0, "model", "classes"),
        ("student", "model", "channels"),
        ("teachers", 0, "train", "batch_size"),
        ("stages", 0, "batch_size"),
        ("stages", 1, "losses"),
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"student": {"model": {"type": "mlp", "hidden": [64]}}}, "is not smaller than the teacher"),
        ({"stages": [{"losses": [{"type": "cross_entropy"}]}]}, "no stage learns from the teacher"),
        ({"stages": [{"losses": [{"type": "cross_entropy"}, {"type": "kd", "weight": 0}]}]}, "no stage learns"),
        (
            {"stages": [{"batch_size": 400, "losses": [{"type": "kd"}, {"type": "rkd_angle"}]}]},
            "distill-1: rkd_angle makes 64,000,000 comparisons in each step of batch_size 400",
        ),
        (
            {"data": {"type": "mnist"}, "stages": [{"batch_size": 400, "losses": [{"type": "contrastive"}]}]},
            "contrastive makes 43,200,000 comparisons in each step of batch_size 400",  # 2 · 400 · 54,000
        ),
        (
            {**DEEP, "stages": [{"batch_size": 1200, "losses": [{"type": "multi_head_graph", "heads": 8}]}]},
            "multi_head_graph makes 46,080,000 comparisons in each step",  # 2 sides · 2 pairs of 3 layers · 8 · 1200²
        ),
        ({"stages": [{"schedule": {"type": "cosine", "warmup_epochs": 10}}]}, "distill-1: the warm-up of 10 epochs"),
        ({"stages": [{"schedule": {"type": "step", "milestones": [5, 10]}}]}, "milestone 10 is never reached"),
        (
            {"data": {"type": "mnist"}, "limits": {"max_memory": "64MiB"}, "stages": [{"batch_size": 50_000}]},
            "limits.max_memory allows 64 MiB",
        ),
    ],
)
def test_warnings(changes: dict[str, Any], message: str) -> None:
    (said,) = plan(**changes).warnings
    assert message in said


def test_what_is_compared_at_once_takes_memory() -> None:
    """A similarity of each two samples of the batch is held, angles of three are worked out in chunks."""
    label = {"type": "cross_entropy"}
    alone, pairs, triples = (
        plan(stages=[{"batch_size": 1000, "losses": [label, *terms]}])
        for terms in ([], [{"type": "rkd_distance"}], [{"type": "rkd_angle"}])
    )
    assert pairs.stages[-1].losses[1].held == 1000**2
    assert (triples.stages[-1].losses[1].held, triples.stages[-1].losses[1].comparisons) == (0, 1000**3)
    read = 1000 * 4 * (64 + 2 * 32 + 10)  # the teacher's views, which the labels alone do not need
    assert pairs.memory.activations == alone.memory.activations + read + 16 * 1000**2
    assert triples.memory.activations == alone.memory.activations + read
