"""Model files that are made to be much work: what naming, comparing and keeping their tensors takes is bounded."""

import copy
import json
import shutil
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import load_file, save_file

from kdcore.errors import TrainingError
from kdcore.modelfiles import ModelOptions, check_model, onnx_trial
from kdcore.modelfiles.fit import without_prefix
from kdcore.modelfiles.formats import MOST_TENSORS
from kdcore.modelfiles.tensors import Stored


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(TrainingError) as caught:
        check_model(path, ModelOptions(**options), out=path.parent)
    assert (caught.value.code, caught.value.kind) == ("bad_model", "user")
    return caught.value.message


@pytest.mark.parametrize("save", [save_file, torch.save])
def test_a_name_without_end_is_refused(tmp_path: Path, save: Any) -> None:
    save({"a." * 100_000 + "weight": torch.ones(2)}, tmp_path / "w")
    message = refusal(tmp_path / "w")
    assert "has 200,006 characters" in message
    assert len(message) < 300


class Name(str):
    """Counts how often what stands before it is taken away."""

    times = 0

    def removeprefix(self, prefix: str) -> "Name":
        Name.times += 1
        return Name(super().removeprefix(prefix))


def test_what_stands_before_all_names_is_found_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Name, "times", 0)
    stored = Stored((1,), torch.float32, lambda: torch.zeros(1))
    deep = {Name("a." * 500 + end): stored for end in ("x.weight", "x.bias")}
    left, prefix = without_prefix(deep, {"y.weight": torch.zeros(1)})
    assert (list(left), prefix) == (["weight", "bias"], "a." * 500 + "x.")
    assert Name.times == 2


@pytest.mark.parametrize(
    ("found", "wanted", "prefix"),
    [
        (["module.model.w", "module.model.b"], ["model.w", "model.b"], "module."),
        (["model.w"], ["model.w"], ""),
        (["a.w", "b.w"], ["w"], ""),
        (["a.w", "a.b.w"], ["w", "b.w"], "a."),
        (["ab.w", "ac.w"], ["w"], ""),
        (["w"], ["w"], ""),
    ],
)
def test_only_a_wrappers_name_is_taken_away(found: list[str], wanted: list[str], prefix: str) -> None:
    stored = Stored((1,), torch.float32, lambda: torch.zeros(1))
    left, before = without_prefix(dict.fromkeys(found, stored), dict.fromkeys(wanted, torch.zeros(1)))
    assert before == prefix
    assert list(left) == [name[len(prefix) :] for name in found]


def test_a_profile_lists_so_many_tensors_and_no_more(tmp_path: Path) -> None:
    header = {f"t{number}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for number in range(MOST_TENSORS)}
    assert check_model(written(tmp_path / "w", header), ModelOptions(), out=tmp_path).tensors == MOST_TENSORS
    one_more = header | {"t": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}
    assert "it has 20,001 tensors, at most 20,000" in refusal(written(tmp_path / "w", one_more))


def written(path: Path, header: dict[str, Any]) -> Path:
    """A safetensors file without numbers."""
    content = json.dumps(header).encode()
    content += b" " * (-len(content) % 8)
    path.write_bytes(struct.pack("<Q", len(content)) + content)
    return path


@pytest.mark.parametrize("save", [save_file, torch.save])
def test_a_shape_without_end_is_refused(tmp_path: Path, save: Any) -> None:
    save({"w": torch.ones([1] * 9)}, tmp_path / "w")
    assert "w has 9 dimensions, at most 8" in refusal(tmp_path / "w")


@pytest.mark.parametrize(
    ("output", "shape", "message"),
    [
        ("s" * 501, None, "has 501 characters"),
        ("scores", ["n" * 501, 4], "has 501 characters"),
        ("scores", ["n", 4, *[1] * 7], "scores has 9 dimensions"),
    ],
)
def test_outputs_of_an_onnx_file_are_bounded_as_well(tmp_path: Path, output: str, shape: Any, message: str) -> None:
    (tmp_path / "x").write_bytes(onnx_file(output, shape))
    assert message in refusal(tmp_path / "x")


def onnx_file(output: str, shape: list[Any] | None) -> bytes:
    """It reads four numbers and gives them in another shape."""
    inputs = [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["n", 4])]
    outputs = [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)]
    to = numpy_helper.from_array(np.array([-1, 4, *[1] * (len(shape or ["n", 4]) - 2)]), "to")
    node = helper.make_node("Reshape", ["pixels", "to"], [output])
    graph = helper.make_graph([node], "g", inputs, outputs, [to])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def test_tied_weights_are_written_twice_and_no_numbers_many_times(tmp_path: Path) -> None:
    shared = torch.ones(1000)
    torch.save({"first": shared, "last": shared}, tmp_path / "tied")
    check_model(tmp_path / "tied", ModelOptions(), out=tmp_path)
    assert all(torch.equal(value, shared) for value in load_file(tmp_path / "weights.safetensors").values())
    torch.save({f"t{number}": shared for number in range(20)}, tmp_path / "many")
    assert "its tensors would have 80,000 bytes" in refusal(tmp_path / "many")


