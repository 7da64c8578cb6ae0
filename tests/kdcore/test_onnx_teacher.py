"""A teacher that is an ONNX file: looked through before onnxruntime sees it, bounded, frozen, and timed as it is."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from kdcore import train
from kdcore.errors import TrainingError
from kdcore.modelfiles import ModelOptions, ModelProfile, check_model
from kdcore.modelfiles.onnx_file import read_onnx
from kdcore.models import OnnxConfig, OnnxNetwork
from kdcore.models import onnx as onnx_module
from kdcore.plan import make_plan
from kdcore.reporter import Interrupted, RecordingReporter
from kdcore.spec import SpecError, parse_spec, spec_digest, spec_document
from kdcore.teacher import load_weights

PIXELS = 64
RANDOM = np.random.default_rng(0)
WEIGHTS = RANDOM.normal(size=(PIXELS, 10)).astype("float32")


def graph(
    *,
    shape: list[Any] | None = None,
    kind: int = TensorProto.FLOAT,
    classes: int = 10,
    nodes: list[onnx.NodeProto] | None = None,
    weights: onnx.TensorProto | None = None,
) -> onnx.ModelProto:
    """A linear classifier of 8x8 pixels: `pixels` -> `scores`, with the hidden output `flat`."""
    given = weights or numpy_helper.from_array(WEIGHTS[:, :classes] if classes <= 10 else RANDOM.normal(
        size=(PIXELS, classes)).astype("float32"), "w")  # fmt: skip
    made = nodes or [
        helper.make_node("Cast", ["pixels"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["real"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["scores"]),
    ]
    outputs = [helper.make_tensor_value_info("scores", TensorProto.FLOAT, None)]
    if nodes is None:
        outputs.append(helper.make_tensor_value_info("flat", TensorProto.FLOAT, None))
    inputs = [helper.make_tensor_value_info("pixels", kind, shape or ["n", 1, 8, 8])]
    built = helper.make_graph(made, "g", inputs, outputs, [given])
    return helper.make_model(built, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def save(path: Path, model: onnx.ModelProto | None = None) -> Path:
    path.write_bytes((model or graph()).SerializeToString())
    return path


def check(path: Path, **options: Any) -> ModelProfile:
    return check_model(path, ModelOptions(**options), out=path.parent)


def document(tiny: dict[str, Any], **teacher: Any) -> dict[str, Any]:
    given = {"model": {"type": "onnx"}, "weights": {"file": "teacher.onnx"}, **teacher}
    return tiny | {"teachers": [given]}


def test_a_check_says_what_the_file_holds(tmp_path: Path) -> None:
    profile = check(save(tmp_path / "x"), classes=[str(number) for number in range(10)])
    assert (profile.format, profile.parameters, profile.opset) == ("onnx", 640, 17)
    assert [(each.name, each.shape) for each in profile.inputs] == [("pixels", ["n", 1, 8, 8])]
    assert [each.name for each in profile.outputs] == ["scores", "flat"]
    assert profile.model == OnnxConfig()


def test_a_check_can_be_stopped(tmp_path: Path) -> None:
    polls = []

    def poll() -> None:
        polls.append(1)
        if len(polls) > 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check_model(save(tmp_path / "x"), ModelOptions(), out=tmp_path, poll=poll)


def refused(what: str, folder: Path) -> tuple[Path, dict[str, Any], str]:
    """A file that is no teacher, what is said of it, and a part of the message."""
    path = folder / "x.onnx"
    options: dict[str, Any] = {}
    match what:
        case "weights in another file":
            secret = folder / "secret"
            secret.write_bytes(WEIGHTS.tobytes())
            tensor = numpy_helper.from_array(WEIGHTS, "w")
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value="secret")
            return save(path, graph(weights=tensor)), options, "no path in a model is followed"
        case "a hidden path":
            tensor = numpy_helper.from_array(WEIGHTS, "v")
            tensor.external_data.add(key="location", value="/etc/passwd")
            constant = helper.make_node("Constant", [], ["v"], value=tensor)
            inner = helper.make_graph([constant], "then", [], [helper.make_tensor_value_info("v", 1, None)])
            yes = helper.make_node("Constant", [], ["yes"], value=helper.make_tensor("b", TensorProto.BOOL, [], [True]))
            branch = helper.make_node("If", ["yes"], ["scores"], then_branch=inner, else_branch=inner)
            return save(path, graph(nodes=[yes, branch])), options, "no path in a model is followed"
        case "an operator of one's own":
            node = helper.make_node("Run", ["pixels"], ["scores"], domain="my.code")
            return save(path, graph(nodes=[node])), options, "my.code.Run is outside the ONNX standard"
        case "one of another runtime":
            node = helper.make_node("EPContext", ["pixels"], ["scores"], domain="com.microsoft")
            return save(path, graph(nodes=[node])), options, "com.microsoft.EPContext is outside"
        case "one that is none":
            return save(path, graph(nodes=[helper.make_node("Nope", ["pixels"], ["scores"])])), options, "cannot run it"
        case "damaged":
            path.write_bytes(save(path).read_bytes()[:-20])
            return path, options, "damaged ONNX file"
        case "another count of classes":
            return save(path), {"classes": ["a", "b"]}, "`classes` has 2 names"
        case "an output that is not there":
            return save(path), {"model": OnnxConfig(output="logits")}, "no output 'logits'; it has scores, flat"
        case "a size that nobody said":
            return save(path, graph(shape=["n", 1, "h", "w"])), options, "say `input_shape`"
        case "another size":
            return save(path), {"input_shape": [1, 9, 9]}, "`input_shape` is [1, 9, 9]"
        case "not finite":
            broken = numpy_helper.from_array(WEIGHTS * np.nan, "w")
            return save(path, graph(weights=broken)), options, "not finite"
        case "more memory than there is":
            size = numpy_helper.from_array(np.array([10, 10**5, 10**6]), "w")
            return save(path, graph(nodes=[helper.make_node("ConstantOfShape", ["w"], ["scores"])], weights=size)), \
                options, ""  # fmt: skip
        case "text":
            return save(path, graph(kind=TensorProto.STRING)), options, "export it with a float32 input"
    raise AssertionError(what)


@pytest.mark.parametrize(
    "what",
    ["weights in another file", "a hidden path", "an operator of one's own", "one of another runtime",
     "one that is none", "damaged", "another count of classes", "an output that is not there",
     "a size that nobody said", "another size", "not finite", "more memory than there is", "text"],
)  # fmt: skip
def test_what_is_refused(tmp_path: Path, what: str) -> None:
    path, options, message = refused(what, tmp_path)
    with pytest.raises(TrainingError) as caught:
        check(path, **options)
    assert (caught.value.code, caught.value.kind) == ("bad_model", "user")
    assert message in caught.value.message
    if "path" in message or "outside" in message:  # said again before a job loads it
        with pytest.raises(TrainingError, match="cannot be the teacher's weights"):
            load_weights(path, OnnxConfig().build((1, 8, 8), 10))


def network(path: Path, config: OnnxConfig, shape: tuple[int, ...] = (1, 8, 8), classes: int = 10) -> OnnxNetwork:
    built = config.build(shape, classes)
    assert isinstance(built, OnnxNetwork)
    built.load_state_dict(load_weights(path, built))
    return built


@pytest.mark.parametrize("batch", ["n", 1, 4])
@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.UINT8, TensorProto.DOUBLE])
def test_logits_are_the_files_in_any_batch_and_type(tmp_path: Path, batch: Any, kind: int) -> None:
    path = save(tmp_path / "x.onnx", graph(shape=[batch, 1, 8, 8], kind=kind))
    pixels = torch.from_numpy(RANDOM.integers(0, 255, (6, 1, 8, 8))).float()
    views = network(path, OnnxConfig(hidden={"flat": [64]})).views(pixels)
    wanted = pixels.flatten(1) @ torch.from_numpy(WEIGHTS)
    torch.testing.assert_close(views["logits"], wanted, rtol=1e-4, atol=1e-2)
    assert torch.equal(views["flat"], pixels.flatten(1))


def test_channels_may_be_last_and_outputs_probabilities(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Flatten", ["pixels"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["raw"]),
        helper.make_node("Softmax", ["raw"], ["scores"]),
    ]
    path = save(tmp_path / "x.onnx", graph(shape=["n", 4, 8, 2], nodes=nodes))
    pixels = torch.rand(3, 2, 4, 8)
    found = network(path, OnnxConfig(layout="nhwc", gives="probabilities"), (2, 4, 8)).views(pixels)["logits"]
    wanted = (pixels.permute(0, 2, 3, 1).flatten(1) @ torch.from_numpy(WEIGHTS)).log_softmax(1)
    torch.testing.assert_close(found, wanted.clamp(min=np.log(1e-12)), rtol=1e-4, atol=1e-3)


def test_what_does_not_fit_is_said_when_it_is_asked(tmp_path: Path) -> None:
    path = save(tmp_path / "x.onnx")
    for config, shape, classes, message in (
        (OnnxConfig(), (3, 32, 32), 10, "set the teacher's `view`"),
        (OnnxConfig(), (1, 8, 8), 7, "of one sample, not"),
        (OnnxConfig(output="nope"), (1, 8, 8), 10, "it has no output 'nope'"),
        (OnnxConfig(hidden={"deep": [3]}), (1, 8, 8), 10, "it has no output 'deep'"),
    ):
        with pytest.raises(TrainingError, match=message) as caught:
            network(path, config, shape, classes).views(torch.zeros(2, *shape))
        assert caught.value.kind == "user"


def endless() -> onnx.ModelProto:
    """It counts to 10^15 before it answers."""
    outer = [
        helper.make_node("Constant", [], ["times"], value=helper.make_tensor("t", TensorProto.INT64, [], [10**15])),
        helper.make_node("Constant", [], ["yes"], value=helper.make_tensor("b", TensorProto.BOOL, [], [True])),
        helper.make_node("Flatten", ["pixels"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["first"]),
    ]
    values = [
        helper.make_tensor_value_info(name, kind, shape)
        for name, kind, shape in (
            ("n", TensorProto.INT64, []),
            ("go", TensorProto.BOOL, []),
            ("x", TensorProto.FLOAT, None),
            ("goes", TensorProto.BOOL, []),
            ("y", TensorProto.FLOAT, None),
        )
    ]
    inner = [helper.make_node("Identity", ["go"], ["goes"]), helper.make_node("Neg", ["x"], ["y"])]
    body = helper.make_graph(inner, "body", values[:3], values[3:])
    return graph(nodes=[*outer, helper.make_node("Loop", ["times", "yes", "first"], ["scores"], body=body)])


def test_a_batch_that_takes_too_long_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = network(save(tmp_path / "teacher.onnx", endless()), OnnxConfig())
    monkeypatch.setattr(onnx_module, "SECONDS", 0.5)
    with pytest.raises(TrainingError, match=r"a batch took it longer than 0\.5 s") as caught:
        teacher.views(torch.zeros(2, 1, 8, 8))
    assert (caught.value.code, caught.value.kind) == ("bad_teacher_weights", "user")


def test_a_job_learns_from_it_and_resumes_to_the_same_bytes(light: Any, tiny: Any, tmp_path: Path) -> None:
    save(tmp_path / "teacher.onnx")
    spec = document(tiny, view={"type": "picture", "normalise": "none"})
    wanted, whole = light(spec)
    assert ("teacher-1", 0) in {(stage, step) for stage, step, _ in whole.points}
    reporter = RecordingReporter(request="pause", request_at=whole.polls - 4)
    with pytest.raises(Interrupted):
        light(spec, reporter)
    (tmp_path / "teacher.onnx").unlink()  # the checkpoint holds it
    found, again = light(spec, resume=reporter.checkpoints[-1].path)
    assert found["digests"]["student"] == wanted["digests"]["student"]
    assert "teacher-1" not in {stage for stage, _, _ in again.points}  # it is examined once
    mixed, _ = light(spec | {"precision": "bf16", "keep_targets": False}, teacher_weights={0: save(tmp_path / "y")})
    assert mixed["digests"]["student"] != wanted["digests"]["student"]


def test_a_whole_job_measures_the_file_itself(tiny: Any, tmp_path: Path) -> None:
    """With more classes than the data has, in another order."""
    save(tmp_path / "teacher.onnx", graph(classes=12))
    classes = ["other", *map(str, reversed(range(10))), "none"]
    losses = [{"type": "cross_entropy"}, {"type": "kd", "weight": 0.01}]
    stages = [{"epochs": 8, "batch_size": 32, "optimizer": {"type": "adam", "lr": 0.01}, "losses": losses}]
    spec = parse_spec(document(tiny, classes=classes) | {"stages": stages, "evaluate": {"robustness": True}})
    reporter = RecordingReporter()
    result = train.run(spec, data_root=tmp_path, out=tmp_path / "out", reporter=reporter, download=False)
    teacher = result["teacher"]
    assert (teacher["parameters"], teacher["flops"]) == (768, None)
    assert teacher["latency_ms"]["p50"] > 0
    assert result["compression"]["flops"] is None
    assert len(teacher["per_class_accuracy"]) == 10
    assert any("majority" in said for said in result["warnings"]) or teacher["accuracy"] > 0.1
    assert any("its own student" in said for said in result["warnings"])
    assert {event["than"] for kind, event in reporter.events if kind == "teacher_worse"} >= {"student"}
    robust = result["robustness"]["teacher-1"]  # an attack needs a gradient, noise does not
    assert (robust["clean"], robust["left_out"]) == (pytest.approx(teacher["accuracy"]), [])
    assert robust["blur"] is not None
    assert robust["fgsm_8/255"] is robust["pgd_8/255"] is None
    assert "unknown" in (tmp_path / "out" / "README.md").read_text()


def test_a_job_with_one_has_a_limit_of_memory(tiny: Any) -> None:
    """What a file that somebody brought takes for a batch, nobody knows before."""
    assert parse_spec(tiny).limits.max_memory is None
    for limits in ({}, {"max_seconds": 60}, {"max_memory": None}):
        spec = parse_spec(document(tiny) | {"limits": limits})
        assert spec.limits.max_memory == 16 * 2**30
        assert spec_digest(parse_spec(spec_document(spec))) == spec_digest(spec)
    assert spec.limits.max_seconds == 86_400
    assert parse_spec(document(tiny)).limits == spec.limits
    assert parse_spec(document(tiny) | {"limits": {"max_memory": "2GiB"}}).limits.max_memory == 2 * 2**30


def plan_errors(spec: dict[str, Any]) -> list[tuple[tuple[str | int, ...], str]]:
    with pytest.raises(SpecError) as caught:
        make_plan(parse_spec(spec))
    return caught.value.errors


def test_a_plan_says_what_it_does_not_know(tiny: Any) -> None:
    plan = make_plan(parse_spec(document(tiny)))
    assert plan.compression is None
    assert (plan.teachers[0].parameters, plan.teachers[0].flops) == (0, 0)
    assert any("not known before it is read" in said for said in plan.warnings)


@pytest.mark.parametrize(
    ("changes", "loc", "message"),
    [
        ({"teachers": [{"model": {"type": "onnx"}}]}, ("teachers", 0, "weights"), "is a file"),
        ({"teachers": [{"model": {"type": "onnx"}, "weights": {"job": "job_" + "0" * 26}}]},
         ("teachers", 0, "weights", "job"), "another job's teacher"),
        ({"student": {"model": {"type": "onnx"}}}, ("student", "model", "type"), "a student is trained"),
        ({"stages": [{"losses": [{"type": "mutual", "peer": {"type": "onnx"}}]}]},
         ("stages", 0, "losses", 0, "peer"), "cannot be trained"),
    ],
)  # fmt: skip
def test_it_can_only_be_a_teacher_that_is_given(tiny: Any, changes: Any, loc: Any, message: str) -> None:
    errors = plan_errors(tiny | changes)
    assert [found for found, _ in errors] == [loc]
    assert message in errors[0][1]


def test_layers_are_those_that_it_names(tiny: Any) -> None:
    loss = {"type": "hint", "student_layer": "hidden_1", "teacher_layer": "flat"}
    spec = document(tiny) | {"stages": [{"losses": [{"type": "kd"}, loss]}]}
    ((loc, said),) = plan_errors(spec)
    assert loc[-1] == "teacher_layer"
    assert "'logits'" in said
    spec["teachers"][0]["model"] = {"type": "onnx", "hidden": {"flat": [64]}}
    assert make_plan(parse_spec(spec)).stages[-1].losses[-1].layers == [("hidden_1", "flat")]


def test_weights_of_one_kind_are_not_the_other(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1)}, tmp_path / "w.onnx")
    with pytest.raises(ValueError, match="no ONNX file"):
        read_onnx(tmp_path / "w.onnx")
