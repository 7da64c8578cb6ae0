"""A job's progress on the terminal: a bar where there is one, plain lines elsewhere."""

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from distillery.client import Client, Job

LINE_SECONDS, LINE_FRACTION = 2.0, 0.02
"""A plain line of progress comes at most so often, and only after so much more is done."""
QUIET = frozenset({"progress", "checkpoint", "epoch", "submitted"})


def watch(client: Client, job_id: str) -> Job:
    """Show a job's progress until it has ended or was paused; the job as it is then."""
    with _display() as display:
        for event in client.events(job_id):
            if event.type == "progress":
                display.progress(event.data)
            elif event.type not in QUIET:
                display.line(describe(event.type, event.data))
            if event.type == "paused" and client.get(job_id)["status"] == "paused":
                break
    return client.get(job_id)


def describe(type: str, data: Mapping[str, Any]) -> str:
    """An event as a line: its type, its small values, and what went wrong."""
    values = {name: value for name, value in data.items() if name not in ("at", "attempt", "error", "summary")}
    shown = [str(value) for value in values.values() if isinstance(value, str | int | float)]
    error = data.get("error")
    wrong = f"({error.get('code')}: {error.get('message')})" if isinstance(error, dict) else ""
    return " ".join(filter(None, [type.replace("_", " "), *shown, wrong]))


def describe_progress(progress: Mapping[str, Any]) -> str:
    """Where training is, in a few words."""
    rate = progress.get("samples_per_second") or 0.0
    return f"{progress.get('stage')} epoch {progress.get('epoch')}/{progress.get('epochs')}  {rate:,.0f} samples/s"


class Display(Protocol):
    """Where progress is shown."""

    def line(self, text: str) -> None:
        """A line that stays."""

    def progress(self, progress: Mapping[str, Any]) -> None:
        """Where training is now."""


class Lines:
    """Plain lines, progress among them now and then."""

    def __init__(self) -> None:
        self._time, self._fraction = 0.0, 0.0

    def line(self, text: str) -> None:
        print(text, flush=True)

    def progress(self, progress: Mapping[str, Any]) -> None:
        now, fraction = time.monotonic(), progress.get("fraction") or 0.0
        if now - self._time >= LINE_SECONDS and abs(fraction - self._fraction) >= LINE_FRACTION:
            self._time, self._fraction = now, fraction
            self.line(f"{fraction:6.1%}  {describe_progress(progress)}")


@contextlib.contextmanager
def _display() -> Iterator[Display]:
    if not sys.stdout.isatty():
        yield Lines()
        return
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    class Bar:
        def line(self, text: str) -> None:
            shown.console.print(text, markup=False, highlight=False)

        def progress(self, progress: Mapping[str, Any]) -> None:
            shown.update(task, completed=progress.get("fraction") or 0.0, words=describe_progress(progress))

    columns = (BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[words]}", markup=False))
    with Progress(*columns, transient=True) as shown:
        task = shown.add_task("", total=1.0, words="waiting")
        yield Bar()
