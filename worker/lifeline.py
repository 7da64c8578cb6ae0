"""No process of a worker outlives the one that started it."""

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable

EXIT_ORPHANED = 4
"""Exit status of a process that stopped itself because its parent is gone."""
WATCH_SECONDS = 0.25
_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Ask Linux to kill this process when the thread that started it ends.

    Elsewhere there is no such signal: what reads from the parent's pipe must stop at its end.
    """
    _set_death_signal(signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(EXIT_ORPHANED)


def watch_parent(parent: int, on_gone: Callable[[], None]) -> None:
    """Call `on_gone` in a thread, once, when the parent process is gone; no death signal any more.

    Celery has its children killed when the *thread* that started them ends. A child that replaces a dead
    one is started by a thread which ends first of all at shutdown, and would take its job with it.
    """
    _set_death_signal(0)
    threading.Thread(target=_watch, args=(parent, on_gone), name="watch-parent", daemon=True).start()


def _watch(parent: int, on_gone: Callable[[], None]) -> None:
    pause = threading.Event()
    while os.getppid() == parent:
        pause.wait(WATCH_SECONDS)
    on_gone()


def _set_death_signal(number: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
