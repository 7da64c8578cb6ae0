"""A teacher's weights from a file: only a plain file of the data directory is read."""

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from kdcore.errors import TrainingError
from kdcore.spec import TeacherConfig
from kdcore.teacher import weights_file


def teacher(file: str) -> TeacherConfig:
    return TeacherConfig.model_validate({"model": {"type": "mlp"}, "weights": {"file": file}})


def make(root: Path, what: str) -> str:
    """Something that must not be read; its name in the data directory."""
    outside = root.parent / "outside"
    outside.mkdir()
    (outside / "w.safetensors").write_bytes(b"")
    name = "w.safetensors"
    match what:
        case "a folder":
            (root / name).mkdir()
        case "a pipe":
            os.mkfifo(root / name)
        case "a device":
            (root / name).symlink_to("/dev/zero")
        case "a link out":
            (root / name).symlink_to(outside / name)
        case "a folder that leads out":
            (root / "sub").symlink_to(outside)
            name = "sub/w.safetensors"
        case "a circle":
            (root / name).symlink_to(root / name)
        case "a name too long":
            name = "w" * 400 + ".safetensors"
        case "below a file":
            (root / "file").write_bytes(b"")
            name = "file/w.safetensors"
    return name


@pytest.mark.parametrize(
    "what",
    ["nothing", "a folder", "a pipe", "a device", "a link out", "a folder that leads out", "a circle",
     "a name too long", "below a file"],
)  # fmt: skip
def test_what_is_no_plain_file_of_the_data_directory_is_the_users_error(tmp_path: Path, what: str) -> None:
    root = tmp_path / "data"
    root.mkdir()
    name = make(root, what)
    caught: list[Any] = []

    def look() -> None:
        with pytest.raises(TrainingError) as error:
            weights_file(teacher(name), root, None)
        caught.append((error.value.code, error.value.kind))

    thread = threading.Thread(target=look, daemon=True)  # whoever opened a pipe would wait
    thread.start()
    thread.join(10)
    assert caught == [("no_teacher_weights", "user")]


def test_a_file_and_a_link_within_are_taken(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"")
    (tmp_path / "again.safetensors").symlink_to(tmp_path / "w.safetensors")
    for name in ("w.safetensors", "again.safetensors"):
        assert weights_file(teacher(name), tmp_path, None) == tmp_path / name


@pytest.mark.parametrize("file", ["../w.safetensors", "/w.safetensors", "a/../../w.safetensors", "a\\w.safetensors",
                                  "w\x00.safetensors", "w.pickle", "", "~/w.safetensors/.."])  # fmt: skip
def test_a_path_that_could_leave_is_no_valid_spec(file: str) -> None:
    with pytest.raises(ValueError, match="weights"):
        teacher(file)
