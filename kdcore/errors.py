"""Why a job failed, and whose turn it is."""

import errno
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from kdcore.data import DataError
from kdcore.data.base import NoRoomError

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


NO_MEMORY = ("allocate memory", "out of memory", "not enough memory", "bad_alloc", "_alloc_failed")
"""How torch, its CPU allocator, CUDA and its libraries say it where they have no type for it."""


def is_memory_error(error: BaseException) -> bool:
    """Whether it says that memory ran out, on the device or on the host."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in NO_MEMORY)


@contextmanager
def memory_errors(where: str, advise: Callable[[], str]) -> Iterator[None]:
    """Turns running out of memory inside the block into a `TrainingError`.

    Args:
        where: what runs there, with its batch size where it has one.
        advise: what mends it; asked once what the block held is free again.
    """
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        if not is_memory_error(error):
            raise
        traceback.clear_frames(error.__traceback__)  # the tensors of the step: there must be memory to say so
        raise TrainingError("out_of_memory", f"{where} ran out of memory; {advise()}") from error


@contextmanager
def single_sample_errors(stage: str, size: int) -> Iterator[None]:
    """Turns what batch normalisation says of one number a channel, which has no spread, into a `TrainingError`."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        message = (
            f"stage {stage!r}, batch_size {size}: a batch of one sample, perhaps an epoch's last, has one number for"
            " each channel where its maps have shrunk to 1x1, too few for batch normalisation; use another batch_size,"
            " larger pictures, or a network that shrinks them less"
        )
        raise TrainingError("single_sample", message) from error


NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Of an `OSError`: there is no more room on the disk, or in the part of it that a user or a file may have."""


def disk_reason(error: OSError) -> str:
    """Why something could not be read or written, in words that say so where it is for lack of room."""
    said = error.strerror or str(error)
    return f"the disk is full ({said})" if error.errno in NO_SPACE else said


@contextmanager
def data_errors() -> Iterator[None]:
    """Turns a `DataError`, a data directory that may not be read, or a full disk into a `TrainingError`."""
    try:
        yield
    except NoRoomError as error:  # there may be room another time
        raise TrainingError("disk", f"the disk is full: {error}", "system") from error
    except DataError as error:
        raise TrainingError("bad_data", str(error)) from error
    except OSError as error:
        if is_memory_error(error):
            raise
        if error.errno in NO_SPACE:
            message = f"the data could not be prepared: {disk_reason(error)}"
            raise TrainingError("disk", message, "system") from error
        raise TrainingError("bad_data", f"the data cannot be read: {error}") from error
