"""What is taken away beside the usual files: pixels, whole numbers, weights for torchvision, and where all is from."""

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image, ImageOps

from kdcore import export, finish
from kdcore.card import model_card
from kdcore.data import DataFacts
from kdcore.data.views import BaseViewConfig, GreyConfig, ResizeConfig, RowsConfig
from kdcore.inputs import Classifier, Reader
from kdcore.int8 import method_of, quantise, save_int8
from kdcore.models import GRUConfig, MLPConfig, TimmConfig, TorchvisionConfig
from kdcore.raw import RESIZING, Fit, _front, reads_pictures, save_raw
from kdcore.reporter import RecordingReporter
from kdcore.spec import parse_spec
from kdcore.train import run
from tests.kdcore.test_export import ALONE

COLOUR = DataFacts((3, 12, 16), ("ant", "bee"), 10, 2, 3, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
GREY = DataFacts((1, 12, 12), ("ant", "bee"), 10, 2, 3, (0.4,), (0.2,))
SIZES = [(12, 16), (31, 57), (45, 44), (64, 48), (3, 5), (1, 1)]


@dataclass
class Done:
    folder: Path
    result: dict[str, Any]
    reporter: RecordingReporter


def document(folder: str, **changes: Any) -> dict[str, Any]:
    return {
        "data": {"type": "image_folder", "folder": folder, "classes": ["ant", "bee"], "size": 16, "train_pictures": 24,
                 "test_pictures": 8, "validation": 8},
        "teachers": [{"model": {"type": "mlp", "hidden": [16]}, "train": {"epochs": 2, "batch_size": 8}}],
        "student": {"model": {"type": "cnn", "channels": [4], "hidden": [8], "batch_norm": True}},
        "stages": [{"epochs": 2, "batch_size": 8}],
        "export": {"int8": True},
        **changes,
    }  # fmt: skip


def make_pictures(root: Path) -> None:
    """Dark ants and light bees, some larger than 16 by 16."""
    random = np.random.default_rng(0)
    for part, count in (("train", 12), ("test", 4)):
        for at, name in enumerate(("ant", "bee")):
            folder = root / "mine" / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                shape = (16, 16, 3) if number % 2 else (40, 33, 3)
                pixels = random.integers(at * 100, at * 100 + 150, shape, dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    root, reporter = tmp_path_factory.mktemp("pictures"), RecordingReporter()
    make_pictures(root)
    result = run(parse_spec(document("mine")), data_root=root, out=root / "out", reporter=reporter, download=False)
    return Done(root / "out", result, reporter)


def raw_of(
    folder: Path, facts: DataFacts, view: BaseViewConfig | None = None, fit: Fit = "crop"
) -> tuple[Reader, Path, Path]:
    """A student, exported, and the same with its pixels."""
    reader, student, raw = Reader(facts, view), folder / "student.onnx", folder / "student-raw.onnx"
    config = MLPConfig(hidden=[6]) if not isinstance(view, RowsConfig) else GRUConfig(hidden=4)
    torch.manual_seed(0)
    network = config.build(reader.facts.input_shape, len(facts.classes))
    export.save_onnx(export.trace(Classifier(reader.normalise, network).eval(), reader.facts), student)
    save_raw(student, reader, facts, {"resizing": RESIZING[fit]}, raw, fit)
    return reader, student, raw


def run_on(path: Path, name: str, values: np.ndarray) -> np.ndarray:
    return np.asarray(onnxruntime.InferenceSession(path).run(["logits"], {name: values})[0])


@pytest.mark.parametrize("facts", [COLOUR, GREY], ids=["colour", "grey"])
def test_pixels_of_the_trainings_size_give_the_students_very_logits(tmp_path: Path, facts: DataFacts) -> None:
    channels, height, width = facts.input_shape
    _, student, raw = raw_of(tmp_path, facts)
    pixels = np.random.default_rng(1).integers(0, 256, (5, height, width, channels), dtype=np.uint8)
    wanted = run_on(student, "input", np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)).astype(np.float32) / 255)
    assert np.array_equal(run_on(raw, "pixels", pixels), wanted)


