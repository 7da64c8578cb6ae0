"""A Celery child that dies, whatever lock it holds, is followed by one that works."""

import signal
import threading
from collections.abc import Callable
from typing import Any

import psutil
import pytest

from worker.pool import FreedPool

from .conftest import SPEC, Rig

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


def end(pool: FreedPool) -> None:
    """A child that is made while the pool is terminated hears nothing of it, and the pool would wait for ever."""
    pool.terminate()
    joining = threading.Thread(target=pool.join, daemon=True)
    joining.start()
    for _ in range(30):
        joining.join(1)
        if not joining.is_alive():
            return
        for child in list(pool._pool):
            child.terminate()
    raise AssertionError("the pool does not end")


def pid_of_child() -> int:
    return psutil.Process().pid


@pytest.mark.parametrize(
    "lock",
    [lambda pool: pool._inqueue._rlock, lambda pool: pool._outqueue._wlock],
    ids=["of messages", "of results"],
)
def test_a_lock_that_died_with_a_child_is_free_for_the_next(lock: Callable[[Any], Any]) -> None:
    pool = FreedPool(1)
    try:
        first = pool.apply_async(pid_of_child).get(timeout=60)
        lock(pool).acquire(False)
        psutil.Process(first).kill()
        assert pool.apply_async(pid_of_child).get(timeout=60) != first
    finally:
        end(pool)
