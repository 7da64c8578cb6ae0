"""A training process as its supervisor holds it: a process group of its own, fed by a pipe, its output kept."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil

from kdcore.reporter import Request
from storage.lifecycle import Fence
from worker.logfile import BoundedLog
from worker.wire import assignment_line, request_line

_LOG_SECONDS = 2.0


class TrainingProcess:
    """Started idle: it imports torch and waits for `assign`.

    Only the main thread of the Celery child may start one: it is killed when the thread that started it ends.
    """

    def __init__(self) -> None:
        self._popen = subprocess.Popen(
            [sys.executable, "-u", "-m", "worker.training", str(os.getpid())],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        self._log: BoundedLog | None = None
        self._logger: threading.Thread | None = None

    @property
    def pid(self) -> int:
        return self._popen.pid

    def alive(self) -> bool:
        return self._popen.poll() is None

    def assign(self, fence: Fence, log: Path, max_log_bytes: int) -> None:
        """Give it its job; what it prints, and has printed, goes into `log`."""
        self._log = BoundedLog(log, max_log_bytes)
        self._logger = threading.Thread(target=self._copy_output, args=(self._log,), name="log", daemon=True)
        self._logger.start()
        self._send(assignment_line(fence))

    def ask(self, request: Request) -> None:
        """Relay a request."""
        self._send(request_line(request))

    def _send(self, line: bytes) -> None:
        assert self._popen.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended: `wait` tells
            self._popen.stdin.write(line)
            self._popen.stdin.flush()

    def _copy_output(self, log: BoundedLog) -> None:
        """In a thread that alone closes what it uses: somebody who left the group may hold the pipe for longer."""
        assert self._popen.stdout is not None
        with self._popen.stdout as pipe, contextlib.closing(log):
            while data := os.read(pipe.fileno(), 65536):
                with contextlib.suppress(OSError):  # a full disk must not block training
                    log.write(data)

    def wait(self, seconds: float) -> int | None:
        """Its exit status, negative for a signal, once it has ended; None after `seconds`."""
        try:
            return self._popen.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def memory_bytes(self) -> int:
        """Resident memory of the process and its descendants."""
        total = 0
        with contextlib.suppress(psutil.Error):
            root = psutil.Process(self.pid)
            for process in [root, *root.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    total += process.memory_info().rss
        return total

    def kill(self) -> None:
        """End the whole group at once and reap it; also sweeps up after a process that ended by itself."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self._popen.wait()
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        with contextlib.suppress(OSError):
            self._popen.stdin.close()
        if self._logger is None:
            self._popen.stdout.close()
        else:
            self._logger.join(_LOG_SECONDS)

    def last_line(self) -> str:
        """The last line it printed."""
        return self._log.last_line() if self._log is not None else ""
