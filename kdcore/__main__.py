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
from typing import Any

from pydantic import ValidationError

import kdcore.environment  # noqa: F401 - before torch
from kdcore.checkpoint import saved_spec
from kdcore.choices import cpu_name
from kdcore.config import SpecError, dotted
from kdcore.data import DataError
from kdcore.document import DocumentError, read_document
from kdcore.errors import TrainingError
from kdcore.machine_speed import measure_machine
from kdcore.opening import choose_here
from kdcore.plan import make_plan
from kdcore.report import table
from kdcore.reporter import Interrupted, PrintReporter, Request, SavedCheckpoint
from kdcore.spec import FileWeights, JobSpec, parse_spec
from kdcore.student_choice import picks_by_latency
from kdcore.train import run
from kdcore.uploads import DatasetOptions, check_dataset


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
        uploads = dict(_named_file(given) for given in options.upload or [])
        document = _with_profile(options.spec.read_bytes(), uploads, options)
        if options.resume is not None:
            document = _as_begun(document, options.resume)
        speed = measure_machine(cpu_name()) if picks_by_latency(document) else None
        spec = parse_spec(document, speed)
    except (DocumentError, DataError, OSError) as error:
        print(f"{options.spec}: {error}", file=sys.stderr)
        return 2
    except SpecError as error:
        return _bad_spec(options.spec, error)
    except TrainingError as error:
        return _failed(error)
    if speed is not None and (choice := make_plan(spec, speed).student_choice) is not None:
        print(f"the student is of {choice.family}: {choice.reason}", file=sys.stderr)
    try:
        cache = options.cache or (options.out / "prepared" if uploads else None)
        choices = None if options.resume and options.device is None else choose_here(spec, options.device, cache)
        result = run(
            spec,
            data_root=options.data,
            out=options.out,
            reporter=reporter,
            choices=choices,
            resume=options.resume,
            teacher_weights=_given(spec, options.teacher_weights or []),
            student_weights=options.student_weights,
            download=not options.no_download,
            uploads=uploads,
            cache=cache,
        )
    except SpecError as error:
        return _bad_spec(options.spec, error)
    except TrainingError as error:
        _say_how_to_go_on(reporter)
        return _failed(error)
    except Interrupted:
        _say_how_to_go_on(reporter)
        return 130
    print(table(result))
    print(f"\n{result['summary']}\n\nThe student is in {options.out}; {options.out / 'README.md'} says how to run it.")
    return 0


def _as_begun(document: Any, checkpoint: Path) -> Any:
    """With the model that was picked by its latency when the job began: now another one may seem to fit."""
    begun = saved_spec(checkpoint) if picks_by_latency(document) else None
    if not isinstance(begun, dict):
        return document
    return {**document, "student": {**document["student"], "model": begun["student"]["model"]}}


def _failed(error: TrainingError) -> int:
    print(f"failed ({error.code}): {error.message}", file=sys.stderr)
    return 1


def _bad_spec(path: Path, error: SpecError) -> int:
    for loc, message in error.errors:
        print(f"{path}: {dotted(loc)}: {message}", file=sys.stderr)
    return 2


def _say_how_to_go_on(reporter: TerminalReporter) -> None:
    if reporter.last is not None:
        print(f"go on from the last checkpoint with --resume {reporter.last}", file=sys.stderr)


def _given(spec: JobSpec, files: list[Path]) -> dict[int, Path]:
    """The files by the place of the teacher that each is for."""
    weights = [teacher.weights for teacher in spec.teachers]
    wanting = [index for index, each in enumerate(weights) if each is not None and not isinstance(each, FileWeights)]
    return dict(zip(wanting, files, strict=False))


def _named_file(given: str) -> tuple[str, Path]:
    name, _, path = given.partition("=")
    return name, Path(path)


def _with_profile(text: bytes, uploads: dict[str, Path], options: argparse.Namespace) -> Any:
    """The spec's document; data that is `upload` is checked here, as the service would have done."""
    document: Any = read_document(text)
    data: Any = document.get("data") if isinstance(document, dict) else None
    path = uploads.get(data.get("dataset", "")) if isinstance(data, dict) and data.get("type") == "upload" else None
    if path is None:
        return document
    how = DatasetOptions()
    if options.upload_options is not None:
        try:
            how = DatasetOptions.model_validate(read_document(options.upload_options.read_bytes()))
        except ValidationError as error:
            raise SpecError([(("upload_options", *each["loc"]), each["msg"]) for each in error.errors()]) from None
    profile = check_dataset(path, how, out=options.out / "data")
    for warning in profile.warnings:
        print(f"{path}: {warning}", file=sys.stderr)
    return {**document, "data": {**data, "profile": profile.model_dump(mode="json")}}


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
        help="for a teacher whose weights are another job's or uploaded; once for each, in order",
    )
    parser.add_argument(
        "--student-weights", type=Path, help="for a student that begins with the weights of another job's student"
    )
    parser.add_argument(
        "--upload",
        action="append",
        metavar="NAME=FILE",
        help="the file of `data: {type: upload, dataset: NAME}`, such as flowers@1=flowers.zip; it is checked first",
    )
    parser.add_argument("--upload-options", type=Path, metavar="FILE", help="how that is to be read, as YAML or JSON")
    parser.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="where trained teachers, and what teachers say, are kept for the next job; left out: nowhere, but with"
        " --upload in the folder `prepared` of --out",
    )
    parser.add_argument("--no-download", action="store_true", help="fail where data is missing")
    return parser


if __name__ == "__main__":
    sys.exit(main())
