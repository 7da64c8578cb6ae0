"""A teacher of which only its logits are there, brought by an uploaded data set."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from kdcore.data import DataError, DigitsConfig, Places, upload
from kdcore.inputs import Classifier, Reader, unit
from kdcore.models import MLPConfig
from kdcore.plan import make_plan
from kdcore.reporter import RecordingReporter
from kdcore.spec import SpecError, parse_spec
from kdcore.train import run
from kdcore.uploads import DatasetOptions, DatasetProfile, check_dataset

ID = "ds_" + "0" * 26
TEACHER = MLPConfig(hidden=[16])


def teacher() -> Any:
    torch.manual_seed(3)
    return TEACHER.build((1, 8, 8), 10).eval()


@pytest.fixture
def given(tmp_path: Path) -> tuple[Path, DatasetProfile]:
    """400 digits as a file with the logits of a network, which is in teacher.safetensors, and what its check found."""
    data = DigitsConfig(validation=1).load(Places(Path("nowhere")))
    pixels = (data.train.inputs[:400].float() * 255 / 16).to(torch.uint8)
    arrays = {"inputs": pixels[:, 0].numpy(), "labels": data.train.labels[:400].numpy()}
    path = tmp_path / "digits.npz"
    np.savez(path, **arrays)
    facts = document(checked(path)).data.load(Places(tmp_path, uploads={ID: path})).facts
    reader = Reader(facts, None)
    with torch.no_grad():
        logits = Classifier(reader, teacher())(unit(pixels, 255.0))
    np.savez(path, **arrays, logits=logits.numpy())
    save_file(teacher().state_dict(), tmp_path / "teacher.safetensors")
    return path, checked(path)


def checked(path: Path) -> DatasetProfile:
    return check_dataset(path, DatasetOptions(), out=path.parent / "page")


def test_what_the_teacher_said_is_memory_too(given: tuple[Path, DatasetProfile], monkeypatch: Any) -> None:
    _, profile = given
    assert make_plan(document(profile)).memory.data == 400 * (64 + 8 + 4 * 10)
    monkeypatch.setattr(upload, "RESIDENT", 400 * (64 + 4 * 10) - 1)
    assert make_plan(document(profile)).memory.data == 400 * 8
    several = document(
        profile.model_copy(update={"task": "multi_label", "imbalance": None}),
        stages=[{"losses": [{"type": "logit_mse"}, {"type": "binary_cross_entropy"}]}],
    )
    assert make_plan(several).memory.data == 400 * 4 * 10


def document(profile: DatasetProfile, **changes: Any) -> Any:
    return parse_spec(
        {
            "data": {"type": "upload", "dataset": ID, "profile": profile.model_dump(mode="json")},
            "teachers": [{"model": {"type": "logits"}}],
            "student": {"model": {"type": "mlp", "hidden": [8]}},
            "stages": [{"epochs": 2, "batch_size": 32}],
            **changes,
        }
    )


def trained(spec: Any, path: Path, out: str, **options: Any) -> tuple[dict[str, Any], RecordingReporter]:
    reporter = RecordingReporter()
    result = run(
        spec, data_root=path.parent, out=path.parent / out, reporter=reporter, uploads={ID: path}, download=False,
        **options,
    )  # fmt: skip
    return result, reporter


def test_it_teaches_what_the_network_itself_would(given: tuple[Path, DatasetProfile]) -> None:
    path, profile = given
    known = [{"model": TEACHER.model_dump(mode="json"), "weights": {"file": "teacher.safetensors"}}]
    by_logits, _ = trained(document(profile), path, "logits")
    by_network, _ = trained(document(profile, teachers=known), path, "network")
    for key in ("accuracy", "agreement", "predictive_kl", "nll"):
        assert by_logits["student"][key] == pytest.approx(by_network["student"][key], rel=1e-3, abs=1e-6), key
    for key in ("accuracy", "nll"):
        assert by_logits["teacher"][key] == pytest.approx(by_network["teacher"][key], rel=1e-4)
    unknown = {key: by_logits["teacher"][key] for key in ("parameters", "flops", "bytes")}
    assert unknown == dict.fromkeys(unknown)
    assert by_logits["speedup"] is None
    assert by_logits["compression"] == dict.fromkeys(unknown)
    assert "latency_ms" not in by_logits["teacher"]
    card = (path.parent / "logits" / "README.md").read_text()
    assert "of which the data set brings the logits, accuracy" in card
    assert "| latency p50, ms | unknown |" in card


def test_it_is_measured_before_it_teaches_and_told_where_it_is_bad(given: tuple[Path, DatasetProfile]) -> None:
    path, profile = given  # an untrained network: no better than a constant
    result, reporter = trained(document(profile), path, "out")
    assert result["worse_teachers"][0]["than"] == "majority"
    assert any(name == "teacher_worse" for name, _ in reporter.events)
    stage, step, values = reporter.points[0]
    assert (stage, step) == ("teacher-1", 0)
    assert values["validation/accuracy"] == result["validation"]["teacher-1"]["accuracy"]


def test_augmentation_changes_only_what_the_student_sees(given: tuple[Path, DatasetProfile]) -> None:
    path, profile = given
    changed = document(profile, stages=[{"epochs": 1, "batch_size": 32, "augment": {"jitter": 1}}])
    assert any("samples as they are" in warning for warning in make_plan(changed).warnings)
    assert make_plan(changed).stages[-1].target_bytes == 0
    result, _ = trained(changed, path, "out")
    assert 0 <= result["student"]["agreement"] <= 1


@pytest.mark.parametrize(
    ("changes", "loc"),
    [
        ({"weights": {"file": "a.safetensors"}}, ("teachers", 0, "weights")),
        ({"view": {"type": "resize", "size": 4}}, ("teachers", 0, "view")),
        ({"classes": [str(n) for n in range(10)]}, ("teachers", 0, "classes")),
        ({"train": {"epochs": 1}}, ("teachers", 0, "train")),
    ],
)
def test_it_is_no_network(given: tuple[Path, DatasetProfile], changes: Any, loc: Any) -> None:
    with pytest.raises(SpecError, match="is no network") as caught:
        make_plan(document(given[1], teachers=[{"model": {"type": "logits"}, **changes}]))
    assert loc in [each for each, _ in caught.value.errors]


def test_the_data_must_bring_them(given: tuple[Path, DatasetProfile]) -> None:
    without = given[1].model_copy(update={"logits": type(given[1].logits)()})
    with pytest.raises(SpecError, match="a column or tensor `logits`") as caught:
        make_plan(document(without))
    assert caught.value.errors[0][0] == ("teachers", 0, "model", "type")


def test_a_loss_on_hidden_layers_and_a_student_of_that_type_are_refused(given: tuple[Path, DatasetProfile]) -> None:
    with pytest.raises(SpecError) as caught:
        make_plan(document(given[1], stages=[{"losses": [{"type": "hint"}]}]))
    assert caught.value.errors[0][0][:4] == ("stages", 0, "losses", 0)
    with pytest.raises(SpecError, match="cannot be") as caught:
        make_plan(document(given[1], student={"model": {"type": "logits"}}))
    assert caught.value.errors[0][0] == ("student", "model", "type")


def test_logits_of_some_samples_only_are_refused(tmp_path: Path) -> None:
    inputs = np.random.default_rng(0).random((40, 4), dtype=np.float32)
    labels = np.arange(40) % 2
    path = tmp_path / "some.npz"
    np.savez(path, inputs=inputs, labels=labels, logits=np.zeros((39, 2), np.float32))
    with pytest.raises(DataError, match="logits"):
        checked(path)
