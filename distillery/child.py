"""One process of the embedded service."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from typing import Any

RESTARTS, RESTARTS_SECONDS = 5, 60.0
HOPELESS = (2, 3)
"""Exit codes of `distillery api` and `worker` that a restart cannot mend: settings, schema."""


class Child:
    """One process of the service, in a process group of its own, started again when it dies."""

    def __init__(self, name: str, arguments: list[str], options: dict[str, Any]) -> None:
        self.name = name
        self._arguments, self._options = arguments, options
        self._deaths: list[float] = []
        self.start_at: float | None = None
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self._arguments, stdin=subprocess.DEVNULL, process_group=0, **self._options)

    def tend(self) -> str | None:
        """Start it again if it died; what to say once that is no use any more."""
        now = time.monotonic()
        if self.start_at is not None:
            if now >= self.start_at:
                self.start_at, self.process = None, self._start()
            return None
        code = self.process.poll()
        if code is None:
            return None
        self.signal(signal.SIGKILL)  # what it left of its group
        self._deaths = [*(at for at in self._deaths if now - at < RESTARTS_SECONDS), now]
        if code in HOPELESS or len(self._deaths) > RESTARTS:
            return f"the {self.name} process ended with {code}"
        print(f"the {self.name} process ended with {code}; starting it again", file=sys.stderr)
        self.start_at = now + 0.25 * 2 ** len(self._deaths)
        return None

    def signal(self, number: int) -> None:
        """Send a signal: SIGKILL to the whole group, others to the process, which tells its own."""
        with contextlib.suppress(ProcessLookupError):
            if number == signal.SIGKILL:
                os.killpg(self.process.pid, number)
            else:
                self.process.send_signal(number)

    def end(self, deadline: float) -> None:
        """Wait for it until the deadline, then kill what is left."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(max(0.0, deadline - time.monotonic()))
        self.signal(signal.SIGKILL)
        self.process.wait()
