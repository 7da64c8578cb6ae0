"""Uploaded data from its file to a student: checked, prepared once, and read as the spec says."""

import io
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

from kdcore.data import DataError, DigitsConfig, Places, UploadConfig
from kdcore.data import upload as upload_module
from kdcore.data.stored import StoredRows
from kdcore.errors import TrainingError, data_errors
from kdcore.plan import make_plan
from kdcore.reporter import RecordingReporter
from kdcore.spec import SpecError, parse_spec
from kdcore.train import run
from kdcore.uploads import DatasetOptions, DatasetProfile, check_dataset
from tests.disks import files_of_at_most

ID = "ds_" + "0" * 26


def digits() -> dict[str, np.ndarray[Any, Any]]:
    """800 handwritten digits, (N, 8, 8) bytes, and their classes."""
    data = DigitsConfig(validation=1).load(Places(Path("nowhere")))
    assert isinstance(data.train.inputs, torch.Tensor)
    pictures = (data.train.inputs.float() * 255 / 16).to(torch.uint8)
    return {"inputs": pictures[:800, 0].numpy(), "labels": data.train.labels[:800].numpy()}


def checked(path: Path, **options: Any) -> DatasetProfile:
    return check_dataset(path, DatasetOptions(**options), out=path.parent / "page")


def config(profile: DatasetProfile, **options: Any) -> UploadConfig:
    return UploadConfig(dataset=ID, profile=profile, **options)


@pytest.fixture
def digits_file(tmp_path: Path) -> Path:
    path = tmp_path / "digits"
    with path.open("wb") as file:
        np.savez(file, **digits())
    return path


def test_a_profile_says_what_is_there(digits_file: Path) -> None:
    profile = checked(digits_file)
    known = digits()
    assert (profile.format, profile.kind, profile.shape, profile.integers) == ("npz", "vector", [1, 8, 8], True)
    assert (profile.samples.train, profile.samples.validation, profile.samples.test) == (720, 0, 80)
    assert [each.name for each in profile.classes] == list("0123456789")
    counts = np.bincount(known["labels"])
    assert [each.samples.train + each.samples.test for each in profile.classes] == counts.tolist()
    assert all(abs(each.samples.test - n / 10) <= 1 for each, n in zip(profile.classes, counts, strict=True))
    assert profile.mean == [pytest.approx(known["inputs"].mean() / 255)]
    assert profile.std == [pytest.approx(known["inputs"].std() / 255)]
    assert DatasetProfile.model_validate(profile.model_dump(mode="json")) == profile


def test_any_beginning_of_the_training_samples_is_stratified_and_stays(digits_file: Path) -> None:
    profile, places = checked(digits_file), Places(digits_file.parent, uploads={ID: digits_file})
    whole = config(profile).load(places)
    few = config(profile, train_samples=100, validation=72).load(places)
    assert torch.equal(few.train.labels, whole.train.labels[:100])
    counts = torch.bincount(few.train.labels, minlength=10)
    expected = torch.bincount(whole.train.labels, minlength=10) * 100 / len(whole.train)
    assert (counts - expected).abs().max() <= 1.5
    assert whole.digest == config(profile).load(places).digest != few.digest


def test_the_file_is_looked_for_where_it_is_read_only(digits_file: Path, tmp_path: Path) -> None:
    profile, found = checked(digits_file), list[Path]()

    def find() -> Path:
        found.append(digits_file)
        return digits_file

    places = Places(tmp_path, uploads={ID: find}, cache=tmp_path / "cache")
    first = config(profile).load(places)
    digits_file.unlink()
    assert config(profile).load(places).digest == first.digest
    assert len(found) == 1


