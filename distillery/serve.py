"""`distillery serve`: the embedded service, until it is told to end."""

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from distillery.embedded import Embedded
from distillery.home import ServeError

if TYPE_CHECKING:
    from storage.settings import Settings


def serve(settings: "Settings") -> int:
    """Run the embedded service until SIGINT or SIGTERM; a second one ends it at once."""
    service = Embedded(settings)

    def asked(*_: object) -> None:
        if service.over.is_set():
            service.kill()
        service.over.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, asked)
    try:
        service.start()
        print(greeting(service.url, settings.home), flush=True)
        service.over.wait()
    except ServeError as error:
        service.broken = str(error)
    finally:
        service.stop()
    if service.broken is not None:
        print(f"distillery serve: {service.broken}", file=sys.stderr)
        return 1
    return 0


def greeting(url: str, home: Path) -> str:
    command = own_command()
    prefix = "" if url.endswith(("127.0.0.1:8000", "localhost:8000")) else f"DISTILLERY_URL={url} "
    return (
        f"Distillery answers at {url} (documentation: {url}/docs); it keeps everything in {home}.\n"
        f"Submit a job from another terminal:\n"
        f"  {prefix}{command} submit examples/digits-mlp.yaml --watch\n"
        f"Ctrl-C ends it."
    )


def own_command() -> str:
    """The `distillery` command as it can be pasted here."""
    command = Path(sys.executable).parent / "distillery"
    if not command.exists():
        return f"{sys.executable} -m distillery"
    relative = os.path.relpath(command)
    return relative if len(relative) < len(str(command)) else str(command)
