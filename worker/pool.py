"""Celery's pool, whose locks no dead child keeps.

Over files Celery's parent and its child talk through two pipes, and each end is used under a semaphore that processes
share. A child that dies while it has one, as an idle one always has that of the messages it waits for, leaves it
taken: the next child would wait for ever, its worker look idle and healthy, and never take a job again. Over Redis
there are no such locks.
"""

from typing import Any

from billiard.pool import Pool
from celery.concurrency.prefork import TaskPool


class FreedPool(Pool):  # type: ignore[misc]
    """Before a child is started where none is left, both locks are free: the parent takes them only at its end."""

    def _create_worker_process(self, i: int) -> Any:
        if not self._pool:
            for lock in (self._inqueue._rlock, self._outqueue._wlock):
                lock.acquire(False)  # of a semaphore, which any process may release
                lock.release()
        return super()._create_worker_process(i)


class OneChildPool(TaskPool):  # type: ignore[misc]
    BlockingPool = FreedPool
