"""The artifact store: complete or absent, whoever writes at the same time."""

import hashlib
import os
import threading
import time

import pytest

from storage.blobs import BlobStore
from storage.errors import BlobError


@pytest.fixture
def store(tmp_path):
    return BlobStore(tmp_path / "blobs")


def source(tmp_path, content, name="source"):
    path = tmp_path / name
    path.write_bytes(content)
    return path


def files(store):
    return sorted(path.name for path in store.root.rglob("*") if path.is_file() and path.name != ".lock")


@pytest.mark.parametrize("size", [0, 1, (1 << 20) + 1])
def test_what_is_put_comes_back_under_its_digest(store, tmp_path, size):
    content = os.urandom(size)
    digest, length = store.put(source(tmp_path, content))
    assert (digest, length) == (f"sha256:{hashlib.sha256(content).hexdigest()}", size)
    assert store.path(digest, length).read_bytes() == content
    assert files(store) == [digest.removeprefix("sha256:")]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_put_that_fails_leaves_nothing(store, tmp_path, monkeypatch, step):
    def full(*_):
        assert list(store.all()) == [], "there before it was complete"
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match="No space"):
        store.put(source(tmp_path, b"abc"))
    with pytest.raises(FileNotFoundError):
        store.put(tmp_path / "absent")
    assert files(store) == []


def test_missing_and_truncated_blobs_are_told(store, tmp_path):
    digest, size = store.put(source(tmp_path, b"abc"))
    path = store.path(digest, size)
    path.write_bytes(b"ab")
    with pytest.raises(BlobError, match="2 bytes in the store instead of 3"):
        store.path(digest, size)
    store.put(source(tmp_path, b"abc"))
    assert store.path(digest, size).read_bytes() == b"abc"
    path.unlink()
    with pytest.raises(BlobError, match="missing"):
        store.path(digest, size)


def test_equal_puts_at_once_are_one_file(store, tmp_path, at_once):
    content = os.urandom(300_000)
    path = source(tmp_path, content)
    results = at_once(8, lambda _: store.put(path))
    assert len(set(results)) == 1, results
    assert store.path(*results[0]).read_bytes() == content
    assert len(files(store)) == 1


def test_a_reader_never_sees_half_a_file(store, tmp_path, at_once):
    content = os.urandom(3 << 20)
    path = source(tmp_path, content)
    digest, size = f"sha256:{hashlib.sha256(content).hexdigest()}", len(content)

    def work(index):
        if index:
            return store.put(path)
        while True:
            for _, found in store.all():
                assert found.read_bytes() == content
                return store.path(digest, size)

    results = at_once(3, work)
    assert not [result for result in results if isinstance(result, Exception)], results


def test_only_old_files_are_discarded(store, tmp_path):
    digest, size = store.put(source(tmp_path, b"abc"))
    path = store.path(digest, size)
    assert store.discard(path, before=time.time() - 60) == 0
    os.utime(path, (time.time() - 61,) * 2)
    assert store.discard(path, before=time.time() - 60) == 3
    assert store.discard(path, before=time.time() - 60) == 0
    assert files(store) == []


def test_a_put_makes_an_old_blob_young(store, tmp_path):
    digest, size = store.put(source(tmp_path, b"abc"))
    os.utime(store.path(digest, size), (1e9, 1e9))
    store.put(source(tmp_path, b"abc"))
    assert store.discard(store.path(digest, size), before=time.time() - 60) == 0


def test_a_put_that_meets_a_sweep_survives_it(store, tmp_path):
    path = source(tmp_path, b"abc")
    digest, size = store.put(path)
    os.utime(store.path(digest, size), (1e9, 1e9))
    putting = threading.Thread(target=store.put, args=(path,))
    with store.alone() as alone:
        assert alone
        putting.start()
        putting.join(0.3)  # the sweep has looked and is about to delete: the put comes right now
        assert putting.is_alive()
        assert store.discard(store.path(digest, size), before=time.time() - 60) == 3
    putting.join(10)
    assert store.path(digest, size).read_bytes() == b"abc"


def test_a_sweep_comes_neither_while_something_is_published_nor_beside_another(store, tmp_path):
    named = [store.put(source(tmp_path, content)) for content in (b"a", b"bc")]
    with store.keeping(named), store.keeping(named[:1]), store.alone() as alone:
        assert not alone
    with store.alone() as first, store.alone() as second:
        assert (first, second) == (True, False)
    store.path(*named[1]).unlink()
    with pytest.raises(BlobError, match="missing"), store.keeping(named):
        raise AssertionError("published what is not there")
    with store.alone() as alone:
        assert alone, "the lock was not given back"


def test_a_put_that_is_asked_to_stop_leaves_nothing(tmp_path):
    source, polls = tmp_path / "source", iter([None, None, InterruptedError("stop")])
    source.write_bytes(bytes(3 * 2**20))

    def poll() -> None:
        if (error := next(polls)) is not None:
            raise error

    with pytest.raises(InterruptedError):
        BlobStore(tmp_path / "blobs").put(source, poll=poll)
    assert [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()] == []