def test_a_large_data_set_stays_in_its_file_and_gives_the_same_samples(
    digits_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = checked(digits_file)
    places = Places(tmp_path, uploads={ID: digits_file}, cache=tmp_path / "cache")
    resident = config(profile).load(places)
    monkeypatch.setattr(upload_module, "RESIDENT", 0)
    stored = config(profile).load(places)
    assert isinstance(stored.train.inputs, StoredRows)
    assert not stored.facts.resident
    assert isinstance(resident.train.inputs, torch.Tensor)
    some = torch.tensor([5, 0, 647])
    assert torch.equal(stored.train.inputs[some], resident.train.inputs[some])
    assert torch.equal(stored.test.inputs[3:9], resident.test.inputs[3:9])
    assert stored.digest == resident.digest
    assert make_plan(spec(profile)).memory.data < 20_000


def spec(profile: DatasetProfile, **data: Any) -> Any:
    document = {
        "data": {"type": "upload", "dataset": ID, "profile": profile.model_dump(mode="json"), **data},
        "teachers": [{"model": {"type": "mlp", "hidden": [64]}, "train": {"epochs": 4}}],
        "student": {"model": {"type": "mlp", "hidden": [8]}},
        "stages": [{"epochs": 2}],
    }
    return parse_spec(document)


@pytest.mark.parametrize("resident", [True, False])
def test_a_job_on_an_uploaded_data_set(
    digits_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resident: bool
) -> None:
    if not resident:
        monkeypatch.setattr(upload_module, "RESIDENT", 0)
    profile = checked(digits_file)
    job = spec(profile)
    out, uploads = tmp_path / "out", {ID: digits_file}
    result = run(job, data_root=tmp_path, out=out, reporter=RecordingReporter(), uploads=uploads, cache=tmp_path / "c")
    assert result["teacher"]["accuracy"] > 0.8
    assert result["test_samples"] == 80
    assert f", your own, {ID}, the file {profile.digest}. " in (out / "README.md").read_text()


def test_safetensors_with_splits_of_its_own_and_logits(tmp_path: Path) -> None:
    known = {name: array.astype(np.float32 if name == "inputs" else np.int64) for name, array in digits().items()}
    logits = np.random.default_rng(0).normal(size=(800, 10)).astype(np.float32)
    parts = {"train": slice(0, 600), "val": slice(600, 700), "test": slice(700, 800)}
    arrays = {f"{part}_{name}": array[rows] for part, rows in parts.items() for name, array in known.items()}
    arrays |= {f"{part}_logits": logits[rows] for part, rows in parts.items()}
    path = tmp_path / "digits.safetensors"
    save_file(arrays, path)
    profile = checked(path)
    assert (profile.samples.train, profile.samples.validation, profile.samples.test) == (600, 100, 100)
    assert profile.logits == profile.samples
    data = config(profile).load(Places(tmp_path, uploads={ID: path}))
    assert isinstance(data.test.teacher_logits, torch.Tensor)
    assert isinstance(data.test.inputs, torch.Tensor)
    flat = torch.from_numpy(known["inputs"][700:]).flatten(1)
    for row in range(0, 100, 9):
        place = int((flat == data.test.inputs[row].flatten()).all(1).nonzero()[0])
        assert torch.equal(data.test.teacher_logits[row], torch.from_numpy(logits[700 + place]))
        assert int(data.test.labels[row]) == int(known["labels"][700 + place])


def test_a_job_is_normalised_with_its_training_samples_alone(digits_file: Path, tmp_path: Path) -> None:
    places, profile = Places(tmp_path, uploads={ID: digits_file}), checked(digits_file)
    data = config(profile).load(places)
    inputs = torch.cat([data.validation.inputs, data.train.inputs]).double() / 255  # type: ignore[list-item]
    assert data.facts.mean == pytest.approx([inputs.mean().item()], rel=1e-12)
    assert data.facts.std == pytest.approx([inputs.std(correction=0).item()], rel=1e-9)
    assert data.facts.mean[0] != pytest.approx(profile.mean[0], rel=1e-6)
    assert config(profile, train_samples=50).load(places).facts.mean == data.facts.mean


def test_every_picture_counts_the_same_whatever_its_size(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as packed:
        for number in range(20):
            dark = number % 2
            content = io.BytesIO()
            Image.new("RGB", (16, 16) if dark else (160, 160), (50, 100, 0) if dark else (150, 100, 0)).save(
                content, "png"
            )
            packed.writestr(f"{'train' if number < 16 else 'test'}/{'ab'[dark]}/{number}.png", content.getvalue())
            if number == 16:  # black, and never trained on
                content = io.BytesIO()
                Image.new("RGB", (16, 16)).save(content, "png")
                packed.writestr("test/a/black.png", content.getvalue())
    profile = checked(tmp_path / "pictures.zip")
    places = Places(tmp_path, uploads={ID: tmp_path / "pictures.zip"})
    facts = config(profile, size=8).load(places).facts
    assert facts.mean == pytest.approx([100 / 255, 100 / 255, 0])
    assert facts.std == pytest.approx([50 / 255, 1, 1])
    assert profile.mean[0] > 140 / 255
    grey = config(profile, size=8, grey=True).load(places).facts
    assert grey.mean == pytest.approx([(0.299 * 100 + 0.587 * 100) / 255], abs=1 / 255)
    published = config(profile, size=8, normalise="imagenet").load(places).facts
    assert published.mean == upload_module.IMAGENET[0]


def test_what_has_no_room_is_not_begun(digits_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = Places(tmp_path, uploads={ID: digits_file}, cache=tmp_path / "cache", cache_bytes=1000)
    data = config(checked(digits_file))
    with pytest.raises(DataError, match="take 57,600 bytes, and the cache may have 1,000") as caught:
        data.load(places)
    assert caught.value.field == "dataset"
    data.load(replace(places, cache_bytes=60_000))
    monkeypatch.setattr(upload_module, "SPARED", 2**60)
    data.load(places)  # it is there, and takes no more
    with pytest.raises(DataError, match="takes 115,200 bytes, and there is room for 0"):
        data.load(Places(tmp_path, uploads={ID: digits_file}))


def test_a_full_disk_is_not_the_data_sets_fault(
    digits_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There may be room another time; half of what was prepared is in nobody's way until then."""
    cache = tmp_path / "cache"
    data, places = config(checked(digits_file)), Places(tmp_path, uploads={ID: digits_file}, cache=cache)
    with files_of_at_most(20_000), pytest.raises(TrainingError, match="the disk is full") as caught, data_errors():
        data.load(places)
    assert (caught.value.code, caught.value.kind) == ("disk", "system")
    assert not [path for path in cache.iterdir() if path.is_dir()]
    with monkeypatch.context() as patch:
        patch.setattr(upload_module, "SPARED", 2**60)
        with pytest.raises(TrainingError, match="the disk is full") as caught, data_errors():
            data.load(places)
    assert (caught.value.code, caught.value.kind) == ("disk", "system")
    with pytest.raises(TrainingError, match="cache_bytes") as caught, data_errors():
        data.load(replace(places, cache_bytes=1000))  # which another try would not change
    assert (caught.value.code, caught.value.kind) == ("bad_data", "user")
    assert len(data.load(places).test.labels) == 80


def test_room_is_made_before_it_is_needed(digits_file: Path, tmp_path: Path) -> None:
    profile, cache = checked(digits_file), tmp_path / "cache"
    places = Places(tmp_path, uploads={ID: digits_file}, cache=cache, cache_bytes=60_000)
    sizes: list[int] = []

    def measure() -> None:
        sizes.append(sum(path.stat().st_size for path in cache.glob("*/*")))

    config(profile).load(places)
    old = next(path for path in cache.iterdir() if path.is_dir())
    other = profile.model_copy(update={"options": DatasetOptions(seed=1)})
    config(other).load(replace(places, poll=measure))
    assert not old.exists()
    assert max(sizes[1:]) < 57_600 * 2.1  # twice its own, and nothing beside it


@pytest.mark.parametrize(("kind", "field"), [("picture", "size"), ("text", "length"), ("vector", "dataset")])
def test_what_cannot_fit_is_told_by_its_field(digits_file: Path, tmp_path: Path, kind: str, field: str) -> None:
    profile = checked(digits_file)
    data = config(profile.model_copy(update={"kind": kind, "mean": profile.mean * 3, "std": profile.std * 3}))
    cache = tmp_path / "cache"
    for most, spared, message in ((1000, 0, "cache_bytes"), (2**40, 2**60, "there is room for 0")):
        with pytest.raises(DataError, match=message) as caught:
            data.check_cache(cache, most, spared, ())
        assert caught.value.field == field
    data.check_cache(cache, 2**40, 0, ())


def test_nothing_is_known_of_it_before_its_check() -> None:
    with pytest.raises(SpecError, match="wait until it is ready") as caught:
        make_plan(parse_spec({**spec_document(), "data": {"type": "upload", "dataset": "flowers@1"}}))
    assert caught.value.errors[0][0] == ("data", "dataset")


def spec_document() -> dict[str, Any]:
    mlp = {"model": {"type": "mlp", "hidden": [8]}}
    return {"teachers": [mlp], "student": mlp}


def test_the_file_must_be_given_and_be_the_one_that_was_checked(digits_file: Path, tmp_path: Path) -> None:
    profile = checked(digits_file)
    with pytest.raises(DataError, match="was not given"):
        config(profile).load(Places(tmp_path))
    with digits_file.open("ab") as file:
        file.write(b"more")
    with pytest.raises(DataError, match="not the one that was checked"):
        config(profile).load(Places(tmp_path, uploads={ID: digits_file}))


def resident_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


def test_reading_a_large_file_leaves_memory_flat(tmp_path: Path) -> None:
    rows, shape = 2**29 // (3 * 64 * 64), (3, 64, 64)
    path = tmp_path / "inputs.npy"
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (rows, *shape)})
        file.truncate(file.tell() + 2**29)  # a hole: it takes no disk
    stored = StoredRows(path)
    before = resident_bytes()
    most = 0
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(0))
    for start in range(0, rows, 512):
        assert stored[order[start : start + 512]].shape[1:] == shape
        most = max(most, resident_bytes() - before)
    assert most < 150 * 2**20
