"""Every format of uploaded data, from its file to the samples that a job reads."""

import io
import json
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from safetensors.torch import save_file

from kdcore.__main__ import main
from kdcore.data import DataError, Dataset, Places, UploadConfig
from kdcore.plan import make_plan
from kdcore.reporter import RecordingReporter
from kdcore.spec import SpecError, parse_spec
from kdcore.train import run
from kdcore.uploads import DatasetOptions, DatasetProfile, check_dataset

NAME = "flowers@1"


def picture(shade: int, size: tuple[int, int] = (12, 10), mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, shade if mode == "L" else (shade, 10, 200)).save(file, "PNG")
    return file.getvalue()


def folders(classes: Mapping[str, int], part: str = "") -> dict[str, bytes]:
    """Pictures of other shades for every class, by name."""
    return {
        f"{part}{name}/{number}.png": picture(20 * place + number, (12 + number, 10))
        for place, (name, count) in enumerate(classes.items())
        for number in range(count)
    }


def write_zip(path: Path, files: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_tar(path: Path, files: Mapping[str, bytes], mode: Any = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def check(path: Path, **options: Any) -> DatasetProfile:
    return check_dataset(path, DatasetOptions(**options), out=path.parent / "page")


def load(path: Path, profile: DatasetProfile, **options: Any) -> Dataset:
    config = UploadConfig(dataset=NAME, profile=profile, **options)
    return config.load(Places(path.parent, uploads={NAME: path}))


def names(profile: DatasetProfile) -> list[str]:
    return [each.name for each in profile.classes]


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_pictures_in_folders(kind: str, tmp_path: Path) -> None:
    files = folders({"rose": 6, "tulip": 4}, "all/train/") | folders({"tulip": 3, "rose": 2}, "all/test/")
    files |= {"all/.DS_Store": b"x", "all/notes.txt": b"x"}
    path = tmp_path / "upload"
    if kind == "zip":
        write_zip(path, files)
    else:
        write_tar(path, files, "w:gz" if kind == "tar.gz" else "w")
    profile = check(path)
    assert (profile.format, profile.kind) == (kind[:3], "picture")
    assert names(profile) == ["rose", "tulip"]
    assert (profile.samples.train, profile.samples.test, profile.ignored) == (10, 5, 1)
    assert profile.imbalance == 1.5
    assert profile.sizes is not None
    assert (profile.sizes.min_width, profile.sizes.max_width, profile.sizes.max_height) == (12, 17, 10)
    assert profile.mean[1:] == [pytest.approx(10 / 255), pytest.approx(200 / 255)]
    data = load(path, profile, size=8, validation=2)
    assert data.facts.input_shape == (3, 8, 8)
    assert (len(data.train), len(data.validation), len(data.test)) == (8, 2, 5)
    assert isinstance(data.test.inputs, torch.Tensor)
    reds = {int(each[0, 0, 0]): int(label) for each, label in zip(data.test.inputs, data.test.labels, strict=True)}
    assert reds == {0: 1, 1: 1, 2: 1, 20: 0, 21: 0}
    with Image.open(tmp_path / "page" / "thumbnails.png") as sheet:
        assert sheet.size == (640, 128)
    assert len(json.loads((tmp_path / "page" / "rows.json").read_text())) == 15


@pytest.mark.parametrize(("fit", "black"), [("crop", False), ("resize", False), ("pad", True)])
def test_pictures_of_other_sizes_become_squares(fit: Any, black: bool, tmp_path: Path) -> None:
    path = write_zip(tmp_path / "upload", {f"{name}/{n}.png": picture(n, (40, 10)) for name in "ab" for n in range(9)})
    data = load(path, check(path), size=8, fit=fit, grey=True)
    assert isinstance(data.train.inputs, torch.Tensor)
    assert data.train.inputs.shape[1:] == (1, 8, 8)
    assert bool((data.train.inputs == 0).any()) == black


def test_pictures_with_a_table_of_labels_and_logits(tmp_path: Path) -> None:
    rows = [
        {"file_name": f"{n}.png", "label": "ab"[n % 2], "split": "test" if n < 4 else "train", "logits": [n, -n]}
        for n in range(12)
    ]
    table = "\n".join(json.dumps(row) for row in rows).encode()
    files = {f"images/{n}.png": picture(n) for n in range(12)} | {"images/metadata.jsonl": table}
    profile = check(write_zip(tmp_path / "upload", files))
    assert (profile.samples.train, profile.samples.test, names(profile)) == (8, 4, ["a", "b"])
    data = load(tmp_path / "upload", profile, size=8)
    assert isinstance(data.test.inputs, torch.Tensor)
    assert isinstance(data.test.teacher_logits, torch.Tensor)
    shades = data.test.inputs[:, 0, 0, 0].float()
    assert torch.equal(data.test.teacher_logits, torch.stack([shades, -shades], 1))


def test_parquet_as_hugging_face_lays_it_out(tmp_path: Path) -> None:
    images = [{"bytes": picture(n), "path": f"{n}.png"} for n in range(40)]
    features = {"image": {"_type": "Image"}, "label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pyarrow.table({"image": images, "label": [n % 2 for n in range(40)]}).replace_schema_metadata(metadata)
    parquet.write_table(table, tmp_path / "upload", row_group_size=16)
    profile = check(tmp_path / "upload")
    assert (profile.kind, names(profile)) == ("picture", ["cat", "dog"])
    data = load(tmp_path / "upload", profile, size=8)
    assert isinstance(data.test.inputs, torch.Tensor)
    assert torch.equal(data.test.inputs[:, 0, 0, 0].long() % 2, data.test.labels)


@pytest.mark.parametrize("wide", [True, False])
def test_parquet_of_vectors(wide: bool, tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(3, 2, (50, 4))
    columns: dict[str, Any] = {f"c{n}": values[:, n] for n in range(4)} if wide else {"embedding": list(values)}
    labels = {"label": ["yes" if row[0] > 3 else "no" for row in values]}
    parquet.write_table(pyarrow.table(columns | labels), tmp_path / "upload")
    profile = check(tmp_path / "upload")
    assert (profile.kind, profile.shape, names(profile)) == ("vector", [4], ["no", "yes"])
    assert profile.mean == pytest.approx(values.mean(0))
    assert profile.std == pytest.approx(values.std(0))
    data = load(tmp_path / "upload", profile)
    assert isinstance(data.test.inputs, torch.Tensor)
    assert torch.equal((data.test.inputs[:, 0] > 3).long(), data.test.labels)


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_texts_in_tables(kind: str, tmp_path: Path) -> None:
    rows = [(f"a {'good' if n % 2 else 'bad'} film, number {n}", "pos" if n % 2 else "neg") for n in range(40)]
    if kind == "jsonl":
        lines = [json.dumps({"text": text, "label": label}) for text, label in rows]
    else:
        cell = "\t" if kind == "tsv" else ","
        lines = [cell.join(("text", "label")), *(cell.join((f'"{text}"', label)) for text, label in rows)]
    path = tmp_path / "upload"
    path.write_text("\n".join(lines) + "\n")
    profile = check(path)
    assert (profile.format, profile.kind, profile.longest) == (kind, "text", 6)
    data = load(path, profile, vocabulary=50, length=8)
    assert data.tokenizer is not None
    good = data.tokenizer["words"].index("good") + 2
    assert isinstance(data.test.inputs, torch.Tensor)
    assert torch.equal((data.test.inputs == good).any(1).long(), data.test.labels)


def test_a_regression_of_named_columns(tmp_path: Path) -> None:
    path = tmp_path / "upload"
    lines = [f"{n},{n * 2},{n + 0.5}" for n in range(40)]
    path.write_text("\n".join(["x,y,price", *lines]))
    profile = check(path, inputs=["x", "y"], labels=["price"], task="regression")
    assert (names(profile), profile.shape) == (["price"], [2])
    data = load(path, profile)
    assert isinstance(data.train.inputs, torch.Tensor)
    assert torch.equal(data.train.inputs[:, :1] + 0.5, data.train.labels)


def test_several_labels(tmp_path: Path) -> None:
    path = tmp_path / "upload"
    sets = [["red"], ["red", "blue"], []]
    path.write_text("\n".join(json.dumps({"vector": [n, 1], "label": sets[n % 3]}) for n in range(30)))
    profile = check(path, task="multi_label")
    assert names(profile) == ["blue", "red"]
    data = load(path, profile)
    assert isinstance(data.train.inputs, torch.Tensor)
    wanted = torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0]])[data.train.inputs[:, 0].long() % 3]
    assert torch.equal(data.train.labels, wanted)


def test_lists_filled_up_to_one_length_have_no_more_labels(tmp_path: Path) -> None:
    path = tmp_path / "upload"
    sets = [[0, -1], [0, 1], [-1, -1], [2, None]]
    path.write_text("\n".join(json.dumps({"vector": [n, 1], "label": sets[n % 4]}) for n in range(40)))
    profile = check(path, task="multi_label")
    assert names(profile) == ["0", "1", "2"]
    data = load(path, profile)
    assert isinstance(data.train.inputs, torch.Tensor)
    wanted = torch.tensor([[1.0, 0, 0], [1, 1, 0], [0, 0, 0], [0, 0, 1]])[data.train.inputs[:, 0].long() % 4]
    assert torch.equal(data.train.labels, wanted)


def test_an_empty_cell_does_not_make_a_table_of_numbers_a_text(tmp_path: Path) -> None:
    path = tmp_path / "upload"
    path.write_text("a,b,label\n,2,x\n" + "1,2,y\n3,2,x\n" * 15)
    with pytest.raises(DataError, match="line 2: it holds NaN"):
        check(path)
    profile = check(path, unreadable=0.1)
    assert (profile.kind, profile.unreadable) == ("vector", 1)


def test_copies_are_counted_and_leaks_named(tmp_path: Path) -> None:
    path = tmp_path / "upload"
    parts = ["train,1,a", "train,1,a", "train,2,b", "test,1,a", "test,3,b", "test,3,b"]
    path.write_text("\n".join(["split,x,label", *parts]))
    profile = check(path, inputs=["x"], kind="vector")
    assert (profile.duplicates.train, profile.duplicates.test, profile.leaked.test) == (1, 1, 1)
    assert "too good" in profile.warnings[0]


def unlabelled(path: Path, tests: str) -> DatasetProfile:
    """200 points without labels and 40 to test with, two well-separated classes."""
    rng = np.random.default_rng(0)
    rows = [f"train,{a},{b}," for a, b in rng.normal(size=(200, 2))]
    rows += [f"test,{a},{b},{tests and ('up' if a > 0 else 'down')}" for a, b in rng.normal(size=(40, 2))]
    path.write_text("\n".join(["split,a,b,label", *rows]))
    return check(path, inputs=["a", "b"], kind="vector", classes=["down", "up"])


def unlabelled_document(profile: DatasetProfile) -> dict[str, Any]:
    return {
        "data": {"type": "upload", "dataset": NAME, "profile": profile.model_dump(mode="json")},
        "teachers": [{"model": {"type": "mlp", "hidden": [8]}, "weights": {"file": "teacher.safetensors"}}],
        "student": {"model": {"type": "mlp", "hidden": [4]}},
        "stages": [{"epochs": 2, "losses": [{"type": "kd"}]}],
    }


@pytest.mark.parametrize("tests", ["labelled", ""])
def test_training_without_labels(tests: str, tmp_path: Path) -> None:
    profile = unlabelled(tmp_path / "upload", tests)
    assert (profile.labelled.train, profile.labelled.test) == (0, 40 if tests else 0)
    spec = parse_spec(unlabelled_document(profile))
    save_file(spec.teachers[0].model.build((2,), 2, None).state_dict(), tmp_path / "teacher.safetensors")
    reporter = RecordingReporter()
    uploads = {NAME: tmp_path / "upload"}
    result = run(spec, data_root=tmp_path, out=tmp_path / "out", reporter=reporter, uploads=uploads)
    assert result["baseline"] is None
    assert result["test_labels"] == (40 if tests else 0)
    assert (result["student"]["accuracy"] is None) == (not tests)
    assert result["student"]["agreement"] >= 0
    json.dumps(result, allow_nan=False)


def test_losses_that_need_labels_are_refused_where_there_are_none(tmp_path: Path) -> None:
    document = unlabelled_document(unlabelled(tmp_path / "upload", ""))
    document["stages"] = [{"losses": [{"type": "kd"}, {"type": "cross_entropy"}]}]
    document["teachers"] = [{"model": {"type": "mlp", "hidden": [8]}}]
    with pytest.raises(SpecError) as caught:
        make_plan(parse_spec(document))
    places = [loc for loc, _ in caught.value.errors]
    assert ("stages", 0, "losses", 1, "type") in places
    assert ("teachers", 0, "train", "losses", 0, "type") in places


def test_the_command_checks_the_file_and_runs_the_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_zip(tmp_path / "flowers.zip", folders({"rose": 30, "tulip": 30}))
    spec = (Path(__file__).parents[2] / "examples" / "upload-pictures.yaml").read_text()
    (tmp_path / "job.yaml").write_text(
        spec.replace("epochs: 20", "epochs: 1").replace("batch_size: 32", "batch_size: 8")
    )
    (tmp_path / "options.yaml").write_text("test: 0.2\n")
    command = [str(tmp_path / "job.yaml"), "--out", str(tmp_path / "out"), "--data", str(tmp_path)]
    given = ["--upload", f"{NAME}={tmp_path / 'flowers.zip'}", "--upload-options", str(tmp_path / "options.yaml")]
    assert main([*command, *given]) == 0
    assert json.loads((tmp_path / "out" / "result.json").read_text())["test_samples"] == 12
    assert (tmp_path / "out" / "data" / "thumbnails.png").is_file()
    assert main(command) == 2
    assert "data.dataset" in capsys.readouterr().err


def test_shards_of_a_table_in_an_archive(tmp_path: Path) -> None:
    def shard(name: str, first: int) -> bytes:
        rows = [{"text": f"word{n} and more", "label": n % 2} for n in range(first, first + 30)]
        if name.endswith("jsonl"):
            return "\n".join(map(json.dumps, rows)).encode()
        file = io.BytesIO()
        parquet.write_table(pyarrow.Table.from_pylist(rows), file)
        return file.getvalue()

    names = ("data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/test-00000.jsonl")
    files = {name: shard(name, 30 * place) for place, name in enumerate(names)} | {"README.md": b"# words"}
    for path in (write_zip(tmp_path / "zip", files), write_tar(tmp_path / "tar.gz", files, "w:gz")):
        profile = check(path)
        assert (profile.format, profile.kind, profile.ignored) == (path.name[:3], "text", 1)
        assert [each.name for each in (tmp_path / "page").iterdir()] == profile.pages  # and no copy of a table
        assert (profile.samples.train, profile.samples.test) == (60, 30)
        data = load(path, profile, vocabulary=100, length=4)
        assert len(data.train) + len(data.validation) == 60
        assert data.test.labels.sum() == 15
    damaged = write_zip(tmp_path / "damaged", files | {names[1]: files[names[1]][:-9]})
    with pytest.raises(DataError, match=r"'data/train-00001-of-00002.parquet': the Parquet file cannot be read"):
        check(damaged)
    other = write_zip(tmp_path / "other", files | {"data/train-2.jsonl": b'{"x": 1, "y": 2, "label": 0}'})
    with pytest.raises(DataError, match=r"'data/train-2.jsonl' has samples or classes of another kind"):
        check(other)


def test_pictures_in_shards_of_parquet(tmp_path: Path) -> None:
    def shard(shades: range) -> bytes:
        file = io.BytesIO()
        images = [{"bytes": picture(n), "path": f"{n}.png"} for n in shades]
        parquet.write_table(pyarrow.table({"image": images, "label": [n % 2 for n in shades]}), file)
        return file.getvalue()

    files = {
        "train/0.parquet": shard(range(20)),
        "train/1.parquet": shard(range(20, 40)),
        "test/0.parquet": shard(range(40, 50)),
    }
    path = write_zip(tmp_path / "upload", files)
    profile = check(path)
    assert (profile.kind, profile.samples.train, profile.samples.test) == ("picture", 40, 10)
    data = load(path, profile, size=8)
    assert isinstance(data.test.inputs, torch.Tensor)
    assert sorted(data.test.inputs[:, 0, 0, 0].tolist()) == list(range(40, 50))


def test_what_is_written_beside_the_samples_has_room_too(tmp_path: Path) -> None:
    """Long texts of few tokens: the texts lie in a file until their words are counted, and their table is copied."""
    rows = "".join(f"{'ab' * 5000} {number},{number % 2}\n" for number in range(30)).encode()
    path = write_zip(tmp_path / "texts.zip", {"train.csv": b"text,label\n" + rows})
    profile = check(path, inputs=["text"], labels=["label"])
    assert 300_000 < profile.text_bytes < profile.copied_bytes == len(rows) + 11
    data = UploadConfig(dataset=NAME, profile=profile, length=4)
    needed = data.prepared_bytes()
    assert needed < 2000
    data._check_room((), needed + profile.text_bytes + profile.copied_bytes)
    with pytest.raises(DataError, match=f"takes {needed + profile.text_bytes + profile.copied_bytes:,} bytes"):
        data._check_room((), needed + profile.text_bytes + profile.copied_bytes - 1)
