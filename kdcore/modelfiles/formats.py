"""What a model file is, by its content: its name says nothing."""

import struct
import zipfile
from collections.abc import Collection, Sequence
from pathlib import Path

from kdcore.modelfiles.profile import Format
from kdcore.uploads.zips import announced

LARGEST_HEADER = 100_000_000
"""Bytes of a safetensors header, which is what its own readers allow."""
MOST_ENTRIES = 100_000
"""Of an archive: a model has a few for each of its weights."""
LARGEST_LIST = 32 * 2**20
"""Bytes of the list of these."""
MOST_TENSORS, MOST_DIMENSIONS, LONGEST_NAME = 20_000, 8, 500
"""Of a file, of a tensor, and in characters: a network's names have a few dozen, and few networks 1,000 tensors."""
INSTEAD = (
    "save the weights, `safetensors.torch.save_file(model.state_dict(), 'model.safetensors')`, or export the model with"
    " `torch.onnx.export` to an .onnx file"
)


class ModelFileError(ValueError):
    """A model file that is not what it should be; the message says how to mend it."""


def file_format(path: Path) -> Format:
    """Which of the formats that can be read a file has.

    Raises:
        ModelFileError: it has none of them; of formats whose reading runs code the message says so.
        OSError: it could not be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(16)
    if start.startswith(b"PK\x03\x04"):
        return _archive(path)
    if start.startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        raise ModelFileError(f"it is a pickle, whose reading runs code; {INSTEAD}")
    if start[8:9] == b"{":
        _check_header(start, size)
        return "safetensors"
    if start[:1] == b"\x08" and start[4:8] != b"ORTM":  # a ModelProto begins with its ir_version
        return "onnx"
    raise ModelFileError(f"it is neither safetensors nor ONNX nor a state_dict that torch saved; {INSTEAD}")


def _check_header(start: bytes, size: int) -> None:
    """Before anything reserves as much memory as the file asks for."""
    (length,) = struct.unpack("<Q", start[:8])
    if length > min(LARGEST_HEADER, size - 8):
        raise ModelFileError(
            f"its header should have {length:,} bytes, the file has {size:,} and a header at most {LARGEST_HEADER:,};"
            " it is cut off or damaged: save it again"
        )


def _archive(path: Path) -> Format:
    try:
        members, listed = announced(path)
        if members > MOST_ENTRIES or listed > LARGEST_LIST:
            raise ModelFileError(f"it is an archive of {members:,} files, a model has at most {MOST_ENTRIES:,}")
        with zipfile.ZipFile(path) as archive:
            names = [entry.filename.partition("/")[2] for entry in archive.infolist()]
    except (zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError) as error:
        if isinstance(error, ModelFileError):
            raise
        raise ModelFileError(f"it is a damaged archive ({error}); save it again") from None
    if len(names) > MOST_ENTRIES:
        raise ModelFileError(f"it is an archive of {len(names):,} files, a model has at most {MOST_ENTRIES:,}")
    if "constants.pkl" in names or any(name.startswith("code/") for name in names):
        raise ModelFileError(f"it is a TorchScript archive, whose loading runs the code in it; {INSTEAD}")
    if "archive_format" in names or any(name.endswith("exported_program.json") for name in names):
        raise ModelFileError(
            "it is a program of torch.export (.pt2), whose loading evaluates expressions and unpickles what is in it;"
            f" {INSTEAD}"
        )
    if "data.pkl" in names:
        return "state_dict"
    raise ModelFileError(f"it is an archive, but none that torch saved; {INSTEAD}")


def check_values(values: Collection[tuple[str, Sequence[object]]]) -> None:
    """Raise `ModelFileError` where tensors are too many, or one's name or shape is too long: a profile lists them all.

    Args:
        values: the name and shape of each; a dimension may have a name, too.
    """
    if len(values) > MOST_TENSORS:
        raise ModelFileError(f"it has {len(values):,} tensors, at most {MOST_TENSORS:,} are read")
    for name, shape in values:
        for part in (name, *shape):
            if isinstance(part, str) and len(part) > LONGEST_NAME:
                size = f"{len(part):,} characters"
                raise ModelFileError(f"the name {part[:100]!r}… has {size}, at most {LONGEST_NAME} are read")
        if len(shape) > MOST_DIMENSIONS:
            raise ModelFileError(f"{name} has {len(shape):,} dimensions, at most {MOST_DIMENSIONS} are read")
