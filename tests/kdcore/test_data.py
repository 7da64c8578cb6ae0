"""Data sources: what is read, how it is split, and what is said when it is not there."""

import gzip
import hashlib
import importlib.util
import struct
from http.client import IncompleteRead
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kdcore.data import (
    CIFAR10Config,
    CIFAR100Config,
    DataError,
    Dataset,
    DigitsConfig,
    FashionMNISTConfig,
    MNISTConfig,
    Places,
)
from kdcore.data.cifar import PIXELS
from kdcore.data.idx import read_idx
from kdcore.data.splits import split_counts, split_indices

RECORD = 1 + PIXELS
Arrays = dict[str, np.ndarray]


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_mnist(root: Path, folder: str = "MNIST", *, packed: bool = True, train: int = 50, test: int = 20) -> Arrays:
    raw = root / folder / "raw"
    raw.mkdir(parents=True)
    random = np.random.default_rng(0)
    arrays = {}
    for part, samples in (("train", train), ("t10k", test)):
        arrays[f"{part}-images-idx3-ubyte"] = random.integers(0, 256, (samples, 28, 28), np.uint8)
        arrays[f"{part}-labels-idx1-ubyte"] = random.integers(0, 10, samples, np.uint8)
    for name, array in arrays.items():
        content = idx(array)
        (raw / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(content) if packed else content)
    return arrays


def write_cifar(root: Path, batches: dict[str, int]) -> Arrays:
    folder = root / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    arrays = {}
    for name, samples in batches.items():
        arrays[name] = random.integers(0, 256, (samples, RECORD), np.uint8)
        arrays[name][:, 0] %= 10
        (folder / name).write_bytes(arrays[name].tobytes())
    return arrays


def everything(data: Dataset) -> torch.Tensor:
    return torch.cat([data.train.inputs, data.validation.inputs])


# Digits.


def test_digits() -> None:
    data = DigitsConfig().load(Places(Path("nowhere")))
    assert (len(data.train), len(data.validation), len(data.test)) == (1293, 144, 360)
    assert data.facts == DigitsConfig().facts()
    assert data.train.inputs.shape == (1293, 1, 8, 8)
    assert data.train.inputs.dtype == torch.uint8
    assert data.train.labels.dtype == torch.int64
    assert (everything(data).max(), data.scale) == (16, 16.0)
    training = everything(data) / data.scale
    assert training.mean().item() == pytest.approx(data.facts.mean[0], abs=1e-4)
    assert training.std().item() == pytest.approx(data.facts.std[0], abs=1e-4)
    assert data.test.labels.bincount(minlength=10).min() >= 25  # no class is missing from the test split


def test_digits_are_the_same_every_time_and_keep_every_sample() -> None:
    from sklearn.datasets import load_digits

    data = DigitsConfig().load(Places(Path("nowhere")))
    assert data.digest == DigitsConfig().load(Places(Path("nowhere"), download=True)).digest
    rows = [tuple(row) for row in torch.cat([everything(data), data.test.inputs]).flatten(1).tolist()]
    assert sorted(rows) == sorted(tuple(row) for row in load_digits().data.astype(int).tolist())
    assert data.digest != DigitsConfig(validation=0.2).load(Places(Path("nowhere"))).digest


# Splits.


def test_split_counts() -> None:
    assert split_counts(DigitsConfig(validation=0.1), 101) == (90, 11)  # rounded up
    assert split_counts(DigitsConfig(validation=1), 101) == (100, 1)
    assert split_counts(DigitsConfig(validation=100), 101) == (1, 100)
    assert split_counts(DigitsConfig(validation=0.5, train_samples=3), 100) == (3, 50)


def test_what_leaves_nothing_to_train_on() -> None:
    for config, field in [
        (DigitsConfig(validation=1437), "validation"),
        (DigitsConfig(validation=0.9999), "validation"),
        (DigitsConfig(train_samples=1294), "train_samples"),
    ]:
        with pytest.raises(DataError) as caught:
            config.facts()
        assert caught.value.field == field


def test_splits_are_disjoint_and_fewer_samples_keep_the_validation() -> None:
    train, validation = split_indices(DigitsConfig(), 1000)
    assert sorted(torch.cat([train, validation]).tolist()) == list(range(1000))
    fewer, same = split_indices(DigitsConfig(train_samples=10), 1000)
    assert torch.equal(validation, same)
    assert set(fewer.tolist()) <= set(train.tolist())
    assert len(fewer) == 10


