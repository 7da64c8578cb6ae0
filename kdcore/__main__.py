"""`python -m kdcore job.yaml --out DIR`: a job without the service.

Exit codes: 0 the student is there; 1 the job failed; 2 the spec or the command line is wrong;
130 interrupted by Ctrl-C, with a checkpoint to go on from.
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from kdcore.config import SpecError, dotted
from kdcore.document import DocumentError
from kdcore.errors import TrainingError
from kdcore.opening import choose_here
from kdcore.report import table
from kdcore.reporter import Interrupted, PrintReporter, Request, SavedCheckpoint
from kdcore.spec import JobSpec, JobWeights, parse_spec
from kdcore.train import run


class TerminalReporter(PrintReporter):
    """Prints, remembers the last checkpoint, and pauses on the first Ctrl-C."""

    def __init__(self) -> None:
        super().__init__()
        self.last: Path | None = None
        self._request: Request | None = None

    def interrupt(self, *_: object) -> None:
        self._request = "pause"
        signal.signal(signal.SIGINT, signal.default_int_handler)  # the second one ends it at once

    def requested(self) -> Request | None:
        return self._request

    def checkpoint(self, saved: SavedCheckpoint) -> None:
        self.last = saved.path


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = _parser().parse_args(arguments)
    reporter = TerminalReporter()
    signal.signal(signal.SIGINT, reporter.interrupt)
    try:
        spec = parse_spec(options.spec.read_bytes())
    except (DocumentError, OSError) as error:
        print(f"{options.spec}: {error}", file=sys.stderr)
        return 2
    except SpecError as error:
        return _bad_spec(options.spec, error)
    try:
        choices = None if options.resume and options.device is None else choose_here(spec, options.device)
        result = run(
            spec,
            data_root=options.data,
            out=options.out,
            reporter=reporter,
            choices=choices,
            resume=options.resume,
            teacher_weights=_given(spec, options.teacher_weights or []),
            download=not options.no_download,
        )
    except SpecError as error:
        return _bad_spec(options.spec, error)
    except TrainingError as error:
        print(f"failed ({error.code}): {error.message}", file=sys.stderr)
        _say_how_to_go_on(reporter)
        return 1
    except Interrupted:
        _say_how_to_go_on(reporter)
        return 130
    print(table(result))
    print(f"\n{result['summary']}\n\nThe student is in {options.out}; {options.out / 'README.md'} says how to run it.")
    return 0


def _bad_spec(path: Path, error: SpecError) -> int:
    for loc, message in error.errors:
        print(f"{path}: {dotted(loc)}: {message}", file=sys.stderr)
    return 2


def _say_how_to_go_on(reporter: TerminalReporter) -> None:
    if reporter.last is not None:
        print(f"go on from the last checkpoint with --resume {reporter.last}", file=sys.stderr)


def _given(spec: JobSpec, files: list[Path]) -> dict[int, Path]:
    """The files by the place of the teacher that each is for."""
    wanting = [index for index, teacher in enumerate(spec.teachers) if isinstance(teacher.weights, JobWeights)]
    return dict(zip(wanting, files, strict=False))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m kdcore", description="Train a student by distillation.")
    parser.add_argument("spec", type=Path, help="the job, as YAML or JSON")
    parser.add_argument("--out", type=Path, required=True, help="where the student goes")
    parser.add_argument(
        "--data",
        type=Path,
        default=Path(os.environ.get("DISTILLERY_DATA", "data")),
        help="the data directory (default: $DISTILLERY_DATA, or ./data)",
    )
    parser.add_argument("--resume", type=Path, help="go on from a checkpoint of this job")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), help="instead of the spec's")
    parser.add_argument(
        "--teacher-weights",
        type=Path,
        action="append",
        help="for a teacher whose weights are another job's; once for each, in order",
    )
    parser.add_argument("--no-download", action="store_true", help="fail where data is missing")
    return parser


if __name__ == "__main__":
    sys.exit(main())
