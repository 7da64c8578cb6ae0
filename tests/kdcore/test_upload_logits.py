"""What a teacher said, brought with the data: of all classes or of the likeliest alone, in every format."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from kdcore.data import DataError
from kdcore.plan import make_plan
from kdcore.reporter import RecordingReporter
from kdcore.spec import parse_spec
from kdcore.train import run
from tests.kdcore.test_upload_formats import NAME, check, folders, load, names, picture, write_zip

SAMPLES, CLASSES, TOP = 60, 5, 2


def said() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(N, C) log-probabilities of a teacher; and (N, K) the largest, and their classes."""
    logs = torch.randn(SAMPLES, CLASSES, generator=torch.Generator().manual_seed(0)).mul(3).log_softmax(1)
    top = logs.topk(TOP)
    return logs, top.values, top.indices


def rows(**changes: Any) -> list[dict[str, Any]]:
    _, values, places = said()
    return [
        {"x": n, "y": 0.5, "label": n % CLASSES, "logits": values[n].tolist(), "logit_classes": places[n].tolist()}
        | changes
        for n in range(SAMPLES)
    ]


def write(path: Path, format: str, rows: list[dict[str, Any]]) -> Path:
    if format == "csv":
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            for row in rows:
                shown = {key: ";".join(map(str, each)) if isinstance(each, list) else each for key, each in row.items()}
                table.writerow(shown)
    elif format == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    elif format == "parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        arrays = {name: np.array([row[name] for row in rows]) for name in ("logits", "logit_classes")}
        inputs = np.array([[row["x"], row["y"]] for row in rows], np.float32)
        with path.open("wb") as file:
            np.savez(file, inputs=inputs, labels=np.array([row["label"] for row in rows]), **arrays)
    return path


@pytest.mark.parametrize("format", ["csv", "jsonl", "parquet", "npz"])
def test_of_the_likeliest_alone_the_rest_is_spread(format: str, tmp_path: Path) -> None:
    logs, values, places = said()
    path = write(tmp_path / "upload", format, rows())
    profile = check(path)
    rest = 1 - values.exp().sum(1)
    assert (profile.logits, profile.top_logits) == (profile.samples, TOP)
    assert profile.spread == pytest.approx(rest.mean().item(), abs=1e-5)
    data = load(path, profile)
    for split in (data.train, data.validation, data.test):
        assert isinstance(split.inputs, torch.Tensor)
        assert isinstance(split.teacher_logits, torch.Tensor)
        for inputs, found in zip(split.inputs, split.teacher_logits.softmax(1), strict=True):
            n = int(inputs[0])
            wanted = (rest[n] / (CLASSES - TOP)).expand(CLASSES).scatter(0, places[n], logs[n][places[n]].exp())
            assert torch.allclose(found, wanted, atol=1e-5)


def test_a_job_says_what_was_made_up(tmp_path: Path) -> None:
    path = write(tmp_path / "upload", "jsonl", rows())
    profile = check(path)
    spec = parse_spec(
        {
            "data": {"type": "upload", "dataset": NAME, "profile": profile.model_dump(mode="json")},
            "teachers": [{"model": {"type": "logits"}}],
            "student": {"model": {"type": "mlp", "hidden": [4]}},
            "stages": [{"epochs": 1, "batch_size": 16}],
        }
    )
    made_up = f"teacher-1 is known by at most 2 of 5 classes of each sample: the others share evenly what these leave, {profile.spread:.2%} of the probability on average"  # noqa: E501
    assert made_up in make_plan(spec).warnings
    result = run(spec, data_root=tmp_path, out=tmp_path / "out", reporter=RecordingReporter(), uploads={NAME: path})
    assert made_up in result["warnings"]
    assert result["student"]["agreement"] >= 0


@pytest.mark.parametrize(
    ("changes", "field", "message"),
    [
        ({"logit_classes": [1, 1]}, "logit_classes", "there twice"),
        ({"logit_classes": [-1, 1]}, "logit_classes", "below 0"),
        ({"logit_classes": [1, 2.5]}, "logit_classes", "no places of classes"),
        ({"logit_classes": [1, 2, 3]}, "logit_classes", "3 places for 2 logits"),
        ({"logit_classes": [1, 7]}, "classes", "the class in place 7, and 5 classes"),
        ({"logits": [3.0, 1.0], "logit_classes": [1, 2]}, "logits", "must be log-probabilities"),
        ({"logits": [float("nan"), 1.0]}, "logits", "NaN or infinity"),
    ],
)
def test_what_cannot_be_is_refused(changes: Any, field: str, message: str, tmp_path: Path) -> None:
    for format in ("jsonl", "npz"):
        with pytest.raises(DataError, match=message if format == "jsonl" else None) as caught:
            check(write(tmp_path / format, format, rows(**changes)))
        assert caught.value.field == field


