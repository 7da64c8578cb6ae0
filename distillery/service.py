"""The commands that run the service. The house is imported here, lazily, so that the client never needs it."""

import argparse
import json
import os
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from distillery.leash import hold

if TYPE_CHECKING:
    from storage.settings import Settings

DONE, FAILED, WRONG, SCHEMA = 0, 1, 2, 3
OURS = ("api", "distillery", "kdcore", "migrations", "storage", "worker")


def run(options: argparse.Namespace) -> int:
    """Run one command; its exit code. What goes wrong is a sentence on standard error, never a traceback."""
    if getattr(options, "leash", None) is not None:
        hold(options.leash)
    os.umask(0o077)  # what the service keeps is for its own user alone
    for name in ("home", "host", "port"):
        if getattr(options, name, None) is not None:
            os.environ[f"DISTILLERY_{name.upper()}"] = str(getattr(options, name))
    try:
        settings = read_settings()
        if settings is None:
            return WRONG
        if options.command == "doctor":
            return _doctor(settings, options.json)
        return _guarded(COMMANDS[options.command], settings)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] in OURS:
            raise
        needed = "server" if options.command in ("migrate", "doctor") else "server,train"
        extra = f"pip install 'distillery[{needed}]'"
        print(f"distillery {options.command} needs {error.name}, which is not installed: {extra}", file=sys.stderr)
        return WRONG


def read_settings(**values: Any) -> "Settings | None":
    """The environment's settings but for `values`; None, and a sentence for each bad one, where they are wrong."""
    from pydantic import ValidationError
    from pydantic_settings import SettingsError

    from storage.settings import Settings

    try:
        return Settings(**values)
    except SettingsError as error:
        print(f"distillery: a setting is not the JSON it should be: {error}", file=sys.stderr)
    except ValidationError as error:
        for fault in error.errors(include_url=False, include_input=False):
            where = "".join(f"[{part}]" if index else str(part) for index, part in enumerate(fault["loc"]))
            name = f"DISTILLERY_{where.upper()}: " if where else ""
            print(f"distillery: {name}{fault['msg'].removeprefix('Value error, ')}", file=sys.stderr)
    return None


def _guarded(command: "Callable[[Settings], int]", settings: "Settings") -> int:
    from sqlalchemy.exc import OperationalError

    from storage.errors import SchemaError

    try:
        return command(settings)
    except SchemaError as error:
        print(f"distillery: {error}", file=sys.stderr)
        return SCHEMA
    except OperationalError as error:
        print(f"distillery: the database does not answer: {error.orig}", file=sys.stderr)
        return FAILED


def _serve(settings: "Settings") -> int:
    from distillery.serve import serve

    return serve(settings)


def _api(settings: "Settings") -> int:
    from api.server import serve

    serve(settings)
    return DONE


def _worker(settings: "Settings") -> int:
    from worker.main import run

    if find_spec("torch") is None:  # only the training process imports it: jobs would fail, not the worker
        raise ModuleNotFoundError("torch", name="torch")

    return run(settings) or DONE


def _calibrate(settings: "Settings") -> int:
    from worker.calibrating import calibrate
    from worker.device import NoDeviceError

    try:
        speed = calibrate(settings)
    except NoDeviceError as error:
        print(f"distillery: {error}", file=sys.stderr)
        return FAILED
    print(f"{speed.cpu}: {speed.call * 1e6:.1f} us a call, {speed.gflops():.0f} GFLOP/s in convolutions of one thread")
    return DONE


def _migrate(settings: "Settings") -> int:
    from storage import schema
    from storage.database import Database

    database = Database(settings.database)
    try:
        before = schema.current(database)
        schema.migrate(database)
        print(f"schema: {before or 'empty'} -> {schema.current(database)}")
    finally:
        database.close()
    return DONE


def _doctor(settings: "Settings", as_json: bool) -> int:
    """Print what is wrong; asks the deployment's parts themselves, so that no API need run."""
    from storage.diagnosis import Diagnosis

    found = Diagnosis(settings).findings()
    if as_json:
        print(json.dumps([vars(finding) | {"severity": finding.severity} for finding in found], indent=2))
        return FAILED if found else DONE
    for finding in found:
        print(f"{finding.severity} ({finding.code}): {finding.message}")
        for line in finding.about:
            print(f"  {line}")
    if not found:
        print("Nothing is wrong: database, schema, broker, workers, queue, clocks and disk are as they should be.")
    return FAILED if found else DONE


COMMANDS: "dict[str, Callable[[Settings], int]]" = {
    "serve": _serve,
    "api": _api,
    "worker": _worker,
    "migrate": _migrate,
    "calibrate": _calibrate,
}
