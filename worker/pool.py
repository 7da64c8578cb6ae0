"""Celery's pool, of whose locks and messages a dead child keeps none.

Over files Celery's parent and its child talk through two pipes, and each end is used under a semaphore that processes
share. A child that dies while it has one, as an idle one always has that of the messages it waits for, leaves it
taken: the next child would wait for ever, its worker look idle and healthy, and never take a job again. So it would
where a child that is being killed, and has not had the processor since, still takes a message out of the pipe: the
parent hands out no other before that one is heard. Over Redis there are no such locks and no such pipe.
"""

import os
from collections.abc import Callable
from typing import Any

from billiard.pool import Pool
from celery.concurrency.prefork import TaskPool


class FreedPool(Pool):  # type: ignore[misc]
    """Before a child is started where none is left, both locks are free: the parent takes them only at its end. What
    no child has said to have heard is in the pipe again, and is heard twice where it is sent at that very moment, or a
    child said so as it died: a doorbell may ring twice.
    """

    def _setup_queues(self) -> None:
        super()._setup_queues()
        self._sent: list[Any] = []
        send: Callable[[Any], None] = self._inqueue._writer.send

        def remember(message: Any) -> None:
            self._sent = [*self._unheard(), message]
            send(message)

        self._send, self._quick_put = send, remember

    def _unheard(self) -> list[Any]:
        """Of what was sent: ``(TASK, (number of the job, ...))``, or None to end a child."""
        waiting = {number for number, job in list(self._cache.items()) if not job.accepted()}
        return [message for message in self._sent if message is not None and message[1][0] in waiting]

    def _create_worker_process(self, i: int) -> Any:
        if not self._pool:
            while self._inqueue._reader.poll(0):  # also what is left of a message that was read by half
                os.read(self._inqueue._reader.fileno(), 65536)
            for lock in (self._inqueue._rlock, self._outqueue._wlock):  # not before: who ends the pool waits for one
                lock.acquire(False)  # of a semaphore, which any process may release
                lock.release()
            for message in self._unheard():  # one or two of a kilobyte, which the pipe holds until the child reads
                self._send(message)
        return super()._create_worker_process(i)


class OneChildPool(TaskPool):  # type: ignore[misc]
    BlockingPool = FreedPool