# The idx format and MNIST's layout.


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(("config", "folder"), [(MNISTConfig, "MNIST"), (FashionMNISTConfig, "FashionMNIST")])
def test_mnist_layout(tmp_path: Path, config: type[MNISTConfig], folder: str, packed: bool) -> None:
    arrays = write_mnist(tmp_path, folder, packed=packed)
    data = config(validation=5).load(Places(tmp_path))
    assert (data.facts.train, data.facts.validation, data.facts.test) == (45, 5, 20)
    assert torch.equal(data.test.inputs, torch.from_numpy(arrays["t10k-images-idx3-ubyte"]).unsqueeze(1))
    assert torch.equal(data.test.labels, torch.from_numpy(arrays["t10k-labels-idx1-ubyte"]).long())
    kept, held = split_indices(config(validation=5), 50)
    images = torch.from_numpy(arrays["train-images-idx3-ubyte"]).unsqueeze(1)
    assert torch.equal(data.train.inputs, images[kept])
    assert torch.equal(data.validation.inputs, images[held])


def test_a_file_that_is_not_there_is_named_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        MNISTConfig().load(Places(tmp_path / "nowhere"))
    for name in (
        "train-images-idx3-ubyte.gz",
        "t10k-labels-idx1-ubyte.gz",
        str(tmp_path / "nowhere" / "MNIST" / "raw"),
    ):
        assert name in str(caught.value)
    write_mnist(tmp_path)
    (tmp_path / "MNIST/raw/t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match=r"put t10k-labels-idx1-ubyte.gz") as caught:
        MNISTConfig().load(Places(tmp_path))
    assert "train-images" not in str(caught.value)


def test_a_failed_download_says_what_to_do_instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(datasets.MNIST, "download", refuse)
    with pytest.raises(DataError, match=r"no route to host.*put train-images-idx3-ubyte.gz"):
        MNISTConfig().load(Places(tmp_path, download=True))


def test_a_download_that_breaks_off_is_a_failed_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    def break_off(*_: object, **__: object) -> None:
        raise IncompleteRead(b"half")

    monkeypatch.setattr(datasets.MNIST, "download", break_off)
    with pytest.raises(DataError, match=r"download failed.*put train-images-idx3-ubyte.gz"):
        MNISTConfig().load(Places(tmp_path, download=True))


def test_a_download_fills_the_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    def fetch(root: str, **_: object) -> None:
        write_mnist(Path(root), packed=False)

    monkeypatch.setattr(datasets, "MNIST", fetch)
    assert len(MNISTConfig().load(Places(tmp_path, download=True)).test) == 20
    monkeypatch.setattr(datasets, "MNIST", None)  # what is there is not fetched again
    assert len(MNISTConfig().load(Places(tmp_path, download=True)).test) == 20


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b[:-1], "should hold 39,200 bytes of data but has 39,199"),
        (lambda b: b + b"x", "but has more"),
        (lambda b: b[:10], "no idx file"),
        (lambda b: b"", "no idx file"),
        (lambda b: b"\0\0\x0d\3" + b[4:], "no idx file"),
        (lambda b: b"\0\0\x08\1" + b[4:], "no idx file"),
        (lambda b: b[:4] + b"\xff" * 12 + b[16:], "over 2 GiB"),
    ],
)
def test_broken_idx_files(tmp_path: Path, suffix: str, change: object, message: str) -> None:
    path = tmp_path / f"images{suffix}"
    content = change(idx(np.zeros((50, 28, 28), np.uint8)))
    path.write_bytes(gzip.compress(content) if suffix else content)
    with pytest.raises(DataError, match=message) as caught:
        read_idx(path, 3)
    assert str(path) in str(caught.value)


def test_a_truncated_gz_file(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    path = tmp_path / "MNIST/raw/train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.gz cannot be read"):
        MNISTConfig().load(Places(tmp_path))
    path.write_bytes(b"not gzip")
    with pytest.raises(DataError, match="cannot be read"):
        MNISTConfig().load(Places(tmp_path))


def test_images_and_labels_that_do_not_fit(tmp_path: Path) -> None:
    write_mnist(tmp_path, packed=False)
    labels = tmp_path / "MNIST/raw/train-labels-idx1-ubyte"
    labels.write_bytes(idx(np.zeros(49, np.uint8)))
    with pytest.raises(DataError, match="49 labels"):
        MNISTConfig().load(Places(tmp_path))
    labels.write_bytes(idx(np.full(50, 10, np.uint8)))
    with pytest.raises(DataError, match="labels must be 0 to 9"):
        MNISTConfig().load(Places(tmp_path))


# CIFAR-10's binary version.


def test_cifar10(tmp_path: Path) -> None:
    arrays = write_cifar(tmp_path, {"data_batch_1.bin": 7, "data_batch_5.bin": 4, "test_batch.bin": 3})
    data = CIFAR10Config(validation=2).load(Places(tmp_path))
    assert (data.facts.train, data.facts.validation, data.facts.test) == (9, 2, 3)
    expected = torch.from_numpy(arrays["test_batch.bin"])
    assert torch.equal(data.test.labels, expected[:, 0].long())
    assert torch.equal(data.test.inputs[2, 1, 5], expected[2, 1 + 1024 + 5 * 32 :][:32])  # green, row 5
    both = torch.from_numpy(np.concatenate([arrays["data_batch_1.bin"], arrays["data_batch_5.bin"]]))
    kept, _ = split_indices(CIFAR10Config(validation=2), 11)
    assert torch.equal(data.train.inputs.flatten(1), both[kept, 1:])


