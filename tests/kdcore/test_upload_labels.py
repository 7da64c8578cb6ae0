"""One rule for labels, whatever the format: the same numbers mean the same classes."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from kdcore.data import DataError
from kdcore.uploads import DatasetOptions, DatasetProfile, check_dataset
from kdcore.uploads.labels import ClassLabels

FORMATS = ("csv", "jsonl", "jsonl of text", "parquet", "npz")


def write(path: Path, format: str, labels: list[Any]) -> Path:
    """Ten samples of each label, told apart by their numbers."""
    rows = [{"x": n, "y": -n, "label": labels[n % len(labels)]} for n in range(10 * len(labels))]
    if format == "csv":
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, ["x", "y", "label"])
            table.writeheader()
            table.writerows(rows)
    elif format.startswith("jsonl"):
        shown = rows if format == "jsonl" else [row | {"label": str(row["label"])} for row in rows]
        path.write_text("\n".join(map(json.dumps, shown)))
    elif format == "parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        with path.open("wb") as file:
            inputs = np.array([[row["x"], row["y"]] for row in rows], np.float32)
            np.savez(file, inputs=inputs, labels=np.array([row["label"] for row in rows]))
    return path


def counts(profile: DatasetProfile) -> dict[str, int]:
    return {each.name: each.samples.train + each.samples.test for each in profile.classes}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    ("classes", "labels", "found"),
    [
        (["a", "b", "c", "d"], [0, 3, 3], {"a": 10, "b": 0, "c": 0, "d": 20}),
        (["3", "4", "0"], [3, 0, 0], {"3": 10, "4": 0, "0": 20}),
        (["1", "2", "many"], [1, 2, 2], {"1": 10, "2": 20, "many": 0}),
        (["-1", "1"], [-1, 1, 1], {"-1": 10, "1": 20}),
        (["a", "b"], [0, 1, -1], {"a": 10, "b": 10}),
        ([], [0, 2, -1], {"0": 10, "1": 0, "2": 10}),
        ([], [20_000, 15_000, 15_000], {"15000": 20, "20000": 10}),
        (["a", "b"], [0.0, 1.0, -1.0], {"a": 10, "b": 10}),
    ],
)
def test_the_same_numbers_are_the_same_classes_in_every_format(
    format: str, classes: list[str], labels: list[Any], found: dict[str, int], tmp_path: Path
) -> None:
    path = write(tmp_path / "data", format, labels)
    profile = check_dataset(path, DatasetOptions(classes=classes), out=tmp_path)
    assert counts(profile) == found
    unlabelled = profile.samples.train + profile.samples.test - profile.labelled.train - profile.labelled.test
    assert unlabelled == 10 * sum(label == -1 and "-1" not in classes for label in labels)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("classes", "labels"), [(["a", "b"], [0, 2]), (["cat", "3"], [0, 3]), (["a", "b"], [0, -2])])
def test_a_number_that_is_no_class_is_refused_in_every_format(
    format: str, classes: list[str], labels: list[int], tmp_path: Path
) -> None:
    path = write(tmp_path / "data", format, labels)
    with pytest.raises(DataError, match=r"is none of the 2 classes: .*; write a name, or a place from 0") as caught:
        check_dataset(path, DatasetOptions(classes=classes), out=tmp_path)
    assert caught.value.field == "classes"


def test_classes_that_the_file_declares_are_meant_by_place(tmp_path: Path) -> None:
    """Hugging Face's are, whatever their names: stars from 1 to 5 are stored as 0 to 4."""
    feature = {"names": ["1", "2", "3"], "_type": "ClassLabel"}
    described = {b"huggingface": json.dumps({"info": {"features": {"label": feature}}}).encode()}
    table = pa.table({"x": np.arange(30.0), "y": np.ones(30), "label": np.arange(30) % 3})
    parquet.write_table(table.replace_schema_metadata(described), tmp_path / "data")
    profile = check_dataset(tmp_path / "data", DatasetOptions(), out=tmp_path)
    assert counts(profile) == {"1": 10, "2": 10, "3": 10}


def test_what_looks_little_like_a_number_is_a_name() -> None:
    labels = ClassLabels(("007", "7", "x"))
    for label in ("007", "7", "x", 7, 7.0, "7.0"):
        labels.add(label, "row")
    assert labels.finish()[0].tolist() == [0, 1, 2, 1, 1, 1]


@pytest.mark.parametrize("number", [10**600, -(10**600), 1e300], ids=["large", "negative", "float"])
def test_a_label_is_no_number_without_end(number: float, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a label is a number beyond") as refused:
        check_dataset(write(tmp_path / "data", "jsonl", [1, number]), DatasetOptions(), out=tmp_path / "page")
    assert refused.value.field == "labels"
    found = check_dataset(write(tmp_path / "data", "jsonl", [1, 2**63]), DatasetOptions(), out=tmp_path / "page")
    assert counts(found) == {"1": 10, str(2**63): 10}
