"""Steps made of a trace: torch's calls one by one, the bytes of the loop's own steps; compiled, the same within
rounding, resumed to the same bytes; and left out where they cannot be."""

import copy
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor

from kdcore import choices as module
from kdcore import traced
from kdcore.choices import can_compile
from kdcore.compiled import LOSSES, CompiledStep
from kdcore.data import Places
from kdcore.losses import Batch, Context, LossConfig
from kdcore.models import MLPConfig, ModelConfig
from kdcore.optim import AdamConfig, AdamWConfig, SGDConfig
from kdcore.reporter import Interrupted, RecordingReporter
from kdcore.spec import parse_spec
from kdcore.state import Training
from kdcore.traced import TracedStep, refilled, tensors_of
from kdcore.train import find_gradients, make_step

ADAM = AdamConfig(lr=0.01)
OPTIMIZERS = [
    AdamConfig(weight_decay=0.1),
    AdamWConfig(lr=0.01, betas=(0.8, 0.9), eps=1e-3),
    SGDConfig(momentum=0, weight_decay=0),
    SGDConfig(momentum=0.9, weight_decay=0.1),
    SGDConfig(momentum=0.9, nesterov=True),
]
SPEC: dict[str, Any] = {
    "data": {"type": "digits", "validation": 100},
    "teachers": [{"model": {"type": "mlp", "hidden": [32]}, "train": {"epochs": 1}}],
    "student": {"model": {"type": "mlp", "hidden": [8]}},
    "stages": [
        {
            "epochs": 2,
            "batch_size": 48,
            "losses": [{"type": "cross_entropy", "weight": 0.5, "class_weights": "balanced"}, {"type": "kd"}],
        }
    ],
    "tuning": {"compile": "always"},
}
"""1,337 training samples: each epoch's last batch is of 41."""
needs_compiler = pytest.mark.skipif(not can_compile(), reason="there is no C++ compiler")


class Loop:
    """What `make_step` reads of a job."""

    @staticmethod
    def autocast() -> Any:
        return torch.autocast("cpu", enabled=False)


Way = Literal["loop", "traced", "compiled"]


def graph(training: Training, way: Way, reporter: RecordingReporter, graphs: list[Any]) -> Any:
    """What makes steps of eight samples; what would be compiled is called as it is, and noted."""

    def backend(graph: torch.fx.GraphModule, given: Sequence[Tensor]) -> Any:
        graphs.append(graph)
        return graph

    if way == "compiled":
        return CompiledStep(training, 8, reporter, Places(Path(), download=False), backend)
    find = partial(find_gradients, Loop(), training)  # type: ignore[arg-type]
    return TracedStep(training, 8, reporter, find) if way == "traced" else None


def steps(kind: str, config: Any, way: Way, **fields: Any) -> tuple[dict[str, Tensor], Tensor]:
    """Twelve steps on random numbers: the weights they leave, and each step's values."""
    task = {"mse": "regression", "logit_mse": "regression"}.get(kind, "classification")
    task = "multi_label" if kind.startswith("binary") else task
    torch.manual_seed(0)
    model = MLPConfig(hidden=[6]).build((4,), 3)
    shapes = {"hidden_1": (6,), "logits": (3,)}
    context = Context(student=shapes, teachers=[shapes], classes=3, task=task)  # type: ignore[arg-type]
    losses: list[LossConfig] = [TypeAdapter(LossConfig).validate_python({"type": kind, **fields}) for _ in range(3)]
    terms = torch.nn.ModuleList(loss.build(context) for loss in losses)
    training = Training(model, terms, config.build(model.parameters()), torch.device("cpu"))
    graphs: list[torch.fx.GraphModule] = []
    training.graph = graph(training, way, RecordingReporter(), graphs)
    found = []
    for step in range(12):
        inputs, said = torch.randn(8, 4), torch.randn(8, 3) * 3
        labels = torch.randint(3, (8,)) if task == "classification" else torch.rand(8, 3).round()
        seen = Batch({}, [{"logits": said}], labels, torch.arange(8), inputs, step / 4)
        weights, rate = [0.3, 0.1 * step, 0.7], 0.01 / (1 + step)
        values = training.graph(seen, weights, rate) if training.graph is not None else None
        assert (values is None) is (way == "loop")
        values = values or make_step(Loop(), training, seen, weights, rate, None)  # type: ignore[arg-type]
        found.append(torch.stack(values).detach())
    assert len(graphs) == (way == "compiled")  # one for all steps
    return {**model.state_dict(), **_state(training)}, torch.stack(found)


