"""A child process that ends when its launcher does, however that ends."""

import ctypes
import os
import signal
import sys
import threading
import time

PR_SET_PDEATHSIG = 1


def hold(leash: str) -> None:
    """Make this process follow whoever holds the other end of a pipe.

    Its end of file means that the launcher is gone: SIGTERM, as from the launcher, and SIGKILL for the
    whole group some time after. On Linux the kernel's parent-death signal says it as well.

    Args:
        leash: `<descriptor of the pipe>:<seconds between SIGTERM and SIGKILL>`.
    """
    descriptor, _, grace = leash.partition(":")
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    os.set_inheritable(int(descriptor), False)
    threading.Thread(target=_wait, args=(int(descriptor), float(grace)), name="leash", daemon=True).start()


def _wait(descriptor: int, grace: float) -> None:
    while os.read(descriptor, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace)
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)
