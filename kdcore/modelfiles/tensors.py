"""The tensors of a weights file, one at a time: what it holds is known before any of it is in memory."""

import errno
import math
import pickletools
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from kdcore.modelfiles.formats import ModelFileError, check_values, file_format

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""As safetensors names them; others are no weights that a network here could have."""
LARGEST_PICKLE = 8 * 2**20
"""Bytes of the part that names the tensors: a thousand of them take 0.15 MB."""
NAMES = {
    "collections OrderedDict",
    *(f"torch._utils {name}" for name in ("_rebuild_tensor_v2", "_rebuild_parameter")),
    *(f"torch {kind}Storage" for kind in ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char")),
    *(f"torch {kind}Storage" for kind in ("Byte", "Bool")),
    *("torch Size", "torch.storage UntypedStorage"),
}
"""All that a dictionary of tensors needs: fewer than `weights_only` lets pass."""
WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Under which a training script keeps the weights beside other things."""
TIED = 2
"""How often a state_dict may hold the same numbers, on average: tied weights, such as those of a text model's first and
last layer, are there under both names and are written twice."""
STATE_DICT = "save `model.state_dict()` alone, as safetensors"


@dataclass(frozen=True)
class Stored:
    """A tensor in a file.

    Attributes:
        read: gives it, on the CPU.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]


def open_tensors(path: Path) -> Mapping[str, Stored]:
    """The tensors of a safetensors file, or of a state_dict that torch saved; none of them is in memory yet.

    Raises:
        ModelFileError: it is no such file, damaged, or holds more than tensors.
        OSError: it could not be read.
    """
    kind = file_format(path)
    if kind == "onnx":
        raise ModelFileError("it is an ONNX file, which brings its own architecture: use the model {type: onnx}")
    found = _safetensors(path) if kind == "safetensors" else _state_dict(path)
    check_values([(name, stored.shape) for name, stored in found.items()])
    return found


def _safetensors(path: Path) -> dict[str, Stored]:
    found = {}
    try:
        file: Any = safetensors.safe_open(path, "pt")
        for name in file.keys():  # noqa: SIM118 - it is no mapping
            part = file.get_slice(name)
            if (dtype := DTYPES.get(part.get_dtype())) is None:
                raise ModelFileError(f"{name} holds numbers of type {part.get_dtype()}; save it as float32")
            found[name] = Stored(tuple(part.get_shape()), dtype, partial(file.get_tensor, name))
    except safetensors.SafetensorError as error:
        raise ModelFileError(f"it is not a readable safetensors file ({error}); save it again") from None
    return found


def _state_dict(path: Path) -> dict[str, Stored]:
    _check_archive(path)
    try:
        content = _loaded(path)
    except Exception as error:  # a damaged pickle can make the unpickler stumble in any way
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno != errno.EINVAL):
            raise
        raise ModelFileError(f"torch cannot read it ({type(error).__name__}); {STATE_DICT}") from None
    found = {name: _stored(name, value) for name, value in _unwrapped(content).items()}
    size, needed = path.stat().st_size, sum(math.prod(each.shape) * each.dtype.itemsize for each in found.values())
    if needed > TIED * size:
        message = f"its tensors would have {needed:,} bytes, it has {size:,}: they are the same numbers many times"
        raise ModelFileError(f"{message}; {STATE_DICT}")
    return found


def _loaded(path: Path) -> Any:
    """Mapped, not read, but where the name says safetensors: torch would believe it."""
    if path.suffix != ".safetensors":
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    with path.open("rb") as file:
        return torch.load(file, map_location="cpu", weights_only=True)


def _check_archive(path: Path) -> None:
    """Before anything is unpickled: sizes, nothing packed, and no name of a class or function but those of tensors."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise ModelFileError(f"it is packed, which torch never does; {STATE_DICT}")
            pickles = [entry for entry in entries if entry.filename.partition("/")[2] == "data.pkl"]
            if len(pickles) != 1 or len({entry.filename for entry in entries}) < len(entries):
                raise ModelFileError(f"it holds the same file twice; {STATE_DICT}")
            if sum(entry.file_size for entry in entries) > path.stat().st_size:
                raise ModelFileError(f"its files lie over each other; {STATE_DICT}")
            if pickles[0].file_size > LARGEST_PICKLE:
                raise ModelFileError(f"more than {LARGEST_PICKLE:,} bytes of it are no tensors; {STATE_DICT}")
            content = archive.read(pickles[0])
        named = [str(value) for code, value, _ in pickletools.genops(content) if code.name in ("GLOBAL", "INST")]
    except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError) as error:
        if isinstance(error, ModelFileError):
            raise
        raise ModelFileError(f"it is a damaged archive ({error}); save it again") from None
    for name in named:
        if name not in NAMES:
            raise ModelFileError(
                f"it holds {name.replace(' ', '.')[:100]}, which only running code could make; {STATE_DICT}"
            )


def _unwrapped(content: Any) -> Mapping[str, Any]:
    if isinstance(content, Mapping):
        for key in WRAPPERS:
            if isinstance(content.get(key), Mapping):
                return content[key]  # type: ignore[no-any-return]
        return content
    raise ModelFileError(f"it holds a {type(content).__name__}, not a state_dict; {STATE_DICT}")


def _stored(name: Any, value: Any) -> Stored:
    if not isinstance(name, str) or not isinstance(value, Tensor) or value.layout != torch.strided:
        raise ModelFileError(f"{str(name)[:100]!r} in it is a {type(value).__name__}, not a tensor; {STATE_DICT}")
    if value.dtype not in DTYPES.values() or value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise ModelFileError(f"{name[:100]} is larger than the numbers that it holds, or of an odd type; {STATE_DICT}")
    tensor = value.detach()
    return Stored(tuple(tensor.shape), tensor.dtype, lambda: tensor.contiguous().clone())
