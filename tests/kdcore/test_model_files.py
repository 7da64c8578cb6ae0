"""Weights that somebody brings: known by their content, compared name by name, and never executed."""

import io
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision import models

from kdcore.errors import TrainingError
from kdcore.modelfiles import ModelOptions, ModelProfile, check_model
from kdcore.models import MLPConfig, TorchvisionConfig
from kdcore.teacher import load_weights
from tests.disks import files_of_at_most

MLP = ModelOptions(model=MLPConfig(hidden=[4]), classes=["a", "b", "c"], input_shape=[1, 2, 2])


def weights(**changes: torch.Tensor) -> dict[str, torch.Tensor]:
    network = MLPConfig(hidden=[4]).build((1, 2, 2), 3)
    return {name: value.clone() for name, value in network.state_dict().items()} | changes


def check(path: Path, options: ModelOptions = MLP) -> ModelProfile:
    return check_model(path, options, out=path.parent)


def refusal(path: Path, options: ModelOptions = MLP) -> str:
    with pytest.raises(TrainingError) as caught:
        check(path, options)
    assert (caught.value.code, caught.value.kind) == ("bad_model", "user")
    return caught.value.message


def test_a_full_disk_is_not_the_models_fault(tmp_path: Path) -> None:
    torch.save(weights(), tmp_path / "w")
    with files_of_at_most(100), pytest.raises(TrainingError, match="weights could not be written") as caught:
        check(tmp_path / "w")
    assert (caught.value.code, caught.value.kind) == ("disk", "system")
    assert [path.name for path in tmp_path.iterdir()] == ["w"]
    assert check(tmp_path / "w").file == "weights.safetensors"


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.", "module._orig_mod."])
def test_wrappers_names_are_taken_away(tmp_path: Path, prefix: str) -> None:
    given = weights()
    save_file({prefix + name: value for name, value in given.items()}, tmp_path / "w")
    profile = check(tmp_path / "w")
    assert (profile.format, profile.prefix, profile.file) == ("safetensors", prefix, None)
    assert profile.parameters == sum(value.numel() for value in given.values())
    loaded = load_weights(tmp_path / "w", MLPConfig(hidden=[4]).build((1, 2, 2), 3))
    assert all(torch.equal(loaded[name], value) for name, value in given.items())


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_state_dict_becomes_safetensors_whatever_its_name(tmp_path: Path, name: str, wrapped: bool) -> None:
    given: Any = weights()
    torch.save({"state_dict": given, "epoch": 3} if wrapped else given, tmp_path / name)
    profile = check(tmp_path / name)
    assert (profile.format, profile.file) == ("state_dict", "weights.safetensors")
    written = load_file(tmp_path / "weights.safetensors")
    assert written.keys() == given.keys()
    assert all(torch.equal(written[name], value) for name, value in given.items())
    assert check(tmp_path / "weights.safetensors").format == "safetensors"
    assert check(tmp_path / name, ModelOptions()).model is None


def test_safetensors_may_be_called_pt(tmp_path: Path) -> None:
    save_file(weights(), tmp_path / "w.pt")
    assert check(tmp_path / "w.pt").format == "safetensors"


def test_a_counter_of_batches_may_be_missing(tmp_path: Path) -> None:
    state = models.resnet18(num_classes=3).state_dict()
    save_file({name: value for name, value in state.items() if "tracked" not in name}, tmp_path / "w")
    options = ModelOptions(model=TorchvisionConfig(), classes=["a", "b", "c"])
    assert check(tmp_path / "w", options).model == TorchvisionConfig()
    found = refusal(tmp_path / "w", ModelOptions(model=TorchvisionConfig(name="resnet34"), classes=["a", "b", "c"]))
    assert "missing layer1.2.conv1.weight" in found
    assert "more" in found
    assert "[3, 512], the model's is [2, 512]" in refusal(
        tmp_path / "w", ModelOptions(model=TorchvisionConfig(), classes=["a", "b"])
    )
    assert "say how many outputs" in refusal(tmp_path / "w", ModelOptions(model=TorchvisionConfig()))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("options", [MLP, ModelOptions()])
def test_what_is_not_finite_is_refused(tmp_path: Path, value: float, options: ModelOptions) -> None:
    given = weights()
    first = next(iter(given))
    given[first].view(-1)[0] = value
    save_file(given, tmp_path / "w")
    assert f"{first} holds values that are not finite" in refusal(tmp_path / "w", options)


