"""Prepared data: complete or absent, made once, the oldest taken away, and never what is in use."""

import fcntl
import os
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from kdcore.reporter import Interrupted
from kdcore.uploads import cache
from kdcore.uploads.cache import WAIT_SECONDS, cached, discard, hold


def maker(calls: list[str], size: int = 1000) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        calls.append(folder.name)
        (folder / "data").write_bytes(bytes(size))

    return make


def test_made_once_and_read_again(tmp_path: Path) -> None:
    calls: list[str] = []
    folder, lock = cached(tmp_path, "a", maker(calls), 10**6)
    lock.close()
    again, lock = cached(tmp_path, "a", maker(calls), 10**6)
    lock.close()
    assert (again / "data").stat().st_size == 1000
    assert (folder, len(calls)) == (again, 1)


def test_what_fails_in_the_midst_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_bytes(b"x")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        cached(tmp_path, "a", fail, 10**6)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
    assert cached(tmp_path, "a", maker([]), 10**6)[0].is_dir()


def test_the_oldest_goes_first_and_what_is_used_stays(tmp_path: Path) -> None:
    locks = {}
    for age, name in enumerate(("used", "old", "young")):
        folder, locks[name] = cached(tmp_path, name, maker([]), 10**6)
        os.utime(folder, (age, age))
    (tmp_path / "crashed.part").mkdir()
    locks["old"].close()
    locks["young"].close()
    _, lock = cached(tmp_path, "new", maker([]), 3500)
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"used", "young", "new"}
    lock.close()
    locks["used"].close()
    cached(tmp_path, "newest", maker([]), 0)[1].close()
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"newest"}


def test_a_folder_that_goes_while_it_is_weighed_hurts_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_bytes(b"x" * 100)
    weighed = cache._used

    def slow(folder: Path) -> float:
        if folder.name == "a":
            shutil.rmtree(folder, ignore_errors=True)
        return weighed(folder)

    monkeypatch.setattr(cache, "_used", slow)
    cache.evict(tmp_path, 1000)
    assert (tmp_path / "b").exists()


def test_whoever_waits_for_a_lock_polls_and_may_give_up(tmp_path: Path) -> None:
    polls: list[float] = []

    def poll() -> None:
        polls.append(time.monotonic())
        if len(polls) > 3:
            raise Interrupted("cancel")

    with closing(hold(tmp_path, "a", alone=True, poll=lambda: None)):
        for wait in (
            lambda: hold(tmp_path, "a", alone=True, poll=poll),
            lambda: cached(tmp_path, "a", maker([]), 10**6, poll),
        ):
            polls.clear()
            with pytest.raises(Interrupted):
                wait()
            assert len(polls) == 4
    hold(tmp_path, "a", alone=True, poll=lambda: None).close()


def test_a_folder_that_was_made_anew_meanwhile_is_not_taken_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever takes it away has opened a lock, and another one lies there by the time that he holds it."""
    cached(tmp_path, "a", lambda folder: None, 0)[1].close()
    lock = tmp_path / "a.lock"
    flock, kept = fcntl.flock, list[Any]()

    def late(file: Any, kind: int) -> None:
        if not kept:
            kept.append(None)
            assert discard(tmp_path, "a")  # another one is faster
            kept.append(cached(tmp_path, "a", lambda folder: None, 10))  # and a third one makes it anew
        flock(file, kind)

    monkeypatch.setattr("kdcore.uploads.cache.fcntl.flock", late)
    assert lock.exists()
    assert not discard(tmp_path, "a")
    assert (tmp_path / "a").is_dir()


def test_a_lock_that_an_eviction_took_away_is_none(tmp_path: Path) -> None:
    """Who waited for it waits for the new one, which somebody else may have by then."""
    first = hold(tmp_path, "a", alone=True, poll=lambda: None)
    waiting, taken = threading.Event(), threading.Event()

    def wait() -> None:
        with closing(hold(tmp_path, "a", alone=True, poll=waiting.set)):
            taken.set()

    waiter = threading.Thread(target=wait)
    waiter.start()
    assert waiting.wait(10)
    (tmp_path / "a.lock").unlink()  # as an eviction does
    second = hold(tmp_path, "a", alone=True, poll=lambda: None)
    first.close()
    assert not taken.wait(5 * WAIT_SECONDS)
    second.close()
    assert taken.wait(10)
    waiter.join()
