"""What is downloaded runs without this project, and says what it is."""

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file

from kdcore import export
from kdcore.data import DataFacts, Places
from kdcore.errors import TrainingError
from kdcore.inputs import Classifier, Normalise
from kdcore.plain import plain_function
from kdcore.report import summary, table
from kdcore.reporter import RecordingReporter
from kdcore.spec import parse_spec, spec_digest
from kdcore.train import run

FACTS = DataFacts((3, 8, 8), tuple("abcd"), 10, 2, 3, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
ALONE = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"kdcore", "api", "storage", "worker", "distillery", "migrations"}:
            raise ImportError(f"{name} is not to be had here")
sys.meta_path.insert(0, Refuse())
for number, block in enumerate(open("blocks").read().split("\\0")):
    space = {}
    exec(compile(block, "README.md", "exec"), space)
    space["numpy"].save(f"logits-{number}.npy", space["logits"])
"""


@dataclass
class Done:
    folder: Path
    result: dict[str, Any]
    reporter: RecordingReporter
    document: dict[str, Any]
    printed: str


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """A job run to its end, exports and all."""
    document = {
        "data": {"type": "digits"},
        "teachers": [{"model": {"type": "mlp", "hidden": [32]}, "train": {"epochs": 2}}],
        "student": {"model": {"type": "cnn", "channels": [4], "hidden": [8], "batch_norm": True, "dropout": 0.1}},
        "stages": [{"epochs": 2}],
    }
    folder, reporter = tmp_path_factory.mktemp("job"), RecordingReporter()
    result = run(parse_spec(document), data_root=folder, out=folder / "out", reporter=reporter, download=False)
    return Done(folder / "out", result, reporter, document, "")


def classifier(model: dict[str, Any]) -> Classifier:
    spec = parse_spec({"data": {"type": "digits"}, "teachers": [{"model": model}], "student": {"model": model}})
    torch.manual_seed(0)
    network = spec.student.model.build(FACTS.input_shape, len(FACTS.classes))
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
    return Classifier(Normalise(FACTS), network).eval()


def rebuilt(folder: Path) -> Classifier:
    """The student from its files, by this project: what the others are compared with."""
    model = json.loads((folder / "model.json").read_text())
    spec = parse_spec({"data": {"type": "digits"}, "teachers": [{"model": model["architecture"]}],
                       "student": {"model": model["architecture"]}})  # fmt: skip
    network = spec.student.model.build(tuple(model["input"]["shape"]), len(model["classes"]))
    network.load_state_dict(load_file(folder / "student.safetensors"))
    facts = DataFacts(tuple(model["input"]["shape"]), tuple(model["classes"]), 1, 1, 1,
                      tuple(model["preprocessing"]["mean"]), tuple(model["preprocessing"]["std"]))  # fmt: skip
    return Classifier(Normalise(facts), network).eval()


def test_every_code_block_of_the_card_runs_where_this_project_cannot_be_imported(done: Done) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (done.folder / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 4
    (done.folder / "blocks").write_text("\0".join(blocks))
    found = subprocess.run(
        [sys.executable, "-I", "-c", ALONE], cwd=done.folder, capture_output=True, text=True, timeout=120, check=False
    )
    assert found.returncode == 0, found.stderr
    images = np.random.default_rng(0).random((4, 1, 8, 8), dtype="float32")
    with torch.no_grad():
        wanted = rebuilt(done.folder)(torch.from_numpy(images)).numpy()
    for number in (0, 2, 3):  # the other reads a picture file
        assert np.allclose(np.load(done.folder / f"logits-{number}.npy"), wanted, rtol=1e-4, atol=1e-4), number


def test_the_process_alone_really_cannot_import_this_project() -> None:
    found = subprocess.run(
        [sys.executable, "-I", "-c", ALONE.split("for number")[0] + "import kdcore"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "not to be had" in found.stderr


def test_the_files_of_a_job(done: Done) -> None:
    names = {path.name for path in done.folder.iterdir() if path.is_file()} - {"blocks"}
    assert {name for name in names if not name.startswith(("logits-", "picture"))} == {
        "student.safetensors", "student.pt2", "student.onnx", "model.json", "result.json", "README.md",
        "teacher-1.safetensors", "baseline.safetensors", "student-raw.onnx",
    }  # fmt: skip


def test_the_exported_files_name_no_file_of_this_machine(done: Done) -> None:
    for name in ("student.pt2", "student.onnx", "student-raw.onnx", "model.json", "README.md", "result.json"):
        data = (done.folder / name).read_bytes()
        assert str(Path(__file__).parents[2]).encode() not in data, name
        assert b"site-packages" not in data, name


def test_onnx_is_one_file_with_a_free_batch(done: Done) -> None:
    model = onnx.load(done.folder / "student.onnx", load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    value = model.graph.input[0]
    assert [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim] == ["batch", 1, 8, 8]
    assert [d.dim_param or d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim] == ["batch", 10]
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    session = onnxruntime.InferenceSession(done.folder / "student.onnx")
    for batch in (1, 3, 65):
        assert session.run(["logits"], {"input": np.zeros((batch, 1, 8, 8), np.float32)})[0].shape == (batch, 10)


def test_the_reported_accuracy_is_that_of_the_exported_file(done: Done) -> None:
    data = parse_spec(done.document).data.load(Places(done.folder))
    session = onnxruntime.InferenceSession(done.folder / "student.onnx")
    pixels = (data.test.inputs.float() / data.scale).numpy()
    predicted = session.run(["logits"], {"input": pixels})[0].argmax(1)
    assert (predicted == data.test.labels.numpy()).mean() == pytest.approx(
        done.result["student"]["accuracy"], abs=0.003
    )


def test_the_result_document(done: Done) -> None:
    result = done.result
    assert json.loads((done.folder / "result.json").read_text()) == result
    for name in ("teacher", "baseline", "student"):
        values = result[name]
        assert 0 < values["accuracy"] <= 1
        assert values["latency_ms"]["p50"] <= values["latency_ms"]["p95"]
        assert values["batch_latency_ms"]["p50"] <= values["batch_latency_ms"]["p95"]
        assert values["samples_per_second"] == pytest.approx(64e3 / values["batch_latency_ms"]["p50"])
        assert values["single_samples_per_second"] == pytest.approx(1e3 / values["latency_ms"]["p50"])
        assert sum(map(sum, values["confusion_matrix"])) == result["test_samples"] == 360
        assert ("agreement" in values) == (name != "teacher")
    teacher, student = result["teacher"], result["student"]
    assert result["speedup"] == {
        "latency": teacher["latency_ms"]["p50"] / student["latency_ms"]["p50"],
        "throughput": student["samples_per_second"] / teacher["samples_per_second"],
    }
    assert result["gain"]["accuracy"] == pytest.approx(result["student"]["accuracy"] - result["baseline"]["accuracy"])
    assert result["peak_memory"]["bytes"] > result["peak_memory"]["planned"] > 0  # torch itself is a multiple of it
    weights = load_file(done.folder / "student.safetensors")
    learned = [tensor for name, tensor in weights.items() if not name.endswith(("mean", "var", "tracked"))]
    assert result["student"]["parameters"] == sum(tensor.numel() for tensor in learned)
    assert set(result["seconds"]) == set(result["validation"]) == {"teacher-1", "baseline", "distill-1"}
    assert result["summary"] in (done.folder / "README.md").read_text()


def test_model_json_says_where_the_student_is_from(done: Done) -> None:
    model = json.loads((done.folder / "model.json").read_text())
    assert model["provenance"]["spec_digest"] == spec_digest(parse_spec(done.document))
    assert model["provenance"]["data_digest"].startswith("sha256:")
    assert model["provenance"]["versions"]["torch"] == torch.__version__
    assert model["preprocessing"]["scale"] == 16
    assert model["input"] == {"shape": [1, 8, 8], "layout": "NCHW", "view": None}
    assert model["views"] == {"conv_1_pre": [4, 8, 8], "conv_1": [4, 4, 4], "hidden_1": [8], "logits": [10]}


@pytest.mark.parametrize(
    "model",
    [
        {"type": "mlp", "hidden": []},
        {"type": "mlp", "hidden": [5, 6], "dropout": 0.5, "activation": "gelu"},
        {"type": "cnn", "channels": [3, 4], "hidden": [], "pool": "avg", "activation": "tanh"},
        {"type": "cnn", "channels": [3], "pool": "none", "batch_norm": True, "hidden": [7], "dropout": 0.2},
    ],
)
def test_every_family_exports_and_its_plain_code_agrees(tmp_path: Path, model: dict[str, Any]) -> None:
    student = classifier(model)
    program = export.trace(student, FACTS)
    export.save_onnx(program, tmp_path / "m.onnx")
    export.check(student, program, tmp_path / "m.onnx", FACTS)
    space: dict[str, Any] = {
        "torch": torch,
        "F": torch.nn.functional,
        "weights": student.network.state_dict(),
        "channel": {"mean": student.normalise.mean, "std": student.normalise.std},
    }
    code = plain_function(program)
    exec(code, space)  # noqa: S102 - our own code, as its reader runs it
    for batch in (1, 6):
        inputs = torch.rand(batch, *FACTS.input_shape)
        with torch.no_grad():
            assert torch.allclose(space["student"](inputs), student(inputs), atol=1e-5)
    assert "dropout" not in code
    assert "ops.aten" not in code


def test_an_export_that_differs_is_refused(tmp_path: Path) -> None:
    student = classifier({"type": "mlp", "hidden": [4]})
    program = export.trace(student, FACTS)
    export.save_onnx(program, tmp_path / "m.onnx")
    with torch.no_grad():
        student.network.head.bias[0] += 0.01
    other = export.trace(student, FACTS)
    with pytest.raises(TrainingError, match="onnx") as caught:
        export.check(student, other, tmp_path / "m.onnx", FACTS)
    assert (caught.value.code, caught.value.kind) == ("export_failed", "system")


def test_safetensors_bytes_depend_on_the_weights_alone(tmp_path: Path) -> None:
    weights = dict(classifier({"type": "cnn", "channels": [3], "batch_norm": True}).network.state_dict())
    export.save_weights(tmp_path / "a", weights)
    export.save_weights(tmp_path / "b", dict(reversed(weights.items())))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_full_disk_is_an_os_error_for_every_file(tmp_path: Path) -> None:
    """torch's and safetensors' own writers would end the process, or raise errors of their own."""
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    full = tmp_path / "full"  # a link, since a writer that renames would put a file in the device's place
    full.symlink_to("/dev/full")
    student = classifier({"type": "mlp", "hidden": [4]})
    program = export.trace(student, FACTS)
    for write in (
        lambda: export.save_weights(full, dict(student.network.state_dict())),
        lambda: export.save_onnx(program, full),
        lambda: export.save_program(program, full),
    ):
        with pytest.raises(OSError, match="No space left"):
            write()


def test_exporting_says_nothing(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    program = export.trace(classifier({"type": "mlp", "hidden": [4]}), FACTS)
    export.save_onnx(program, tmp_path / "m.onnx")
    export.save_program(program, tmp_path / "m.pt2")
    assert capfd.readouterr() == ("", "")


def test_the_summary_does_not_claim_what_chance_explains(done: Done) -> None:
    result = json.loads(json.dumps(done.result))
    result["gain"] |= {"accuracy": 0.01, "interval": [-0.01, 0.03]}
    assert "chance may explain it" in summary(result)
    result["gain"]["interval"] = [0.005, 0.03]
    assert "chance" not in summary(result)
    over = {"mean": 0.013, "std": 0.004, "interval": [0.009, 0.017]}
    result["repeats"] = {"score": "accuracy", "each": [{}, {}, {}], "gain": over}
    text = summary(result)
    assert "by +1.30 ± 0.40 points over 3 repeats" in text
    assert "95% interval of the mean +0.90 to +1.70)" in text
    result["gain"] = result["baseline"] = result["repeats"] = None
    assert "labels alone" not in summary(result)
    assert "student alone" not in table(result)
