"""The Celery worker, run in this process: the parent, which never imports torch nor touches CUDA."""

import os
import sys
from typing import Any

import structlog
from celery import Celery, signals

from storage import schema
from storage.database import Database
from storage.errors import SchemaError
from storage.files import make_home
from storage.log import configure_logging
from storage.queue import make_celery, queue_name
from storage.settings import Settings
from storage.workers import WorkerCard
from worker.device import NoDeviceError, detect
from worker.identity import drain_flag, introduce
from worker.keeper import EXIT_SCHEMA, Keeper
from worker.pool import OneChildPool

log = structlog.get_logger(__name__)


def run(settings: Settings) -> int:
    """Work until SIGTERM or SIGINT; the exit status.

    A stopping worker lets training write a checkpoint and gives its job back to the queue, within
    `drain_seconds`. Child processes read the same settings from the environment.
    """
    configure_logging(settings)
    make_home(settings.home)
    try:
        _check_schema(settings)
        card = introduce(detect(settings.device))
    except (SchemaError, NoDeviceError) as error:
        print(f"distillery worker: {error}", file=sys.stderr)
        return EXIT_SCHEMA if isinstance(error, SchemaError) else 1
    structlog.contextvars.bind_contextvars(worker_id=card.id)
    log.info("worker_starting", device=card.device, device_name=card.device_name)
    drain_flag(settings, card.id).parent.mkdir(parents=True, exist_ok=True)
    keeper = Keeper(settings, card)
    worker = _make_worker(settings, card)
    _connect(keeper)
    try:
        worker.start()
    finally:
        keeper.stop()
    log.info("worker_stopped")
    if keeper.schema_changed:
        # Not by `return`: the alarm that bounds what Python tidies up (`Keeper.stop`) would say another status.
        os._exit(EXIT_SCHEMA)
    return int(worker.exitcode or 0)


def _check_schema(settings: Settings) -> None:
    database = Database(settings.database)
    try:
        schema.ensure(database)
    finally:
        database.close()


def _make_worker(settings: Settings, card: WorkerCard) -> Any:
    app: Celery = make_celery(settings)
    app.conf.imports = ["worker.tasks"]
    devices = ["auto", "cuda"] if card.device == "cuda" else ["auto"]
    return app.Worker(
        hostname=f"{card.id}@{card.hostname}",
        queues=[queue_name(settings, device) for device in devices],
        pool=OneChildPool,
        loglevel="WARNING",  # of what billiard prints itself; everything else is configured already
        without_gossip=True,
        without_mingle=True,
        quiet=True,
    )


def _connect(keeper: Keeper) -> None:
    """Celery's signals; it calls `worker_ready` again whenever it has found a lost broker again."""

    def on_ready(**_: Any) -> None:
        keeper.start()

    def on_shutting_down(**_: Any) -> None:
        keeper.drain()

    signals.worker_ready.connect(on_ready, weak=False)
    signals.worker_shutting_down.connect(on_shutting_down, weak=False)
