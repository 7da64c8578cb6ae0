"""The `distillery` command. Everything heavy is imported by the command that needs it."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

EPILOG = """\
environment:
  DISTILLERY_URL      the service that the client commands talk to (default http://127.0.0.1:8000)
  DISTILLERY_API_KEY  the key for it
  DISTILLERY_*        the service's own settings: docs/settings.md

exit codes:
  0    done
  1    the job did not succeed, the service could not run, or the doctor found something
  2    the command line, the settings or a file is wrong
  3    the database's schema is not this version's
  4    the service refused the request
  5    the service cannot be reached
  130  interrupted
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    try:
        if options.command in SERVICE_COMMANDS:
            from distillery import service

            return service.run(options)
        from distillery import commands

        return commands.run(options)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone: nothing to say, and nobody to say it to
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="distillery",
        description="Turn a large PyTorch model into a small one.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_service_commands(found)
    _add_client_commands(found)
    return parser


Commands = argparse._SubParsersAction
SERVICE_COMMANDS = ("serve", "api", "worker", "migrate", "calibrate", "doctor")


def _add_service_commands(found: "Commands[argparse.ArgumentParser]") -> None:
    serve = found.add_parser("serve", help="run the whole service here: API and one worker, no server to install")
    serve.add_argument("--home", type=Path, help="folder of all it keeps (default: $DISTILLERY_HOME, or .distillery)")
    serve.add_argument("--host", help="address to bind to (default: $DISTILLERY_HOST, or 127.0.0.1)")
    serve.add_argument("--port", type=int, help="0 picks a free one (default: $DISTILLERY_PORT, or 8000)")
    for name, help in (("api", "run the API"), ("worker", "run one worker")):
        command = found.add_parser(name, help=f"{help}; settings come from the environment")
        command.add_argument("--leash", help=argparse.SUPPRESS)
    found.add_parser("migrate", help="bring the database's schema to this version")
    calibrate = found.add_parser(
        "calibrate", help="measure how fast this machine is, for `max_latency_ms`; where a worker runs"
    )
    calibrate.add_argument("--home", type=Path, help="as of `serve`")
    doctor = found.add_parser("doctor", help="say what is wrong with this deployment; exit code 0 where nothing is")
    doctor.add_argument("--home", type=Path, help="as of `serve`")
    doctor.add_argument("--json", action="store_true", help="for programs")


def _add_client_commands(found: "Commands[argparse.ArgumentParser]") -> None:
    about = {"submit": "submit a job", "plan": "say what a job would be, and store nothing"}
    for name, help in about.items():
        command = found.add_parser(name, help=help)
        command.add_argument("file", type=Path, help="the spec, as YAML or JSON")
        if name == "submit":
            command.add_argument("--watch", action="store_true", help="follow it until it ends")
            command.add_argument("--key", help="idempotency key: the same key and spec give the same job")
    jobs = found.add_parser("jobs", help="list jobs, newest first")
    jobs.add_argument("--status", choices=("queued", "running", "paused", "succeeded", "failed", "cancelled"))
    jobs.add_argument("--name")
    jobs.add_argument("--label", action="append", default=[], metavar="KEY=VALUE")
    jobs.add_argument("--limit", type=int, default=20, help="how many (default: 20)")
    _add_upload_commands(found)
    about = {
        "show": "print a job, dataset or model as JSON",
        "watch": "follow a job until it ends",
        "logs": "print what a job's training printed",
        "cancel": "end a job",
        "pause": "stop a job with a checkpoint",
        "resume": "let a paused job go on",
        "retry": "queue a failed or cancelled job again",
        "delete": "delete a job that has ended, or a dataset or model, and its files",
        "download": "download a job's files, checked against their digests",
    }
    for name, help in about.items():
        command = found.add_parser(name, help=help)
        id = "job_…, ds_… or mdl_…" if name in ("show", "delete") else "job_…"
        command.add_argument("job", metavar="id", help=f"the id: {id}")
        if name == "download":
            command.add_argument("names", nargs="*", help="which files (default: all)")
            command.add_argument("--out", type=Path, default=Path("student"), help="folder (default: student)")


def _add_upload_commands(found: "Commands[argparse.ArgumentParser]") -> None:
    upload = found.add_parser("upload", help="upload a dataset or a model; goes on where it was cut")
    upload.add_argument("kind", choices=("dataset", "model"))
    upload.add_argument("file", type=Path)
    upload.add_argument("--name", help="a new version of it is made (default: the file's name without its ending)")
    upload.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="what is known of the file, the value as JSON or text: --option 'labels=[\"species\"]'",
    )
    upload.add_argument("--no-wait", action="store_true", help="do not wait until it is checked")
    for many in ("datasets", "models"):
        command = found.add_parser(many, help=f"list {many}, newest first")
        command.add_argument("--status", choices=("uploading", "checking", "ready", "failed"))
        command.add_argument("--name")
        command.add_argument("--limit", type=int, default=20, help="how many (default: 20)")