def test_parts_of_an_archive_lie_beside_each_other(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1000)}, tmp_path / "w")
    with zipfile.ZipFile(tmp_path / "w", "a") as archive:
        whole = next(entry for entry in archive.filelist if entry.filename.endswith("data/0"))
        for number in range(1, 4):
            again = copy.copy(whole)
            again.filename = whole.filename[:-1] + str(number)
            archive.filelist.append(again)
        archive.writestr("archive/readme", "")  # so that the list is written anew
    assert "its files lie over each other" in refusal(tmp_path / "w")


def test_weights_are_written_where_there_is_room(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1000)}, tmp_path / "w")
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(TrainingError, match="the weights have 4,000 bytes, and of") as caught:
        check_model(tmp_path / "w", ModelOptions(), out=tmp_path, spared=2 * free)
    assert (caught.value.code, caught.value.kind) == ("disk", "system")
    assert [path.name for path in tmp_path.iterdir()] == ["w"]


@pytest.mark.parametrize("comment", [0, 65_535])
def test_the_list_of_an_archive_is_the_one_that_its_end_leads_to(tmp_path: Path, comment: int) -> None:
    torch.save({"w": torch.ones(1000)}, tmp_path / "w")
    content = (tmp_path / "w").read_bytes()
    end = content.rindex(b"PK\5\6")
    whole, last = content[:end], content[end:-2] + struct.pack("<H", comment) + b" " * comment
    assert content[end - 76 : end].startswith(b"PK\6\6")  # torch writes what large archives need, always
    (tmp_path / "w").write_bytes(whole + last)
    assert check_model(tmp_path / "w", ModelOptions(), out=tmp_path).tensors == 1
    (tmp_path / "w").write_bytes(whole[:-12] + struct.pack("<QI", 0, 1) + last)
    assert "leads elsewhere than to its list" in refusal(tmp_path / "w")
    many = struct.pack("<QQ", 10**9, 10**9)
    (tmp_path / "w").write_bytes(whole[:-52] + many + many[:8] + whole[-28:] + last)
    assert "an archive of 1,000,000,000 files" in refusal(tmp_path / "w")


def test_the_trial_of_an_onnx_file_does_not_get_the_workers_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "program.py"
    program.write_text("import os, sys\nprint(dict(os.environ), file=sys.stderr)\nsys.exit(3)\n")
    monkeypatch.setattr(onnx_trial, "__file__", str(program))
    monkeypatch.setenv("DISTILLERY_TEACHER_SECRETS", '{"models": "very-secret"}')
    monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/cuda")
    (tmp_path / "x").write_bytes(onnx_file("scores", ["n", 4]))
    message = refusal(tmp_path / "x")
    assert "'LD_LIBRARY_PATH': '/opt/cuda'" in message
    assert "secret" not in message.lower()
    assert "'PATH'" not in message