def test_all_or_none_and_only_where_outputs_share_one_probability(tmp_path: Path) -> None:
    some = [row if n else {**row, "logits": None, "logit_classes": None} for n, row in enumerate(rows())]
    with pytest.raises(DataError, match="logits"):
        check(write(tmp_path / "some", "jsonl", some))
    with pytest.raises(DataError, match="of a multi_label all logits must be there") as caught:
        check(write(tmp_path / "several", "jsonl", rows(label=[0, 4, 1, 2, 3])), task="multi_label")
    assert caught.value.field == "logit_classes"


def test_a_table_of_logits_beside_pictures_in_folders(tmp_path: Path) -> None:
    files = folders({"rose": 6, "tulip": 6}, "train/") | folders({"rose": 3, "tulip": 3}, "test/")
    table = [{"file_name": name, "logits": [float(n), -1.0]} for n, name in enumerate(files)]

    def packed(name: str, rows: list[dict[str, Any]], **more: bytes) -> Path:
        content = "\n".join(map(json.dumps, rows)).encode()
        return write_zip(tmp_path / name, files | {"logits.jsonl": content} | more)

    path = packed("whole", table)
    profile = check(path)
    assert (names(profile), profile.samples.train, profile.samples.test) == (["rose", "tulip"], 12, 6)
    assert profile.logits == profile.samples
    data = load(path, profile, size=8, validation=2)
    assert isinstance(data.test.teacher_logits, torch.Tensor)
    assert sorted(data.test.teacher_logits[:, 0].tolist()) == list(range(12, 18))
    assert data.test.labels[data.test.teacher_logits[:, 0].argsort()].tolist() == [0, 0, 0, 1, 1, 1]
    with pytest.raises(DataError, match="1 of 18 samples have no logits") as caught:
        check(packed("fewer", table[1:]))
    assert caught.value.field == "logits"
    with pytest.raises(DataError, match=r"are not in the archive: 'test/rose/9.png'"):
        check(packed("more", [*table, {"file_name": "test/rose/9.png", "logits": [0, 0]}]))
    with pytest.raises(DataError, match=r"'logits.jsonl' has no column 'logits'"):
        check(packed("nothing", [{"file_name": name, "said": [0, 0]} for name in files]))
    labels = "file_name,label,split\n" + "".join(f"{name},{'ab'[n % 2]},train\n" for n, name in enumerate(files))
    table.append({"file_name": "left-out.png", "logits": [0, 0]})  # a picture that is no sample
    both = packed("both", table, **{"labels.csv": labels.encode(), "left-out.png": picture(0)})
    assert (names(check(both)), check(both).logits == check(both).samples) == (["a", "b"], True)


def test_a_table_of_another_name_says_all(tmp_path: Path) -> None:
    files = {f"{n % 3}/{n}.png": picture(n) for n in range(12)}
    rows = [
        {"file_name": name, "split": "test" if n < 4 else "train", "logits": [n, 0]} for n, name in enumerate(files)
    ]
    table = "\n".join(map(json.dumps, rows)).encode()
    profile = check(write_zip(tmp_path / "upload", files | {"metadata.jsonl": table}), classes=["a", "b"])
    assert (profile.labelled.train, profile.samples.train, profile.samples.test) == (0, 8, 4)


def test_a_picture_that_two_tables_name_is_refused(tmp_path: Path) -> None:
    tables = {f"{name}.csv": b"file_name,label\n0.png,a\n" for name in ("first", "second")}
    with pytest.raises(DataError, match="has a row already"):
        check(write_zip(tmp_path / "upload", {"0.png": picture(0)} | tables))


def test_places_in_lists_of_several_lengths_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "data", "jsonl", rows(logit_classes=[[1], [2, 3]]))
    with pytest.raises(DataError, match="no places of classes") as caught:
        check(path)
    assert caught.value.field == "logit_classes"
