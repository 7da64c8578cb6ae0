"""No symbolic link in the service's home leads it elsewhere: neither to read, nor to write, nor to delete."""

import os
import stat
import subprocess
import sys

import pytest

from storage.blobs import BlobStore
from storage.errors import BlobError
from storage.files import is_folder, is_plain
from storage.retention import sweep


@pytest.fixture
def outside(tmp_path_factory):
    """A folder that is none of the service's, with files old enough to be swept."""
    folder = tmp_path_factory.mktemp("outside")
    for name in ("precious", "a.pt"):
        (folder / name).write_bytes(b"precious")
        os.utime(folder / name, (1e9, 1e9))
    os.utime(folder, (1e9, 1e9))
    yield folder
    assert [(folder / name).read_bytes() for name in ("precious", "a.pt")] == [b"precious"] * 2


def link(path, target):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)
    return path


def test_a_plain_file_is_one_that_no_link_leads_to(tmp_path, outside):
    root = tmp_path / "root"
    (root / "folder").mkdir(parents=True)
    plain = root / "folder" / "file"
    plain.write_bytes(b"")
    os.mkfifo(root / "pipe")
    assert is_plain(plain, root)
    assert is_plain(link(tmp_path / "moved", root) / "folder" / "file", tmp_path / "moved")  # an administrator may
    links = [
        link(root / "link", outside / "precious"),
        link(root / "elsewhere", outside) / "precious",
        link(root / "near", plain),
        link(root / "zero", "/dev/zero"),
        link(root / "circle", root / "circle"),
        root / "circle" / "x",
    ]
    beyond = [root / "folder" / ".." / "pipe", root / ".." / "root" / "folder" / "file", outside / "precious"]
    others = [root / "absent", root / "folder", root / "pipe", root / ("x" * 300)]
    for path in links + beyond + others:
        assert not is_plain(path, root), path
    assert is_folder(root / "folder")
    assert not is_folder(root / "elsewhere")


def test_a_file_that_may_not_be_looked_at_is_not_taken_for_gone(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "file").touch()
    folder.chmod(0)
    privileged = os.geteuid() == 0  # whom no permission stops
    try:
        if privileged:
            os.seteuid(65534)
        with pytest.raises(PermissionError):
            is_plain(folder / "file", tmp_path)
    finally:
        if privileged:
            os.seteuid(0)
        folder.chmod(0o700)


@pytest.mark.parametrize("place", ["the file", "its folder"])
def test_a_blob_that_became_a_link_is_not_served(tmp_path, outside, place):
    store = BlobStore(tmp_path / "blobs")
    digest, size = store.put(outside / "precious")
    path = store.path(digest, size)
    if place == "the file":
        path.unlink()
        path.symlink_to(outside / "precious")
    else:
        path.unlink()
        path.parent.rmdir()
        (outside / path.name).write_bytes(b"precious")
        path.parent.symlink_to(outside)
    with pytest.raises(BlobError, match="no file of the store"):
        store.path(digest, size)


def test_a_sweep_deletes_nothing_behind_a_link(jobs, settings, outside):
    fence = jobs.running()
    jobs.end(fence, "failed")
    attempt = settings.jobs / fence.job_id / "attempt-1"
    again = jobs.running()
    jobs.end(again, "failed")
    links = [
        link(settings.blobs / "ab", outside),  # its files have no row
        link(settings.blobs / "cd" / ("cd" + "0" * 62), outside / "precious"),
        link(settings.blobs / ".0.tmp", outside / "precious"),
        link(settings.jobs / "job_gone", outside),
        link(attempt / "checkpoints", outside),
        link(attempt / "out" / "a.pt", outside / "a.pt"),
        link(settings.jobs / again.job_id / "attempt-1", outside),
    ]
    assert len(links) == len({path for path in links if path.is_symlink()})
    sweep(jobs.database, settings.model_copy(update={"sweep_grace_seconds": 0.0}))
    assert sorted(path.name for path in outside.iterdir()) == ["a.pt", "precious"]


def test_what_the_service_makes_is_for_its_user_alone(tmp_path):
    code = (
        "import sys; from pathlib import Path; from storage.files import make_home; from storage.schema import ensure\n"
    )
    code += "from storage.database import Database; from storage.blobs import BlobStore\n"
    code += "home = Path(sys.argv[1]) / 'a' / 'home'; make_home(home); make_home(home)\n"
    code += "ensure(Database(f'sqlite:///{home}/d.db')); BlobStore(home / 'blobs').put(Path(sys.executable))"
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True, timeout=60)
    made = list((tmp_path / "a").rglob("*"))
    assert {"home", "d.db", ".lock"} <= {path.name for path in made}
    assert [path for path in made if stat.S_IMODE(path.stat().st_mode) & 0o077] == []