PILLOW: dict[Fit, Callable[[Image.Image], Image.Image]] = {
    "crop": lambda picture: ImageOps.fit(picture, (16, 12), Image.Resampling.BILINEAR),
    "resize": lambda picture: picture.resize((16, 12), Image.Resampling.BILINEAR),
    "pad": lambda picture: ImageOps.pad(picture, (16, 12), Image.Resampling.BILINEAR),
}


@pytest.mark.parametrize("fit", PILLOW)
def test_other_sizes_are_fitted_as_pillow_does(tmp_path: Path, fit: Fit) -> None:
    """Of noise, the hardest: Pillow may take the columns first, and then some pixels differ by one step of 255."""
    _, _, raw = raw_of(tmp_path, COLOUR, fit=fit)
    model = onnx.load(raw)
    model.graph.output.append(onnx.helper.make_tensor_value_info("raw_picture", onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString())
    for size in SIZES:
        pixels = np.random.default_rng(2).integers(0, 256, (*size, 3), dtype=np.uint8)
        found = session.run(["raw_picture"], {"pixels": pixels[None]})[0][0].transpose(1, 2, 0) * 255
        away = np.abs(found - np.asarray(PILLOW[fit](Image.fromarray(pixels))).astype(float)).round(3)
        assert away.max() <= 1, size
        assert away.mean() < 0.25, size
        assert size != (12, 16) or away.max() == 0


@pytest.mark.parametrize(("height", "width"), [(448, 29), (448, 225), (121, 448)])
def test_a_padded_pictures_size_is_rounded_as_pillow_rounds_it(height: int, width: int) -> None:
    """With single precision it would be a pixel narrower."""
    front = onnx.parser.parse_model(_front((3, 224, 224), "pad", 8, 17))
    pixels = np.random.default_rng(4).integers(0, 256, (height, width, 3), dtype=np.uint8)
    session = onnxruntime.InferenceSession(front.SerializeToString())
    found = session.run(None, {"pixels": pixels[None]})[0][0].transpose(1, 2, 0) * 255
    wanted = np.asarray(ImageOps.pad(Image.fromarray(pixels), (224, 224), Image.Resampling.BILINEAR)).astype(float)
    assert np.abs(found - wanted).round(3).max() <= 1


@pytest.mark.parametrize("view", [GreyConfig(), ResizeConfig(size=8), RowsConfig()], ids=lambda view: view.type)
def test_a_students_view_is_inside(tmp_path: Path, view: BaseViewConfig) -> None:
    reader, student, raw = raw_of(tmp_path, COLOUR, view)
    pixels = np.random.default_rng(3).integers(0, 256, (4, 12, 16, 3), dtype=np.uint8)
    whole = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    wanted = run_on(student, "input", reader.seen(whole).contiguous().numpy())
    assert np.allclose(run_on(raw, "pixels", pixels), wanted, atol=1e-5)


def test_the_raw_file_is_plain_onnx_that_says_what_it_is(tmp_path: Path) -> None:
    _, _, raw = raw_of(tmp_path, COLOUR)
    model = onnx.load(raw)
    onnx.checker.check_model(model, full_check=True)
    assert [(each.domain, each.version <= 20) for each in model.opset_import] == [("", True)]
    dimensions = model.graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in dimensions] == ["batch", "height", "width", 3]
    said = onnxruntime.InferenceSession(raw).get_modelmeta().custom_metadata_map
    assert json.loads(said["classes"]) == ["ant", "bee"]
    assert said["task"] == "classification"
    assert json.loads(said["preprocessing"])["resizing"] == RESIZING["crop"]
    before = raw.read_bytes()
    raw_of(tmp_path, COLOUR)
    assert raw.read_bytes() == before


