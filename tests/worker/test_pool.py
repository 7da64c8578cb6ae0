"""A Celery child that dies, whatever lock it holds, is followed by one that works."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from worker.pool import FreedPool

from .conftest import SPEC, Rig, freeze

QUICK = SPEC | {"stages": [{"epochs": 1}], "teachers": [SPEC["teachers"][0] | {"train": {"epochs": 1}}]}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "terminated"])
def test_a_child_that_dies_idle_is_followed_by_one_that_takes_jobs(rig: Rig, number: int) -> None:
    """Over files it always waits with the lock of the messages in its hands."""
    worker = rig.start()
    first = rig.child(worker)
    rig.until(lambda: waits(first))
    first.send_signal(number)
    rig.until(lambda: not first.is_running() or first.status() == psutil.STATUS_ZOMBIE)
    rig.until_status(rig.submit(QUICK), "succeeded")
    assert rig.child(worker).pid != first.pid


def waits(process: psutil.Process) -> bool:
    """It does nothing, and did nothing for a moment."""
    before = process.cpu_times()
    return process.status() == psutil.STATUS_SLEEPING and process.cpu_percent(0.3) == 0.0 and before.user > 0.1


@contextlib.contextmanager
def pool_of_one() -> Iterator[FreedPool]:
    """Its end is bounded: a child made while the pool is terminated hears nothing of it, and is waited for."""
    pool = FreedPool(1)
    try:
        yield pool
    finally:
        end(pool)


def end(pool: FreedPool) -> None:
    ending = threading.Thread(target=lambda: (pool.terminate(), pool.join()), daemon=True)
    ending.start()
    for _ in range(30):
        ending.join(1)
        if not ending.is_alive():
            return
        for child in list(pool._pool):
            child.terminate()
        pool._inqueue._rlock.acquire(False)  # it died with the child, and terminate() waits for it
        pool._inqueue._rlock.release()
    raise AssertionError("the pool does not end")


def pid_of_child() -> int:
    return psutil.Process().pid


@pytest.mark.parametrize(
    "lock",
    [lambda pool: pool._inqueue._rlock, lambda pool: pool._outqueue._wlock],
    ids=["of messages", "of results"],
)
def test_a_lock_that_died_with_a_child_is_free_for_the_next(lock: Callable[[Any], Any]) -> None:
    with pool_of_one() as pool:
        first = pool.apply_async(pid_of_child).get(timeout=60)
        lock(pool).acquire(False)
        psutil.Process(first).kill()
        assert pool.apply_async(pid_of_child).get(timeout=60) != first


@pytest.mark.parametrize("taken", [4, 20, None], ids=["its head", "a part", "all of it"])
def test_a_message_that_a_dying_child_took_with_it_is_heard_by_the_next(taken: int | None) -> None:
    """A read that waits for the processor while the child is killed takes what came into the pipe in between."""
    with pool_of_one() as pool:
        first = psutil.Process(pool.apply_async(pid_of_child).get(timeout=60))
        freeze(first)
        answer = pool.apply_async(pid_of_child)
        reader = pool._inqueue._reader
        assert reader.poll(60)
        assert taken in (None, len(os.read(reader.fileno(), taken or 1 << 16)))
        assert reader.poll(0) is (taken is not None)
        first.kill()
        assert answer.get(timeout=60) != first.pid
        assert not pool._unheard()