def test_whole_numbers_are_no_weights(tmp_path: Path) -> None:
    save_file({name: value.to(torch.int8) for name, value in weights().items()}, tmp_path / "w")
    assert "holds int8, the model's are floating-point" in refusal(tmp_path / "w")


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def bad_file(path: Path, what: str, mark: Path) -> str:
    """Write it; a part of the message that refuses it."""
    match what:
        case "a pickle":
            torch.save(Payload(mark), path, _use_new_zipfile_serialization=False)
            return "it is a pickle, whose reading runs code"
        case "a pickle in an archive":
            torch.save({"w": Payload(mark)}, path)
            return "which only running code could make"
        case "a whole model":
            torch.save(nn.Linear(2, 2), path)
            return "torch.nn.modules.linear.Linear"
        case "TorchScript":
            torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)).save(str(path))  # type: ignore[no-untyped-call]
            return "TorchScript"
        case "a huge header":
            path.write_bytes(struct.pack("<Q", 4 * 2**30) + b'{"a":' + b" " * 100)
            return "its header should have 4,294,967,296 bytes"
        case "a header beyond the file":
            path.write_bytes(struct.pack("<Q", 1000) + b"{}")
            return "its header should have 1,000 bytes"
        case "a header of something else":
            path.write_bytes(struct.pack("<Q", 7) + b'{"a":1}')
            return "not a readable safetensors file"
        case "nothing":
            path.write_bytes(b"")
            return "neither safetensors nor ONNX"
        case "cut off":
            save_file(weights(), path)
            path.write_bytes(path.read_bytes()[:-8])
            return "not a readable safetensors file"
        case "an archive cut off":
            torch.save(weights(), path)
            path.write_bytes(path.read_bytes()[:-300])
            return "damaged archive"
        case "a packed archive":
            torch.save(weights(), path)
            with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as old, zipfile.ZipFile(path, "w") as new:
                for entry in old.infolist():
                    new.writestr(entry.filename, old.read(entry), zipfile.ZIP_DEFLATED)
            return "it is packed"
        case "another archive":
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("a/readme", "")
            return "none that torch saved"
        case "tensors without end":
            torch.save({"w": torch.zeros(1).expand(10**12)}, path)
            return "larger than the numbers that it holds"
        case "no tensors":
            torch.save({"state_dict": {"w": [1, 2]}}, path)
            return "'w' in it is a list"
    raise AssertionError(what)


@pytest.mark.parametrize(
    "what",
    ["a pickle", "a pickle in an archive", "a whole model", "TorchScript", "a huge header", "a header beyond the file",
     "a header of something else", "nothing", "cut off", "an archive cut off", "a packed archive", "another archive",
     "tensors without end", "no tensors"],
)  # fmt: skip
@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
def test_what_is_refused(tmp_path: Path, what: str, name: str) -> None:
    mark = tmp_path / "executed"
    message = bad_file(tmp_path / name, what, mark)
    for options in (MLP, ModelOptions()):
        assert message in refusal(tmp_path / name, options)
    with pytest.raises(TrainingError) as caught:
        load_weights(tmp_path / name, MLPConfig(hidden=[4]).build((1, 2, 2), 3))
    assert caught.value.code == "bad_teacher_weights"
    assert message in caught.value.message
    assert not mark.exists()


def program(path: Path, mark: Path) -> None:
    """A .pt2 whose size of a dimension is an expression that touches a file."""
    plain = path.with_suffix(".plain")
    batch = torch.export.Dim("batch")
    exported = torch.export.export(nn.Linear(2, 2), (torch.zeros(3, 2),), dynamic_shapes=({0: batch},))
    with plain.open("wb") as file:
        torch.export.save(exported, file)
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(path, "w") as new:
        for entry in old.infolist():
            content = old.read(entry)
            if entry.filename.endswith("models/model.json"):
                start = content.index(b'"expr_str": "') + len(b'"expr_str": "')
                end = content.index(b'"', start)
                code = f"__import__('pathlib').Path('{mark}').touch()"
                content = content[:start] + code.encode() + content[end:]
            new.writestr(entry.filename, content)


def test_a_program_of_torch_export_is_refused_since_loading_it_runs_what_it_holds(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    program(tmp_path / "w.pt2", mark)
    for name in ("w.pt2", "w.safetensors"):
        (tmp_path / "w.pt2").rename(tmp_path / name)
        message = refusal(tmp_path / name)
        (tmp_path / name).rename(tmp_path / "w.pt2")
        assert "loading evaluates expressions" in message
        assert "safetensors" in message
        assert ".onnx" in message
    assert not mark.exists()
    # The proof that this is needed: torch itself runs it, in a process of its own here.
    code = "import sys, torch\ntorch.export.load(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, tmp_path / "w.pt2"], capture_output=True, timeout=120, check=False)
    assert mark.exists()
