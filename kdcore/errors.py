"""Why a job failed, and whose turn it is."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from kdcore.data import DataError

Kind = Literal["user", "system"]


class TrainingError(Exception):
    """A job that cannot go on.

    Attributes:
        code: a short stable name, for programs: `diverged`, `out_of_memory`, `bad_data`, …
        message: what happened and how to mend it, for people.
        kind: `user` where the same job would fail again, `system` where another try may succeed.
    """

    def __init__(self, code: str, message: str, kind: Kind = "user") -> None:
        self.code = code
        self.message = message
        self.kind: Kind = kind
        super().__init__(message)


def diverged(stage: str, step: int, what: str, value: float) -> TrainingError:
    """The error of a number that is not finite: it names the stage, the step and the term."""
    return TrainingError(
        "diverged",
        f"{what} became {value} at step {step} of stage {stage!r}; "
        "a lower learning rate, a warm-up or `gradient_clip` usually helps",
    )


@contextmanager
def memory_errors(where: str, batch_size: int) -> Iterator[None]:
    """Turns running out of memory inside the block into a `TrainingError` that names the batch size."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _out_of_memory(where, batch_size) from error
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):  # how torch's CPU allocator says it
            raise
        raise _out_of_memory(where, batch_size) from error


def _out_of_memory(where: str, batch_size: int) -> TrainingError:
    return TrainingError(
        "out_of_memory",
        f"{where} ran out of memory with batch_size {batch_size}; a smaller batch or a smaller model needs less",
    )


@contextmanager
def data_errors() -> Iterator[None]:
    """Turns a `DataError`, or a data directory that may not be read, into a `TrainingError`."""
    try:
        yield
    except DataError as error:
        raise TrainingError("bad_data", str(error)) from error
    except OSError as error:
        raise TrainingError("bad_data", f"the data cannot be read: {error}") from error
