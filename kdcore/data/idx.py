"""The idx format of MNIST and its kin, and the sources that use torchvision's folder layout for it."""

import gzip
import math
import socket
import zlib
from http.client import HTTPException
from pathlib import Path
from typing import IO, ClassVar, cast

import torch
from torch import Tensor

from kdcore.data.base import DataError, DataFacts, Dataset, PictureDataConfig, Places, Split
from kdcore.data.splits import assemble, split_facts

UNSIGNED_BYTES = 8
SAMPLES = {"train": 60_000, "t10k": 10_000}
DOWNLOAD_TIMEOUT = 30.0


def read_idx(path: Path, dimensions: int) -> Tensor:
    """Read an idx file of unsigned bytes, packed with gzip where its name ends in `.gz`.

    Args:
        path: the file.
        dimensions: how many the header must announce.

    Returns:
        A uint8 tensor of the announced shape.

    Raises:
        DataError: the file is not of this format, truncated, or longer than its header says.
    """
    try:
        with _opened(path) as file:
            header = file.read(4 * (1 + dimensions))
            shape = _shape(path, header, dimensions)
            size = math.prod(shape)
            body = file.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}); put a whole copy there") from error
    if len(body) != size:
        found = "more" if len(body) > size else f"{len(body):,}"
        raise DataError(f"{path} should hold {size:,} bytes of data but has {found}; put a whole copy there")
    return torch.frombuffer(bytearray(body), dtype=torch.uint8).reshape(shape)


def _opened(path: Path) -> IO[bytes]:
    return cast("IO[bytes]", gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")


def _shape(path: Path, header: bytes, dimensions: int) -> tuple[int, ...]:
    expected = bytes([0, 0, UNSIGNED_BYTES, dimensions])
    if len(header) < 4 * (1 + dimensions) or header[:4] != expected:
        raise DataError(f"{path} is no idx file with {dimensions} dimensions of bytes; put the original file there")
    shape = tuple(int.from_bytes(header[4 * i : 4 * i + 4], "big") for i in range(1, dimensions + 1))
    if math.prod(shape) > 2**31:
        raise DataError(f"{path} announces {shape}, over 2 GiB; put the original file there")
    return shape


class IdxDataConfig(PictureDataConfig):
    """Base of the sources in torchvision's layout: `<root>/<folder>/raw/*-ubyte`, plain or `.gz`."""

    folder: ClassVar[str]
    known: ClassVar[DataFacts]

    def facts(self) -> DataFacts:
        return split_facts(self, self.of_task(self.known), self.known.train)

    def load(self, places: Places) -> Dataset:
        root = places.root
        missing = self._missing(root)
        if missing and places.download:
            self._download(root)
            missing = self._missing(root)
        if missing:
            raise self._absent(root, "")
        training, test = (self._read(root, part) for part in SAMPLES)
        return assemble(self, self.of_task(self.known), training, test, scale=255.0)

    def _path(self, root: Path, part: str, kind: str) -> Path:
        plain = root / self.folder / "raw" / f"{part}-{kind}-ubyte"
        return plain if plain.exists() else plain.with_name(plain.name + ".gz")

    def _missing(self, root: Path) -> bool:
        paths = [self._path(root, part, kind) for part in SAMPLES for kind in ("images-idx3", "labels-idx1")]
        return not all(path.exists() for path in paths)

    def _read(self, root: Path, part: str) -> Split:
        images = read_idx(self._path(root, part, "images-idx3"), 3)
        labels = read_idx(self._path(root, part, "labels-idx1"), 1)
        if images.shape[1:] != self.known.input_shape[1:] or len(images) != len(labels):
            raise DataError(
                f"{root / self.folder}: {part} has images {tuple(images.shape)} and {len(labels)} labels,"
                f" expected images of {self.known.input_shape[1:]} and as many labels; put the original files there"
            )
        return Split(images.unsqueeze(1), labels.long())  # (N, H, W) -> (N, 1, H, W)

    def _download(self, root: Path) -> None:
        before = socket.getdefaulttimeout()
        socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
        try:
            from torchvision import datasets  # only here: it is slow to import, and most jobs have their files

            getattr(datasets, self.folder)(str(root), train=True, download=True)
        except (ImportError, OSError, HTTPException, RuntimeError, ValueError) as error:
            raise self._absent(root, f" (the download failed: {error})") from error
        finally:
            socket.setdefaulttimeout(before)

    def _absent(self, root: Path, why: str) -> DataError:
        raw = root / self.folder / "raw"
        files = [f"{part}-{kind}-ubyte.gz" for part in SAMPLES for kind in ("images-idx3", "labels-idx1")]
        lacking = [
            name for name in files if not (raw / name).exists() and not (raw / name.removesuffix(".gz")).exists()
        ]
        return DataError(
            f"{self.title} is not complete{why}: put {', '.join(lacking)} (or the same unpacked, without .gz)"
            f" into {raw}"
        )
