"""Paired data: samples of several fields, of which teacher and student read different ones."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pyarrow
import pyarrow.parquet
import pytest
import torch
from safetensors.numpy import save_file

from kdcore.data import DataError, Places, UploadConfig, ViewError
from kdcore.data.views import FieldConfig
from kdcore.inputs import Reader, unit
from kdcore.plan import make_plan
from kdcore.reporter import RecordingReporter
from kdcore.spec import SpecError, parse_spec
from kdcore.train import run
from kdcore.uploads import DatasetOptions, DatasetProfile, check_dataset

ID = "ds_" + "0" * 26
FIELDS = ["image", "sound"]


def pairs(count: int = 300) -> dict[str, np.ndarray[Any, Any]]:
    """Bytes (N, 4, 6), numbers (N, 3) and three classes that both tell of: the image plainly, the sound with noise."""
    random = np.random.default_rng(0)
    labels = np.arange(count) % 3
    image = random.integers(0, 60, (count, 4, 6)).astype(np.uint8)
    image[np.arange(count), labels] += 180
    sound = (np.eye(3)[labels] + 0.5 * random.normal(size=(count, 3))).astype(np.float32)
    return {"image": image, "sound": sound, "labels": labels}


def checked(path: Path, **options: Any) -> DatasetProfile:
    return check_dataset(path, DatasetOptions(**{"fields": FIELDS} | options), out=path.parent / "page")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.npz"
    np.savez(path, **pairs())
    return path


def spec(profile: DatasetProfile, teacher: Any = "image", student: Any = "sound") -> Any:
    def view(field: Any) -> Any:
        return {"type": "field", "field": field} if isinstance(field, str) else field

    return parse_spec({
        "data": {"type": "upload", "dataset": ID, "profile": profile.model_dump(mode="json")},
        "teachers": [{"model": {"type": "mlp", "hidden": [16]}, "view": view(teacher), "train": {"epochs": 8}}],
        "student": {"model": {"type": "mlp", "hidden": [8]}, "view": view(student)},
        "stages": [{"epochs": 20, "batch_size": 16, "optimizer": {"type": "adam", "lr": 0.01}}],
    })  # fmt: skip


def test_each_field_is_measured_as_if_it_were_alone(file: Path) -> None:
    profile, known = checked(file), pairs()
    image, sound = profile.fields
    assert (profile.kind, profile.shape, profile.integers) == ("vector", [1 * 4 * 6 + 3], False)
    assert (image.name, image.shape, sound.name, sound.shape) == ("image", [1, 4, 6], "sound", [3])
    assert image.mean == [pytest.approx(known["image"].mean() / 255, rel=1e-4)]
    assert sound.mean == pytest.approx(known["sound"].mean(0), rel=1e-4)
    assert sound.std == pytest.approx(known["sound"].std(0), rel=1e-4)
    assert DatasetProfile.model_validate(profile.model_dump(mode="json")) == profile


@pytest.mark.parametrize("kind", ["npz", "safetensors", "parquet", "jsonl", "csv"])
def test_a_network_reads_its_field_alone_whatever_the_file(tmp_path: Path, kind: str) -> None:
    known = pairs(60)
    path = tmp_path / f"pairs.{kind}"
    if kind == "npz":
        np.savez(path, **known)
    elif kind == "safetensors":
        save_file(known, path)
    else:
        rows = [
            {"image": (image / np.float32(255)).ravel().tolist(), "sound": sound.tolist(), "label": f"c{label}"}
            for image, sound, label in zip(*known.values(), strict=True)
        ]
        if kind == "parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        elif kind == "jsonl":
            path.write_text("\n".join(map(json.dumps, rows)))
        else:
            with path.open("w") as opened:
                writer = csv.DictWriter(opened, ["image", "sound", "label"])
                writer.writeheader()
                writer.writerows(rows)
    profile = checked(path)
    data = UploadConfig(dataset=ID, profile=profile, validation=10).load(Places(tmp_path, uploads={ID: path}))
    whole = unit(torch.cat([data.train.inputs[:], data.test.inputs[:]]), data.scale)
    labels = torch.cat([data.train.labels, data.test.labels])
    image, sound = (Reader(data.facts, FieldConfig(field=name)) for name in FIELDS)
    assert image.facts.input_shape == ((1, 4, 6) if kind in ("npz", "safetensors") else (24,))
    seen = {name: reader.seen(whole).flatten(1) for name, reader in zip(FIELDS, (image, sound), strict=True)}
    sounds = torch.from_numpy(known["sound"])
    for place, label in enumerate(labels):  # each row is one sample's, both of its fields
        number = int((sounds - seen["sound"][place]).abs().sum(1).argmin())
        assert torch.allclose(seen["sound"][place], sounds[number])
        assert torch.allclose(seen["image"][place], torch.from_numpy(known["image"][number].ravel() / np.float32(255)))
        assert label == known["labels"][number]


def test_the_teacher_sees_and_the_student_hears(file: Path, tmp_path: Path) -> None:
    job = spec(checked(file))
    plan = make_plan(job)
    assert (plan.teachers[0].parameters, plan.student.parameters) == (24 * 16 + 16 + 16 * 3 + 3, 3 * 8 + 8 + 8 * 3 + 3)
    out = tmp_path / "out"
    result = run(job, data_root=tmp_path, out=out, reporter=RecordingReporter(), uploads={ID: file})
    assert result["teacher"]["accuracy"] == 1
    assert result["student"]["accuracy"] > 0.6
    session = onnxruntime.InferenceSession(str(out / "student.onnx"))
    (read,) = session.get_inputs()
    assert read.shape[1:] == [3]
    said = session.run(None, {"input": pairs()["sound"]})[0]
    assert (said.argmax(1) == pairs()["labels"]).mean() > 0.6


def test_bytes_alone_stay_bytes(tmp_path: Path) -> None:
    known = pairs()
    np.savez(tmp_path / "pairs.npz", left=known["image"], right=255 - known["image"], labels=known["labels"])
    profile = checked(tmp_path / "pairs.npz", fields=["left", "right"])
    config = UploadConfig(dataset=ID, profile=profile)
    data = config.load(Places(tmp_path, uploads={ID: tmp_path / "pairs.npz"}))
    assert (profile.integers, data.facts.bytes_each, data.scale) == (True, 1, 255)
    whole = unit(data.train.inputs[:], data.scale)
    left, right = (Reader(data.facts, FieldConfig(field=name)).seen(whole) for name in ("left", "right"))
    assert torch.allclose(left + right, torch.ones_like(left))


def test_pairs_with_a_part_missing_are_left_out_and_named(tmp_path: Path) -> None:
    rows = [{"image": [n, 1.0], "sound": [float(n)] if n != 7 else None, "label": n % 2} for n in range(40)]
    path = tmp_path / "pairs.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    with pytest.raises(DataError, match=r"1 of 40 samples cannot be read \(row 8: it has no 'sound'") as caught:
        checked(path)
    assert caught.value.field == "unreadable"
    profile = checked(path, unreadable=0.1)
    assert [each.name for each in profile.unreadable_samples] == ["row 8"]
    assert profile.samples.train + profile.samples.test == 39
    config = UploadConfig(dataset=ID, profile=profile)
    assert len(config.load(Places(tmp_path, uploads={ID: path})).train) == config.facts().train


BAD: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"sound": pairs()["sound"][:299]}, {}, "one row a sample, here are"),
    ({}, {"fields": ["image", "smell"]}, "'image' has no smell beside it; add `smell`"),
    ({}, {"fields": ["image"]}, "two fields or more"),
    ({}, {"fields": ["image", "Image"]}, "two fields or more"),
    ({}, {"inputs": ["image"]}, "leave `inputs` and `kind` out"),
    ({"sound": np.array(["a"] * 300)}, {}, "which is no number"),
    ({"sound": np.zeros((300, 2, 2, 2, 2), np.float32)}, {}, r"of shape \[2, 2, 2, 2\] cannot be read"),
]


@pytest.mark.parametrize(("arrays", "options", "said"), BAD, ids=[said[:20] for _, _, said in BAD])
def test_files_that_hold_no_pairs(tmp_path: Path, arrays: dict[str, Any], options: dict[str, Any], said: str) -> None:
    np.savez(tmp_path / "pairs.npz", **(pairs() | arrays))
    with pytest.raises(DataError, match=said):
        checked(tmp_path / "pairs.npz", **options)


def test_fields_of_tables_are_numbers_of_one_size(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    rows = [{"image": [1.0, n], "sound": [n] * (1 + n // 30), "label": n % 2} for n in range(40)]
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match=r"'sound' of line 31 has shape \[2\], the first one \[1\]") as caught:
        checked(path)
    assert caught.value.field == "fields"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"image": "a", "sound": 1.0, "label": 1}]), path)
    with pytest.raises(DataError, match="'image' holds neither numbers nor lists of them"):
        checked(path)


@pytest.mark.parametrize(
    ("teacher", "student", "loc", "said"),
    [
        (None, "sound", ("teachers", 0, "view"), "they have 'image', 'sound'; name the one that is read"),
        ({"type": "rows"}, "sound", ("teachers", 0, "view"), "name the one that is read"),
        ("image", "smell", ("student", "view", "field"), "no field 'smell'; they have 'image', 'sound'"),
    ],
)
def test_a_network_names_a_field_that_is_there(
    file: Path, teacher: Any, student: Any, loc: tuple[Any, ...], said: str
) -> None:
    with pytest.raises(SpecError) as caught:
        make_plan(spec(checked(file), teacher, student))
    ((found, message),) = caught.value.errors
    assert found == loc
    assert said in message


def test_data_that_is_not_paired_has_no_fields(file: Path) -> None:
    facts = UploadConfig(dataset=ID, profile=checked(file)).facts()
    with pytest.raises(ViewError, match="these samples are not paired") as caught:
        FieldConfig(field="image").facts(replace(facts, fields=()))
    assert caught.value.field == "type"
