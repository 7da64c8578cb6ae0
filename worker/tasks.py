"""What Celery's child runs: the doorbell, and the slot behind the door."""

import logging
from typing import Any

import structlog
from celery import shared_task
from celery.signals import setup_logging, worker_process_init, worker_process_shutdown

from storage.log import configure_logging
from storage.queue import TASK
from storage.settings import Settings
from worker.identity import whose
from worker.slot import Slot

_slot: Slot | None = None  # of this process


@setup_logging.connect  # type: ignore[untyped-decorator]
def _configure_logging(**_: Any) -> None:
    configure_logging(Settings())
    logging.getLogger("celery.app.trace").setLevel(logging.WARNING)  # a line for every doorbell


@worker_process_init.connect  # type: ignore[untyped-decorator]
def _open_slot(**_: Any) -> None:
    global _slot
    card = whose()
    structlog.contextvars.bind_contextvars(worker_id=card.id)
    _slot = Slot(Settings(), card)
    _slot.open()


@worker_process_shutdown.connect  # type: ignore[untyped-decorator]
def _close_slot(**_: Any) -> None:
    if _slot is not None:
        _slot.close()


@shared_task(name=TASK)  # type: ignore[untyped-decorator]
def doorbell() -> None:
    """There may be work."""
    assert _slot is not None
    _slot.work()
