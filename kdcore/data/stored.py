"""Samples that stay in their file: each batch is read when it is asked for, and memory holds no more than that."""

import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FORGET = 8 * 2**20
"""Bytes read before the pages that were touched are handed back; the system keeps them as long as it has room."""


def rows_at(rows: "Tensor | StoredRows", places: Tensor) -> Tensor:
    """(B,) places -> (B, …), copies. Of a tensor by `index_select`, which copies whole rows and is much faster for
    bytes than an index in brackets."""
    return rows.index_select(0, places) if isinstance(rows, Tensor) else rows[places]


class StoredRows:
    """Rows of a `.npy` file, (N, …), indexed like a tensor; what comes back is a copy on `device`.

    Attributes:
        keep: whatever must live as long as these rows are read, such as a lock on their folder.
        meant: the type of what comes back, of the same size, where it is not the file's: numpy has no bfloat16.
    """

    def __init__(
        self,
        path: Path,
        start: int = 0,
        stop: int | None = None,
        *,
        keep: object = None,
        meant: torch.dtype | None = None,
    ) -> None:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read_header = getattr(np.lib.format, f"read_array_header_{version[0]}_{version[1]}")
            shape, _, dtype = read_header(file)
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            count = int(np.prod(shape))
            self._all = np.frombuffer(self._map, dtype, count, offset=file.tell()).reshape(shape)
        self._rows = self._all[start:stop]
        self._columns: list[int] | None = None
        self._device = torch.device("cpu")
        self._read = 0
        self.keep, self.meant = keep, meant

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def shape(self) -> torch.Size:
        shape = self._rows.shape
        return torch.Size(shape if self._columns is None else (shape[0], len(self._columns)))

    @property
    def nbytes(self) -> int:
        return self.shape.numel() * self._rows.itemsize

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        """(B,) places, or a slice -> (B, …)."""
        found = torch.from_numpy(self.rows(index.cpu().numpy() if isinstance(index, Tensor) else index))
        return (found if self.meant is None else found.view(self.meant)).to(self._device)

    def rows(self, index: NDArray[np.int64] | slice) -> NDArray[Any]:
        """The same as a numpy array, which is a copy."""
        found: NDArray[Any] = self._rows[index].copy() if isinstance(index, slice) else self._rows[index]
        self._read += found.nbytes
        if self._columns is not None:
            found = found[:, self._columns]
        if self._read >= FORGET:
            self._map.madvise(mmap.MADV_DONTNEED)
            self._read = 0
        return found

    def part(self, start: int, stop: int) -> "StoredRows":
        """The rows of a range, of the same file."""
        return self._changed(_rows=self._rows[start:stop])

    def columns(self, places: Sequence[int]) -> "StoredRows":
        """Of rows that are vectors, (N, C), the same file's with these numbers only, in this order."""
        return self._changed(_columns=list(places))

    def to(self, device: torch.device) -> "StoredRows":
        """The same rows, whose batches go to `device`; nothing is read."""
        return self._changed(_device=device)

    def _changed(self, **values: Any) -> "StoredRows":
        other = object.__new__(StoredRows)
        other.__dict__.update(self.__dict__ | values)
        return other
