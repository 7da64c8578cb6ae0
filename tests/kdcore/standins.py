"""Small stand-ins for what an example wants to find, each in its own file format: data, weights, uploads, answers."""

import gzip
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow
import pyarrow.parquet
import torch
from onnx import TensorProto, helper
from PIL import Image

from kdcore.document import read_document
from kdcore.export import save_weights
from kdcore.inputs import Reader
from kdcore.spec import JobSpec, parse_spec
from kdcore.uploads import DatasetOptions, DatasetProfile, check_dataset
from tests.speed import SPEED

TRAIN, TEST = 100, 30
RANDOM = np.random.default_rng(0)
CLASSES = np.arange(TRAIN + TEST)
"""Taken modulo the number of classes: each of them is in every split."""
SHORT = {"epochs": 2, "batch_size": 24}
SMALLER: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "cifar10-resnet-gpu": ({"depth": 8, "width": 1}, {"width": 1}),
    "cifar10-vgg-mobilenet": ({"depth": 8}, {"type": "cnn", "channels": [4]}),
    "cifar10-wide-resnet": ({"depth": 10, "width": 1}, {"depth": 10, "width": 1}),
    "cifar100-resnet-shufflenet": ({"depth": 8, "width": 1}, {"type": "cnn", "channels": [4]}),
    "fashion-resnet": ({"depth": 8}, {}),
    "folder-onnx": ({}, {"type": "cnn", "channels": [4]}),
    "folder-timm": ({"name": "resnet10t"}, {"name": "resnet10t"}),
    "folder-torchvision": ({"name": "squeezenet1_1"}, {"name": "squeezenet1_1"}),
}
"""What changes in the models of a teacher and a student that would take minutes, most of them for the export; another
type comes without the options of the first. That each family exports is shown in test_families."""


def write_pictures(root: Path, folder: str) -> None:
    """MNIST's files, in `folder`."""
    raw = root / folder / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", TRAIN), ("t10k", TEST)):
        pictures = RANDOM.integers(0, 256, (count, 28, 28), np.uint8)
        for kind, array in (("images-idx3", pictures), ("labels-idx1", (CLASSES[:count] % 10).astype(np.uint8))):
            header = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
            (raw / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes(), 1))


def write_records(root: Path, folder: str, files: dict[str, int], labels: int) -> None:
    """CIFAR's files of the binary version, with as many bytes of labels."""
    (root / folder).mkdir(parents=True)
    for name, count in files.items():
        records = RANDOM.integers(0, 256, (count, labels + 3072), np.uint8)
        records[:, :labels] = (CLASSES[:count] % 10)[:, None]
        (root / folder / name).write_bytes(records.tobytes())


def write_texts(root: Path) -> None:
    """AG News's CSV files and SST-2's TSV files."""
    for folder in ("ag_news", "sst2"):
        (root / folder).mkdir()
    for part, count in (("train", TRAIN), ("test", TEST)):
        news = [f'"{n % 4 + 1}","Title {n}","Some ""quoted"" words, topic{n % 4}"' for n in range(count)]
        (root / "ag_news" / f"{part}.csv").write_text("\n".join(news) + "\n")
        films = [f"it 's film number {n} , {('dull', 'fine')[n % 2]}\t{n % 2}" for n in range(count)]
        (root / "sst2" / f"{part}.tsv").write_text("\n".join(["sentence\tlabel", *films]) + "\n")


def write_folders(root: Path) -> None:
    """Pictures of three kinds of flowers, a folder each."""
    for part, count in (("train", TRAIN), ("test", TEST)):
        for number in range(count):
            folder = root / "flowers" / part / ("daisy", "rose", "tulip")[number % 3]
            folder.mkdir(parents=True, exist_ok=True)
            pixels = RANDOM.integers(0, 256, (40, 48, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")


def write_data(root: Path) -> None:
    """Everything that the examples' sources read in the data directory."""
    write_pictures(root, "MNIST")
    write_pictures(root, "FashionMNIST")
    write_records(root, "cifar-10-batches-bin", {"data_batch_1.bin": TRAIN, "test_batch.bin": TEST}, labels=1)
    write_records(root, "cifar-100-binary", {"train.bin": TRAIN, "test.bin": TEST}, labels=2)
    write_texts(root)
    write_folders(root)


def brightness(path: Path) -> None:
    """An ONNX classifier of (N, H, W, 3) pictures into three classes: how bright each colour is."""
    pictures = helper.make_tensor_value_info("pictures", TensorProto.FLOAT, ["n", "h", "w", 3])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 3])
    nodes = [
        helper.make_node("ReduceMean", ["pictures"], ["means"], axes=[1, 2], keepdims=0),
        helper.make_node("Softmax", ["means"], ["scores"], axis=1),
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "g", [pictures], [scores]), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    onnx.save_model(model, str(path))


