"""What a supervisor and its training process say to each other, as JSON lines on the process's standard input.

First the assignment, `{"job": …, "attempt": …}`, then requests as they come: `"cancel"`, `"pause"`, `"drain"`.
The end of the input means that the supervisor is gone: the process stops itself.
"""

import json
import os
import queue
import sys
import threading

from kdcore.reporter import Request
from storage.lifecycle import Fence
from worker.lifeline import EXIT_ORPHANED

STRENGTH: dict[Request | None, int] = {None: 0, "drain": 1, "pause": 2, "cancel": 3}
"""Which request counts of several: cancel outranks pause, and what a user asks outranks a worker's end."""


def assignment_line(fence: Fence) -> bytes:
    return json.dumps({"job": fence.job_id, "attempt": fence.attempt}).encode() + b"\n"


def request_line(request: Request) -> bytes:
    return json.dumps(request).encode() + b"\n"


class Inbox:
    """The training process's end: a thread reads, so that the loop only looks at `request`."""

    def __init__(self) -> None:
        self.request: Request | None = None
        self._assignment: queue.Queue[Fence] = queue.Queue(1)
        threading.Thread(target=self._read, name="inbox", daemon=True).start()

    def waiting(self) -> bool:
        """Whether a job has come."""
        return not self._assignment.empty()

    def assignment(self) -> Fence:
        """Waits for the job."""
        return self._assignment.get()

    def _read(self) -> None:
        first = sys.stdin.readline()
        if first:
            told = json.loads(first)
            self._assignment.put(Fence(told["job"], told["attempt"]))
        for line in sys.stdin:
            request: Request = json.loads(line)
            if STRENGTH[request] > STRENGTH[self.request]:
                self.request = request
        os._exit(EXIT_ORPHANED)