def _state(training: Training) -> dict[str, Tensor]:
    states = training.optimizer.state_dict()["state"]
    return {f"{at}/{name}": value for at, state in states.items() for name, value in state.items() if value is not None}


@pytest.mark.parametrize(
    ("kind", "config"),
    [*((kind, ADAM) for kind in sorted(LOSSES)), *(("kd", config) for config in OPTIMIZERS)],
    ids=lambda value: value if isinstance(value, str) else value.type,
)
def test_the_same_steps_as_the_loop(kind: str, config: Any) -> None:
    (found, values), (wanted, own) = steps(kind, config, "traced"), steps(kind, config, "loop")
    assert torch.equal(values, own)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)

    found, values = steps(kind, config, "compiled")
    assert torch.allclose(values, own, rtol=1e-5, atol=1e-6)
    for name in wanted:
        if config.type == "sgd" and config.momentum == 0 and name.endswith("momentum_buffer"):
            continue
        assert torch.allclose(found[name], wanted[name], rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize(
    ("kind", "fields"),
    [("cross_entropy", {"class_weights": [1, 2, 3]}), ("binary_cross_entropy", {"pos_weight": [1, 2, 3]})],
)
def test_a_loss_keeps_its_constants(kind: str, fields: Any) -> None:
    wanted, own = steps(kind, ADAM, "loop", **fields)
    assert not torch.allclose(own, steps(kind, ADAM, "loop")[1], rtol=1e-3)
    found, values = steps(kind, ADAM, "traced", **fields)
    assert torch.equal(values, own)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    found, values = steps(kind, ADAM, "compiled", **fields)
    assert torch.allclose(values, own, rtol=1e-5, atol=1e-6)
    assert all(torch.allclose(found[name], wanted[name], rtol=1e-4, atol=1e-6) for name in wanted)


@pytest.mark.parametrize("config", [AdamWConfig(weight_decay=0.1), SGDConfig(momentum=0.9, weight_decay=0.1)])
@pytest.mark.parametrize("view", ["hidden_1", "logits"])
def test_what_is_frozen_or_unused_stays_as_it_is(view: str, config: Any) -> None:
    """Decay, too, leaves alone what has no gradient. A step that leaves something unused is not compiled."""

    def stepped(way: Way) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model = MLPConfig(hidden=[6]).build((4,), 3)
        model.hidden[0].bias.requires_grad_(False)  # type: ignore[union-attr, index]
        shapes = {"hidden_1": (6,), "logits": (3,)}
        context = Context(student=shapes, teachers=[shapes], classes=3, task="classification")
        document = {"type": "logit_mse", "student_layer": view, "teacher_layer": view}  # hidden_1: the head is unused
        terms = torch.nn.ModuleList([TypeAdapter(LossConfig).validate_python(document).build(context)])
        training = Training(model, terms, config.build(model.parameters()), torch.device("cpu"))
        begun.update(copy.deepcopy(model.state_dict()))
        step = graph(training, way, reporter := RecordingReporter(), [])
        for _ in range(3):
            said = {view: torch.randn(8, *shapes[view])}
            seen = Batch({}, [said], torch.arange(8) % 3, torch.arange(8), torch.randn(8, 4))
            values = step(seen, [1.0], 0.1) if step is not None else None
            assert (values is None) is (way == "loop" or (way == "compiled" and view == "hidden_1"))
            if values is None:
                make_step(Loop(), training, seen, [1.0], 0.1, None)  # type: ignore[arg-type]
        found = dict(reporter.events).get("not_compiled", {"reason": "no gradient"})
        assert "no gradient" in found["reason"]
        return model.state_dict()

    begun: dict[str, Tensor] = {}
    wanted, traced, compiled = stepped("loop"), stepped("traced"), stepped("compiled")
    for name, value in wanted.items():
        assert torch.equal(traced[name], value)
        assert torch.allclose(compiled[name], value, rtol=1e-4, atol=1e-6)
        unused = name == "hidden.0.bias" or (name.startswith("head") and view == "hidden_1")
        assert torch.equal(value, begun[name]) is unused


def test_a_batch_is_taken_apart_and_put_together_again() -> None:
    def batch(first: int, labels: bool) -> Batch:
        inputs, indices, one, two, three, own = (torch.full((2,), first + number) for number in range(6))
        return Batch({}, [{"a": one, "logits": two}, {}, {"logits": three}], own if labels else None, indices, inputs)

    for labels in (True, False):
        found = refilled(batch(0, labels), tensors_of(batch(10, labels)))
        assert str(found) == str(batch(10, labels))


@pytest.mark.parametrize(
    ("student", "shape", "vocabulary"),
    [
        ({"type": "cnn", "channels": [4], "batch_norm": False}, (1, 8, 8), None),
        ({"type": "vit", "patch": 4, "width": 8, "heads": 2, "layers": 1}, (1, 8, 8), None),
        ({"type": "text_cnn", "embedding": 4, "channels": 4}, (6,), 11),
        ({"type": "text_transformer", "width": 8, "heads": 2, "layers": 1}, (6,), 11),
    ],
    ids=lambda value: value["type"] if isinstance(value, dict) else "",
)
def test_other_students_can_be_traced(student: Any, shape: tuple[int, ...], vocabulary: int | None) -> None:
    def stepped(way: Way) -> dict[str, Tensor]:
        torch.manual_seed(0)
        config = TypeAdapter(ModelConfig).validate_python({**student, "dropout": 0.0})
        model = config.build(shape, 3, vocabulary).to(memory_format=torch.channels_last)  # as the loop lays it out
        context = Context(student={"logits": (3,)}, teachers=[{"logits": (3,)}], classes=3, task="classification")
        terms = torch.nn.ModuleList([TypeAdapter(LossConfig).validate_python({"type": "kd"}).build(context)])
        # Adam would make a whole step of a gradient that is rounding alone.
        optimizer = SGDConfig(momentum=0, weight_decay=0).build(model.parameters())
        begun.append(copy.deepcopy(model.state_dict()))
        training = Training(model, terms, optimizer, torch.device("cpu"))
        inputs = torch.randint(vocabulary, (8, *shape)) if vocabulary else torch.rand(8, *shape)
        seen = Batch({}, [{"logits": torch.randn(8, 3)}], torch.arange(8) % 3, torch.arange(8), inputs)
        reporter = RecordingReporter()
        step = graph(training, way, reporter, [])
        for _ in range(2):
            if step is None:
                make_step(Loop(), training, seen, [1.0], 0.1, None)  # type: ignore[arg-type]
            else:
                assert step(seen, [1.0], 0.1) is not None, reporter.events
        return model.state_dict()

    begun: list[dict[str, Tensor]] = []
    found, traced, wanted = stepped("compiled"), stepped("traced"), stepped("loop")
    assert all(torch.equal(traced[name], wanted[name]) for name in wanted)
    assert all(torch.allclose(found[name], wanted[name], rtol=1e-3, atol=1e-5) for name in wanted)
    assert not all(torch.allclose(begun[0][name], wanted[name], rtol=1e-3, atol=1e-5) for name in wanted)


@needs_compiler
def test_jobs_that_share_a_cache_have_their_own_graphs(light: Any, tmp_path: Path) -> None:
    """What is written into a graph as a number, and what comes in as a tensor."""
    losses = [{"type": "cross_entropy", "class_weights": list(range(1, 11))}, {"type": "kd", "temperature": 2}]
    one = SPEC | {"baseline": False}
    other = one | {"stages": [SPEC["stages"][0] | {"losses": losses}]}
    first, _ = light(one, cache=tmp_path / "shared")
    second, _ = light(other, cache=tmp_path / "shared")
    alone, _ = light(other, cache=tmp_path / "own")
    assert second["digests"] == alone["digests"]
    assert second["digests"]["student"] != first["digests"]["student"]


@needs_compiler
def test_a_job_learns_alike_and_resumes_to_the_same_bytes(light: Any, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    whole, reporter = light(SPEC, cache=cache)
    assert "not_compiled" not in dict(reporter.events)
    assert any(path.is_file() for path in cache.glob("compiled-*/aotautograd/**/*")), "what was compiled is not kept"
    plain, again = light(SPEC | {"tuning": {"compile": "never"}}, cache=cache)
    assert plain["digests"]["teacher-1"] == whole["digests"]["teacher-1"]
    for name, weights in plain["models"].items():
        for key, value in weights.items():
            assert torch.allclose(value, whole["models"][name][key], rtol=1e-3, atol=1e-5), (name, key)

    stopped = RecordingReporter(request="drain", request_at=again.polls - 15)  # in the last epoch
    with pytest.raises(Interrupted):
        light(SPEC, reporter=stopped, cache=cache)
    assert stopped.checkpoints[-1].stage == "distill-1"
    left, _ = light(SPEC, resume=stopped.checkpoints[-1].path, cache=cache)
    assert left["digests"] == whole["digests"]


def test_where_the_compiler_fails_the_loop_makes_the_steps(
    light: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from torch._inductor import config

    monkeypatch.setenv("CXX", "/bin/no-such-compiler")
    spec = parse_spec(SPEC)
    plain, _ = light(SPEC | {"tuning": {"compile": "never"}})
    monkeypatch.setattr(module, "can_compile", lambda: True)  # as on the machine where the job was begun
    with config.patch({"cpp.cxx": (None, "/bin/no-such-compiler")}):
        found, reporter = light(spec, cache=tmp_path / "cache")
    assert [type for type, _ in reporter.events].count("not_compiled") == 2  # the baseline's stage, the student's
    assert "reason" in dict(reporter.events)["not_compiled"]
    assert found["digests"] == plain["digests"]


LEFT_OUT = {
    "short": {"tuning": {"compile": "auto"}},
    "bf16": {"precision": "bf16"},
    "dropout": {"student": {"model": {"type": "mlp", "hidden": [8], "dropout": 0.1}}},
    "statistics": {"student": {"model": {"type": "cnn", "channels": [4], "batch_norm": True}}},
    "clipping": {"stages": [SPEC["stages"][0] | {"gradient_clip": 1.0}]},
    "schedule": {
        "stages": [
            SPEC["stages"][0]
            | {"losses": [{"type": "kd", "temperature_schedule": {"type": "per_epoch", "factors": [1, 2]}}]}
        ]
    },
    "parameters": {"stages": [SPEC["stages"][0] | {"losses": [{"type": "simkd"}]}]},
}


@pytest.mark.parametrize("what", LEFT_OUT)
def test_what_is_not_compiled(light: Any, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    made = noted(monkeypatch, CompiledStep)
    document = copy.deepcopy(SPEC) | {"baseline": False}
    light(document)
    assert len(made) == (1 if can_compile() else 0)
    light(document | LEFT_OUT[what])
    assert len(made) == (1 if can_compile() else 0)


NOT_TRACED = LEFT_OUT | {
    "short": {"stages": [SPEC["stages"][0] | {"epochs": 1}]},
    "switched off": {"tuning": {"compile": "never"}},
    "large": {"student": {"model": {"type": "mlp", "hidden": [800]}}},
    "profile": {"profile": True},
}


@pytest.mark.parametrize("what", NOT_TRACED)
def test_what_is_not_traced(light: Any, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    monkeypatch.setitem(module.TRACE_FROM, "auto", 56)  # two epochs
    made = noted(monkeypatch, TracedStep)
    document = copy.deepcopy(SPEC) | {"baseline": False, "tuning": {}}
    light(document)
    assert len(made) == 1
    light(document | NOT_TRACED[what])
    assert len(made) == 1


@needs_compiler
def test_a_large_student_is_compiled_by_wish_alone(light: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module.COMPILE_FROM, "auto", 56)
    made = noted(monkeypatch, CompiledStep)
    document = copy.deepcopy(SPEC) | {"baseline": False, "tuning": {}}
    light(document)
    assert len(made) == 1
    light(document | NOT_TRACED["large"])
    assert len(made) == 1
    light(document | NOT_TRACED["large"] | {"tuning": {"compile": "always"}, "profile": True})
    assert len(made) == 2


@pytest.mark.parametrize(("kind", "wish"), [(TracedStep, "auto"), (CompiledStep, "always")])
def test_what_an_operator_has_installed_is_left_to_the_loop(
    light: Any, monkeypatch: pytest.MonkeyPatch, kind: type, wish: str
) -> None:
    monkeypatch.setitem(module.TRACE_FROM, "auto", 0)
    monkeypatch.setattr(module, "can_compile", lambda: True)
    made = noted(monkeypatch, kind)
    document = SPEC | {"baseline": False, "tuning": {"compile": wish}}
    light(document)
    assert len(made) == 1
    monkeypatch.setattr(MLPConfig, "__module__", "installed.models")
    light(document)
    assert len(made) == 1


def noted(monkeypatch: pytest.MonkeyPatch, kind: type) -> list[Any]:
    """What is made of a kind, which leaves all steps to the loop."""
    made: list[Any] = []
    monkeypatch.setattr(kind, "__init__", lambda self, *_: made.append(self))
    monkeypatch.setattr(kind, "__call__", lambda *_: None)
    return made


def test_a_traced_job_leaves_the_bytes_of_the_loop(light: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[bool] = []
    call = TracedStep.__call__

    def counted(self: TracedStep, *given: Any) -> Any:
        found = call(self, *given)
        taken.append(found is not None)
        return found

    monkeypatch.setattr(TracedStep, "__call__", counted)
    wanted, plain = light(SPEC | {"tuning": {"compile": "never"}})
    assert not taken
    monkeypatch.setitem(module.TRACE_FROM, "auto", 0)
    whole, reporter = light(SPEC | {"tuning": {}})
    assert (len(taken), taken.count(False)) == (2 * 2 * 28, 2 * 2)  # baseline and student; an epoch's last is smaller
    assert whole["digests"] == wanted["digests"]
    assert reporter.points == plain.points

    stopped = RecordingReporter(request="drain", request_at=reporter.polls - 15)  # in the last epoch
    with pytest.raises(Interrupted):
        light(SPEC | {"tuning": {}}, reporter=stopped)
    left, _ = light(SPEC | {"tuning": {}}, resume=stopped.checkpoints[-1].path)
    assert left["digests"] == wanted["digests"]


@pytest.mark.parametrize("at", ["value", "gradient"])
def test_a_trace_that_does_not_repeat_the_step_is_left_to_the_loop(
    light: Any, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """The smallest change of one number is seen, of a term whose weight is 0 for now as well."""
    original = traced.shortened

    def changed(graph: torch.fx.GraphModule) -> Any:
        made = original(graph).forward

        def forward(*given: Tensor) -> list[Tensor]:
            found = list(made(*given))
            place = 0 if at == "value" else 2
            found[place] = torch.nextafter(found[place], torch.tensor(torch.inf))
            return found

        return SimpleNamespace(forward=forward)

    monkeypatch.setitem(module.TRACE_FROM, "auto", 0)
    monkeypatch.setattr(traced, "shortened", changed)
    losses = [{"type": "kd"}, {"type": "dist", "weight_schedule": {"type": "linear", "epochs": 2}}]
    document = SPEC | {"baseline": False, "stages": [SPEC["stages"][0] | {"losses": losses}]}
    wanted, _ = light(document | {"tuning": {"compile": "never"}})
    found, reporter = light(document | {"tuning": {}})
    assert "to the bit" in dict(reporter.events)["not_traced"]["reason"]
    assert found["digests"] == wanted["digests"]


def test_what_torch_computes_otherwise_while_it_is_traced(light: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes another kernel for the maxima of a sequence then, and they lie in memory otherwise."""
    layers = [{"type": "max_pool"}, {"type": "gelu"}, {"type": "flatten"}]
    student = {"model": {"type": "sequential", "layers": layers}, "view": {"type": "rows"}}
    document = SPEC | {"student": student, "baseline": False}
    wanted, _ = light(document | {"tuning": {"compile": "never"}})
    monkeypatch.setitem(module.TRACE_FROM, "auto", 0)
    found, _ = light(document | {"tuning": {}})
    assert found["digests"] == wanted["digests"]


def test_several_teachers_are_traced(light: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = SPEC["teachers"][0]
    stage = SPEC["stages"][0] | {"losses": [{"type": "kd", "teacher": 2}, {"type": "kd"}, {"type": "dist"}]}
    document = SPEC | {"teachers": [teacher, teacher], "stages": [stage], "baseline": False}
    wanted, _ = light(document | {"tuning": {"compile": "never"}})
    monkeypatch.setitem(module.TRACE_FROM, "auto", 0)
    found, reporter = light(document | {"tuning": {}})
    assert found["digests"] == wanted["digests"]
    assert "not_traced" not in dict(reporter.events)


def test_what_cannot_be_traced_is_left_to_the_loop(light: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, _ = light(SPEC | {"tuning": {"compile": "never"}})

    def refuse(*_: Any) -> Any:
        raise RuntimeError("no trace\nof it")

    monkeypatch.setitem(module.TRACE_FROM, "auto", 0)
    monkeypatch.setattr(traced, "trace", refuse)
    found, reporter = light(SPEC | {"tuning": {}})
    said = [values for type, values in reporter.events if type == "not_traced"]
    assert said == 2 * [{"reason": "RuntimeError: no trace"}]
    assert found["digests"] == wanted["digests"]