def write_weights(spec: JobSpec, root: Path) -> None:
    """The files of weights that the spec names in the data directory: of networks nobody trained."""
    torch.manual_seed(0)
    facts = spec.data.facts()
    for part in (*spec.teachers, spec.student):
        if part.weights is None:
            continue
        path = root / part.weights.file  # type: ignore[union-attr]
        if part.model.type == "onnx":
            brightness(path)
        else:
            outputs = len(getattr(part, "classes", None) or facts.classes)
            save_weights(path, part.model.build(Reader(facts, part.view).facts.input_shape, outputs).state_dict())


def pictures(folder: Path) -> tuple[Path, DatasetOptions]:
    """Pictures of two classes."""
    path = folder / "pictures.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(TRAIN):
            Image.new("RGB", (40, 40), (number, 0, 0)).save(folder / "one.png")
            archive.write(folder / "one.png", f"{'ab'[number % 2]}/{number}.png")
    return path, DatasetOptions()


def texts(folder: Path) -> tuple[Path, DatasetOptions]:
    """Texts of two classes that bring a teacher's logits."""
    path = folder / "texts.parquet"
    rows = [{"text": f"word {n} again", "label": n % 2, "logits": [float(n), -1.0]} for n in range(TRAIN)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path, DatasetOptions()


def digits(folder: Path) -> tuple[Path, DatasetOptions]:
    """Pictures of ten classes, 8 by 8, as arrays."""
    path = folder / "digits.npz"
    inputs = np.arange(TRAIN * 64, dtype=np.uint8).reshape(TRAIN, 8, 8)
    np.savez(path, inputs=inputs, labels=np.arange(TRAIN) % 10)
    return path, DatasetOptions()


def cells(folder: Path) -> tuple[Path, DatasetOptions]:
    """Rows of 30 numbers without labels, for two classes that only their teacher knows."""
    path, columns = folder / "cells.csv", ",".join(f"c{n}" for n in range(30))
    rows = np.arange(TRAIN * 30.0).reshape(TRAIN, 30)
    np.savetxt(path, rows, delimiter=",", comments="", header=columns)
    return path, DatasetOptions(classes=["malignant", "benign"])


def pairs(folder: Path) -> tuple[Path, DatasetOptions]:
    """Pairs of a picture and a sound, of two classes."""
    path = folder / "pairs.npz"
    image = RANDOM.integers(0, 256, (TRAIN, 8, 8)).astype(np.uint8)
    np.savez(path, image=image, sound=RANDOM.normal(size=(TRAIN, 16)), labels=np.arange(TRAIN) % 2)
    return path, DatasetOptions(fields=["image", "sound"])


UPLOADS = {"upload-logits": texts, "upload-onnx": digits, "upload-unlabelled": cells, "upload-paired": pairs}
"""What an example's data set is made of, where it is no pictures in files."""


def upload(example: str, folder: Path) -> tuple[Path, DatasetProfile]:
    """A data set as somebody would upload it for this example, and what its check found."""
    path, options = UPLOADS.get(example, pictures)(folder)
    return path, check_dataset(path, options, out=folder / "page")


def answer(config: Any, instances: list[Any], poll: Callable[[], None]) -> Any:
    """What a teacher over HTTP says of ten classes: probabilities that follow the first row of pixels."""
    rows = torch.tensor(instances).flatten(1)[:, :10]
    return rows.softmax(1).tolist()


def stand_in(path: Path, root: Path, folder: Path) -> tuple[JobSpec, dict[str, Any]]:
    """The example with two epochs of a few steps for every stage, and what `train.run` needs for it.

    Args:
        root: the data directory, with what `write_data` writes.
        folder: for files of this example alone.
    """
    document: dict[str, Any] = json.loads(json.dumps(read_document(path.read_text())))
    data, given = document["data"], {"data_root": root, "download": False}
    if data["type"] == "image_folder":
        data |= {"train_pictures": TRAIN, "test_pictures": TEST, "size": 32}
    if data["type"] == "synthetic":
        data |= {"samples": TRAIN}
    if data["type"] == "upload":
        file, profile = upload(path.stem, folder)
        data["profile"] = profile.model_dump(mode="json")
        given["uploads"] = {data["dataset"]: file}
    else:
        data |= {"train_samples": 60, "validation": 20}
    for_teacher, for_student = SMALLER.get(path.stem, ({}, {}))
    if for_student:
        document["student"]["model"] = (
            document["student"]["model"] | for_student if "type" not in for_student else for_student
        )
    for teacher in document["teachers"]:
        teacher["model"] |= for_teacher
        if "size" in (teacher.get("view") or {}):
            teacher["view"]["size"] = 32
        if teacher["model"]["type"] == "http":
            given["ask"] = answer
        elif "weights" not in teacher and teacher["model"]["type"] != "logits":
            teacher["train"] = teacher.get("train", {}) | SHORT
    document["stages"] = [stage | SHORT for stage in document.get("stages", [{}])]
    if "repeats" in document:
        document["repeats"] = 2
    spec = parse_spec(document | {"checkpoint": {"every_seconds": 3600}}, SPEED)
    write_weights(spec, root)
    return spec, given
