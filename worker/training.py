"""The training process: `python -m worker.training <pid of its supervisor>`.

It imports torch, waits for its assignment on standard input, runs that one attempt and ends. Whatever it
prints becomes the job's log.

Exit status:
    0  the attempt was ended in the database: succeeded, failed, released, or given up on request
    1  an error nobody expected; its traceback is printed, and the supervisor releases the attempt
    3  the attempt is no longer the job's
    4  the supervisor is gone
"""

import faulthandler
import os
import resource
import sys
import traceback
from pathlib import Path

from worker.lifeline import die_with_parent

EXIT_STALE = 3


def main() -> None:
    faulthandler.enable()
    die_with_parent(int(sys.argv[1]))  # first of all: importing torch takes seconds
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # an image of its memory would fill the disk, and hold the data
    from worker.wire import Inbox

    inbox = Inbox()
    import kdcore.environment  # noqa: F401 - before torch
    import worker.attempt  # torch and the whole of kdcore
    from storage.errors import StaleAttemptError

    if not inbox.waiting():
        _warm_up()
    fence = inbox.assignment()
    status = 1
    try:
        worker.attempt.run(fence, inbox)
        status = 0
    except StaleAttemptError as error:
        print(f"stopped: {error}")
        status = EXIT_STALE
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # the interpreter's own end takes a while with torch loaded


def _warm_up() -> None:
    """What a spare pays in advance: reading the smallest data set loads libraries that torch does not, and a process's
    first plan takes torch over a second."""
    from kdcore.data import Places
    from kdcore.plan import make_plan
    from kdcore.spec import parse_spec

    model = {"model": {"type": "mlp"}}
    spec = parse_spec({"data": {"type": "digits"}, "teachers": [model], "student": model})
    spec.data.load(Places(Path()))
    make_plan(spec)


if __name__ == "__main__":
    main()
