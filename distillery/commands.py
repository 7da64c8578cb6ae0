"""The commands that talk to a service."""

import argparse
import json
import sys
from collections.abc import Callable
from itertools import islice
from typing import Any

from distillery.client import Client
from distillery.errors import ApiError, ConnectionFailed, DistilleryError, JobFailed
from distillery.uploads import Uploads

DONE, FAILED, WRONG, REFUSED, UNREACHABLE = 0, 1, 2, 4, 5


def run(options: argparse.Namespace) -> int:
    """Run one command; its exit code. What goes wrong is one sentence on standard error."""
    try:
        with Client() as client:
            return COMMANDS[options.command](client, options)
    except ApiError as error:
        code = REFUSED
        message: Exception | str = error
    except ConnectionFailed as error:
        code = UNREACHABLE
        message = f"{error}\nIs the service running? `distillery serve` starts one; DISTILLERY_URL names another."
    except DistilleryError as error:
        code, message = FAILED, error
    except OSError as error:
        code, message = WRONG, error
    print(f"distillery: {message}", file=sys.stderr)
    return code


def _submit(client: Client, options: argparse.Namespace) -> int:
    job = client.submit(options.file, options.key)
    print(job["id"], flush=True)
    return _follow(client, job["id"]) if options.watch else DONE


def _watch(client: Client, options: argparse.Namespace) -> int:
    return _follow(client, options.job)


def _follow(client: Client, job_id: str) -> int:
    from distillery.watching import watch

    job = watch(client, job_id)
    if job["status"] != "succeeded":
        raise JobFailed(job)
    summary = (job.get("result") or {}).get("summary")
    print("\n".join(filter(None, [summary, f"`{sys.argv[0]} download {job_id}` fetches the student."])))
    return DONE


def _download(client: Client, options: argparse.Namespace) -> int:
    for path in client.download(options.job, options.out, options.names or None):
        print(path)
    return DONE


def _jobs(client: Client, options: argparse.Namespace) -> int:
    labels = dict(label.partition("=")[::2] for label in options.label)
    found = client.list(
        status=options.status, name=options.name, labels=labels, page_size=max(1, min(options.limit, 100))
    )
    for job in islice(found, options.limit):
        fraction = (job.get("progress") or {}).get("fraction")
        done = f"{fraction:4.0%}" if fraction is not None else "   -"
        print(f"{job['id']}  {job['created_at']}  {job['status']:<9}  {done}  {job['name']}")
    return DONE


def _plan(client: Client, options: argparse.Namespace) -> int:
    print(json.dumps(client.plan(options.file), indent=2))
    return DONE


def _show(client: Client, options: argparse.Namespace) -> int:
    uploads = _uploads(client, options.job)
    print(json.dumps(uploads.get(options.job) if uploads else client.get(options.job), indent=2))
    return DONE


def _uploads(client: Client, id: str) -> Uploads | None:
    """Where something with this id lies; None for a job."""
    return {"ds": client.datasets, "mdl": client.models}.get(id.partition("_")[0])


def _logs(client: Client, options: argparse.Namespace) -> int:
    sys.stdout.write(client.logs(options.job))
    return DONE


def _act(client: Client, options: argparse.Namespace) -> int:
    job = getattr(client, options.command)(options.job)
    asked = f", {job['request']} requested" if job.get("request") else ""
    print(f"{job['id']}  {job['status']}{asked}")
    return DONE


def _delete(client: Client, options: argparse.Namespace) -> int:
    (_uploads(client, options.job) or client).delete(options.job)
    print(f"{options.job}  deleted")
    return DONE


def _upload(client: Client, options: argparse.Namespace) -> int:
    uploads = client.datasets if options.kind == "dataset" else client.models
    said = dict(_option(text) for text in options.option)
    upload = uploads.upload(options.file, options.name, options=said, wait=not options.no_wait)
    print(f"{upload['id']}  {upload['name']}@{upload['version']}  {upload['status']}")
    return DONE


def _option(text: str) -> tuple[str, Any]:
    key, _, value = text.partition("=")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def _list_uploads(client: Client, options: argparse.Namespace) -> int:
    uploads: Uploads = getattr(client, options.command)
    found = uploads.list(status=options.status, name=options.name, page_size=max(1, min(options.limit, 100)))
    for each in islice(found, options.limit):
        line = f"{each['id']}  {each['created_at']}  {each['status']:<9}  {each['size']:>15,}"
        print(f"{line}  {each['name']}@{each['version']}")
    return DONE


COMMANDS: dict[str, Callable[[Client, argparse.Namespace], int]] = {
    "submit": _submit,
    "plan": _plan,
    "jobs": _jobs,
    "show": _show,
    "watch": _watch,
    "logs": _logs,
    "download": _download,
    "delete": _delete,
    "upload": _upload,
    **dict.fromkeys(("datasets", "models"), _list_uploads),
    **dict.fromkeys(("cancel", "pause", "resume", "retry"), _act),
}
