"""Checkpoints are complete or absent, execute nothing, and know which job they belong to."""

import errno
import hashlib
import os
import pickle
import random
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from kdcore import checkpoint
from kdcore.errors import TrainingError

CONTENT = {"spec_digest": "sha256:a", "weights": torch.arange(1000.0), "state": {"step": 3, "best": None}}


def test_what_is_saved_is_loaded_and_the_digest_is_of_the_file(tmp_path: Path) -> None:
    path, digest = checkpoint.save(tmp_path / "new", CONTENT)
    assert path.name == "checkpoint-001.pt"
    assert digest == "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest() == checkpoint.file_digest(path)
    loaded = checkpoint.load(path, spec_digest="sha256:a", digest=digest)
    assert torch.equal(loaded["weights"], CONTENT["weights"])
    assert loaded["state"] == {"step": 3, "best": None}


def test_saving_deletes_none_and_pruning_leaves_the_last_two(tmp_path: Path) -> None:
    (tmp_path / "other.pt").write_bytes(b"x")
    (tmp_path / ".checkpoint-killed.tmp").write_bytes(b"half")
    saved = [checkpoint.save(tmp_path, CONTENT)[0].name for _ in range(4)]
    assert sorted(p.name for p in tmp_path.glob("c*.pt")) == saved
    checkpoint.prune(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [*saved[-2:], "other.pt"]


def test_numbers_only_rise(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-999.pt").write_bytes(b"")
    assert checkpoint.save(tmp_path, CONTENT)[0].name == "checkpoint-1000.pt"
    assert checkpoint.save(tmp_path, CONTENT)[0].name == "checkpoint-1001.pt"


def test_a_write_that_fails_leaves_the_earlier_ones_and_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(tmp_path, CONTENT)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TrainingError, match="No space left") as caught:
        checkpoint.save(tmp_path, CONTENT)
    assert (caught.value.code, caught.value.kind) == ("disk", "system")
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-001.pt"]


def test_a_full_disk_is_said_so() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with (
        Path("/dev/full").open("wb", buffering=0) as full,
        pytest.raises(TrainingError, match="No space left"),
        checkpoint.disk_errors("it", Path("/dev")),
    ):
        torch.save({"weights": torch.zeros(100_000)}, full)


def test_the_name_appears_only_after_the_bytes_are_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda d: (calls.append("fsync"), sync(d)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("replace"), replace(a, b)))
    checkpoint.save(tmp_path, CONTENT)
    assert calls == ["fsync", "replace", "fsync"]


def test_another_job_is_refused(tmp_path: Path) -> None:
    path, _ = checkpoint.save(tmp_path, CONTENT)
    with pytest.raises(TrainingError, match="belongs to another spec") as caught:
        checkpoint.load(path, spec_digest="sha256:b")
    assert (caught.value.code, caught.value.kind) == ("other_spec", "user")


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "text", "missing", "version"])
def test_a_damaged_file_is_refused(tmp_path: Path, damage: str) -> None:
    path, digest = checkpoint.save(tmp_path, CONTENT)
    data = bytearray(path.read_bytes())
    known = None
    if damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "flip":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        known = digest
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "text":
        path.write_bytes(b"hello, this is no checkpoint")
    elif damage == "missing":
        path.unlink()
    else:
        torch.save({**CONTENT, "version": 0}, path)
    with pytest.raises(TrainingError) as caught:
        checkpoint.load(path, spec_digest="sha256:a", digest=known)
    assert caught.value.code == "bad_checkpoint"


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="this system has no file whose reading fails")
@pytest.mark.parametrize("digest", [None, "sha256:0"])
def test_a_disk_that_does_not_read_says_nothing_of_the_checkpoint(digest: str | None) -> None:
    with pytest.raises(TrainingError, match="Input/output error") as caught:
        checkpoint.load(Path("/proc/self/mem"), spec_digest="sha256:a", digest=digest)
    assert (caught.value.code, caught.value.kind) == ("disk", "system")


def test_a_lack_of_memory_says_nothing_of_the_checkpoint(tmp_path: Path) -> None:
    path, digest = checkpoint.save(tmp_path, {**CONTENT, "weights": torch.zeros(2**24)})
    code = """
        import resource, sys, torch
        from pathlib import Path
        from kdcore import checkpoint
        from kdcore.errors import TrainingError
        torch.set_num_threads(1)
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + 2**25, resource.RLIM_INFINITY))
        try:
            checkpoint.load(Path(sys.argv[1]), spec_digest="sha256:a", digest=sys.argv[2])
        except TrainingError as error:
            print(error.code, error.kind)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(path), digest]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert ended.stdout.split() == ["out_of_memory", "system"]


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_no_damage_makes_the_reader_stumble(tmp_path: Path) -> None:
    path, _ = checkpoint.save(tmp_path, CONTENT)
    whole, chance, codes = path.read_bytes(), random.Random(0), set()
    for _ in range(500):
        data = bytearray(whole)
        for _ in range(5):
            at = chance.choice((chance.randrange(700), -1 - chance.randrange(700)))  # head and pickle, or directory
            data[at] = chance.randrange(256)
        path.write_bytes(data)
        try:
            checkpoint.load(path, spec_digest="sha256:a")
        except TrainingError as error:  # and nothing else
            codes.add(error.code)
    assert codes == set(checkpoint.UNUSABLE)


class Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (os.environ["TRAP"],)


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_loading_executes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.setenv("TRAP", str(tmp_path / "sprung"))
    path = tmp_path / "checkpoint-001.pt"
    if how == "torch":
        torch.save({**CONTENT, "trap": Trap()}, path)
    else:
        path.write_bytes(pickle.dumps(Trap(), protocol=2))
    with pytest.raises(TrainingError, match="no usable checkpoint"):
        checkpoint.load(path, spec_digest="sha256:a")
    assert not (tmp_path / "sprung").exists()