def test_a_job_with_pictures_leaves_both_files_and_says_how_good_they_are(done: Done) -> None:
    names = {path.name for path in done.folder.iterdir()}
    assert {"student-raw.onnx", "student-int8.onnx"} <= names
    int8, student = done.result["int8"], done.result["student"]
    assert (int8["method"], int8["calibration_samples"]) == ("static", 16)
    assert set(student) - set(int8) == {
        "parameters",
        "flops",
        "bytes",
        "temperature",
        "nll_scaled",
        "ece_scaled",
    } & set(student)
    assert int8["file_bytes"] == (done.folder / "student-int8.onnx").stat().st_size
    assert int8["float_file_bytes"] == (done.folder / "student.onnx").stat().st_size
    assert int8["of_float"]["agreement"] >= 0.75
    assert 0 < int8["of_float"]["largest_difference"] < 1
    assert done.result["left_out"] == {}
    assert "file_left_out" not in [name for name, _ in done.reporter.events]
    kinds = {node.op_type for node in onnx.load(done.folder / "student-int8.onnx").graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds
    card = (done.folder / "README.md").read_text()
    assert "| … in int8 |" in card
    assert "`student-int8.onnx`, of 8-bit whole numbers (static)" in card


def test_the_reported_int8_accuracy_is_that_of_the_file(done: Done) -> None:
    """Through other code, over the test pictures themselves: the raw file's fitting is the training's."""
    session = onnxruntime.InferenceSession(done.folder / "student-int8.onnx")
    raw, right, agreed = done.folder / "student-raw.onnx", 0, 0
    for label, name in enumerate(("ant", "bee")):
        for path in sorted((done.folder.parent / "mine/test" / name).iterdir()):
            with Image.open(path) as opened:
                fitted = np.asarray(ImageOps.fit(opened, (16, 16), Image.Resampling.BILINEAR), dtype=np.float32) / 255
                pixels = np.asarray(opened)[None]
            read = np.ascontiguousarray(fitted.transpose(2, 0, 1))[None]
            right += int(session.run(None, {"input": read})[0].argmax() == label)
            wanted = run_on(done.folder / "student.onnx", "input", read)
            agreed += int(np.allclose(run_on(raw, "pixels", pixels), wanted, atol=0.05))
    assert right / 8 == done.result["int8"]["accuracy"]
    assert agreed == 8


def test_the_cards_blocks_run_alone_the_picture_file_among_them(done: Done) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (done.folder / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 4
    assert "student-raw.onnx" in blocks[1]
    (done.folder / "blocks").write_text("\0".join(blocks))
    found = subprocess.run(
        [sys.executable, "-I", "-c", ALONE], cwd=done.folder, capture_output=True, text=True, timeout=120, check=False
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.splitlines()[1] in ("ant", "bee")


def test_the_readmes_code_names_a_pictures_class(done: Done) -> None:
    page = (Path(__file__).parents[2] / "README.md").read_text()
    (block,) = [each for each in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "student-raw.onnx" in each]
    Image.new("RGB", (50, 20), (250, 250, 250)).save(done.folder / "picture.png")
    found = subprocess.run(
        [sys.executable, "-I", "-c", block], cwd=done.folder, capture_output=True, text=True, timeout=120, check=False
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip() in ("ant", "bee")


def test_the_papers_say_where_data_and_teachers_come_from(done: Done) -> None:
    made = json.loads((done.folder / "model.json").read_text())["provenance"]
    assert made["samples"] == {"train": 16, "validation": 8, "test": 8, "transfer": 16,
                               "train_classes": made["samples"]["train_classes"]}  # fmt: skip
    assert sum(made["samples"]["train_classes"].values()) == 16
    digest = hashlib.sha256((done.folder / "teacher-1.safetensors").read_bytes()).hexdigest()
    assert made["teacher_digests"] == [f"sha256:{digest}"]
    card = (done.folder / "README.md").read_text()
    assert "Samples: 16 train, 8 validation, 8 test." in card
    assert f"trained for this job on the same data (sha256:{digest}), accuracy" in card
    assert "Licences of the data and of weights that were given are not known" in card


def test_quantising_that_fails_is_told_and_loses_nothing(
    done: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A student whose file onnxruntime cannot read: as a network would be that it has no kernels for."""

    def spoilt(job: Any, student: Path, out: Path) -> dict[str, Any]:
        (tmp_path / "bad.onnx").write_bytes(b"no model")
        return save_int8(job, tmp_path / "bad.onnx", out)

    monkeypatch.setattr(finish, "save_int8", spoilt)
    reporter = RecordingReporter()
    document_ = document(
        "mine", teachers=[], stages=[{"epochs": 1, "batch_size": 8, "losses": [{"type": "cross_entropy"}]}]
    )
    document_ |= {"baseline": False}
    result = run(parse_spec(document_), data_root=done.folder.parent, out=tmp_path / "out", reporter=reporter)
    assert result["int8"] is None
    assert "onnx" in result["left_out"]["student-int8.onnx"].lower()
    assert dict(reporter.events)["file_left_out"]["name"] == "student-int8.onnx"
    assert not (tmp_path / "out/student-int8.onnx").exists()
    assert (tmp_path / "out/student.onnx").exists()
    assert "There is no `student-int8.onnx`" in (tmp_path / "out/README.md").read_text()


def test_recurrence_and_attention_are_quantised_as_they_come(tmp_path: Path) -> None:
    _, student, _ = raw_of(tmp_path, COLOUR, RowsConfig())
    assert method_of(onnx.load(student), COLOUR) == "dynamic"
    quantise(student, tmp_path / "prepared.onnx", tmp_path / "int8.onnx", "dynamic", iter(()))
    kinds = {node.op_type for node in onnx.load(tmp_path / "int8.onnx").graph.node}
    assert {"GRU", "MatMulInteger"} <= kinds
    rows = np.random.default_rng(4).random((3, 12, 48), dtype=np.float32)
    assert np.allclose(run_on(tmp_path / "int8.onnx", "input", rows), run_on(student, "input", rows), atol=0.05)
    _, student, _ = raw_of(tmp_path, COLOUR)
    assert method_of(onnx.load(student), COLOUR) == "static"


LOAD = """
import sys
{refuse}
import json, numpy, torch
{block}
numpy.save("found.npy", logits)
"""


@pytest.mark.parametrize("config", [TorchvisionConfig(name="shufflenet_v2_x0_5"), TimmConfig(name="resnet10t")])
def test_a_foreign_students_weights_load_where_its_network_is_from(
    done: Done, tmp_path: Path, config: TorchvisionConfig | TimmConfig
) -> None:
    facts = DataFacts((3, 32, 32), ("ant", "bee"), 10, 2, 3, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    torch.manual_seed(0)
    network = config.build(facts.input_shape, 2)
    export.save_weights(tmp_path / "student.safetensors", network.state_dict())
    model = json.loads((done.folder / "model.json").read_text())
    model["architecture"] = config.model_dump(mode="json")
    model["input"] = {"shape": [3, 32, 32], "layout": "NCHW", "view": None}
    model["preprocessing"] |= {"mean": list(facts.mean), "std": list(facts.std)}
    (tmp_path / "model.json").write_text(json.dumps(model))
    card = model_card(done.result, model, None, config.original(facts.input_shape, 2))
    block = next(
        each for each in re.findall(r"```python\n(.*?)```", card, re.DOTALL) if f"import {config.type}" in each
    )
    assert "kdcore" not in block
    code = LOAD.format(refuse=ALONE.split("for number")[0], block=block)
    found = subprocess.run(
        [sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert found.returncode == 0, found.stderr
    inputs = torch.from_numpy(np.random.default_rng(0).random((4, 3, 32, 32), dtype="float32"))
    with torch.no_grad():
        wanted = Classifier(Reader(facts, None), network).eval()(inputs).numpy()
    assert np.allclose(np.load(tmp_path / "found.npy"), wanted, rtol=1e-4, atol=1e-5)


def test_a_name_that_torchvision_does_not_have_is_no_expression_of_ours() -> None:
    with pytest.raises(ValueError, match="name"):
        TorchvisionConfig(name="resnet18'); print('")
    assert MLPConfig(hidden=[4]).original((3, 8, 8), 2) is None


def test_what_no_picture_file_holds_has_no_raw_file() -> None:
    assert reads_pictures(COLOUR)
    assert reads_pictures(GREY)
    assert not reads_pictures(replace(COLOUR, bytes_each=4))
    assert not reads_pictures(replace(COLOUR, input_shape=(5, 12, 16)))
    assert not reads_pictures(replace(COLOUR, input_shape=(12,)))