def test_cifar10_that_is_missing_or_broken(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"put data_batch_1.bin to data_batch_5.bin and test_batch.bin into"):
        CIFAR10Config().load(Places(tmp_path, download=True))
    write_cifar(tmp_path, {"data_batch_2.bin": 7, "test_batch.bin": 3})
    test = tmp_path / "cifar-10-batches-bin/test_batch.bin"
    for content in (test.read_bytes()[:-1], b""):
        test.write_bytes(content)
        with pytest.raises(DataError, match=r"test_batch.bin has .* no whole number of 3073-byte records"):
            CIFAR10Config().load(Places(tmp_path))
    test.write_bytes(b"\x0a" * RECORD)
    with pytest.raises(DataError, match="labels must be 0 to 9"):
        CIFAR10Config().load(Places(tmp_path))
    test.unlink()
    with pytest.raises(DataError, match=r"put test_batch.bin into"):
        CIFAR10Config().load(Places(tmp_path))


def test_cifar100(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-100-binary"
    folder.mkdir()
    with pytest.raises(DataError, match=r"CIFAR-100 is not complete: put train.bin and test.bin into"):
        CIFAR100Config().load(Places(tmp_path))
    random = np.random.default_rng(0)
    arrays = {name: random.integers(0, 100, (9, 2 + PIXELS), np.uint8) for name in ("train.bin", "test.bin")}
    for name, array in arrays.items():
        (folder / name).write_bytes(array.tobytes())
    data = CIFAR100Config(validation=2).load(Places(tmp_path))
    assert (data.facts.train, data.facts.validation, data.facts.test) == (7, 2, 9)
    expected = torch.from_numpy(arrays["test.bin"])
    assert torch.equal(data.test.labels, expected[:, 1].long())  # the fine class is the second byte
    assert torch.equal(data.test.inputs[2, 2, 5], expected[2, 2 + 2048 + 5 * 32 :][:32])  # blue, row 5


def test_a_pickle_is_never_read(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "data_batch_1").write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    with pytest.raises(DataError, match=r"binary"):
        CIFAR10Config().load(Places(tmp_path))


def test_strips_become_the_binary_version(tmp_path: Path) -> None:
    path = Path(__file__).parents[2] / "benchmarks" / "make_cifar10_binary.py"
    module_spec = importlib.util.spec_from_file_location("make_cifar10_binary", path)
    assert module_spec is not None
    assert module_spec.loader is not None
    script = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(script)

    source = tmp_path / "strips"
    source.mkdir()
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    Image.fromarray(images[:3].reshape(-1, 32, 3)).save(source / "train_00.png")
    Image.fromarray(images[3:].reshape(-1, 32, 3)).save(source / "mixed.png")
    lines = ["train_00.png,0,train,1,4", "train_00.png,1,train,0,5", "train_00.png,2,train,10000,6"]
    lines += ["mixed.png,0,val,49999,7", "mixed.png,1,test,12,8"]
    header = "file,row,split,official_index,label\n"
    (source / "labels.csv").write_text(header + "\n".join(lines))
    script.main(["--source", str(source), "--out", str(tmp_path)])

    folder = tmp_path / "cifar-10-batches-bin"
    assert {file.name: file.stat().st_size // RECORD for file in folder.iterdir()} == {
        "data_batch_1.bin": 2,
        "data_batch_2.bin": 1,
        "data_batch_5.bin": 1,
        "test_batch.bin": 1,
    }
    data = CIFAR10Config(validation=1).load(Places(tmp_path))
    assert torch.equal(data.test.inputs[0], torch.from_numpy(images[4]).permute(2, 0, 1))
    assert data.test.labels.tolist() == [8]
    assert (folder / "data_batch_1.bin").read_bytes()[0] == 5  # in official order
    for bad in (
        "x.png,0,train,2,4",
        "train_00.png,9,train,2,4",
        "train_00.png,0,train,1,4",
        "train_00.png,0,train,2,10",
    ):
        (source / "labels.csv").write_text(header + "\n".join([*lines, bad]))
        with pytest.raises(SystemExit, match=r"make_cifar10_binary: "):
            script.main(["--source", str(source), "--out", str(tmp_path)])


def test_digest_is_of_inputs_and_labels_in_order(tmp_path: Path) -> None:
    write_cifar(tmp_path, {"data_batch_1.bin": 7, "test_batch.bin": 3})
    data = CIFAR10Config(validation=2).load(Places(tmp_path))
    splits = (data.train, data.validation, data.test)
    content = b"".join(split.inputs.numpy().tobytes() + split.labels.numpy().tobytes() for split in splits)
    assert data.digest == f"sha256:{hashlib.sha256(content).hexdigest()}"
