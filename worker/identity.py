"""Who this worker is: told once by its parent process, read by all its children."""

import json
import os
import socket
from collections.abc import MutableMapping
from importlib.metadata import version
from pathlib import Path

from kdcore.config import SPEC_VERSION
from storage.ids import new_id
from storage.settings import DRAINING, Settings
from storage.workers import WorkerCard
from worker.device import Device

VARIABLE = "DISTILLERY_WORKER_CARD"


def introduce(device: Device, environment: MutableMapping[str, str] = os.environ) -> WorkerCard:
    """Make this process a worker: its card goes into the environment that its children inherit."""
    card = WorkerCard(
        id=new_id("wrk"),
        hostname=socket.gethostname(),
        pid=os.getpid(),
        device=device.type,
        device_name=device.name,
        memory_bytes=device.memory_bytes,
        version=version("distillery"),
        spec_version=SPEC_VERSION,
    )
    environment[VARIABLE] = json.dumps(vars(card))
    return card


def whose() -> WorkerCard:
    """The card of the worker that this process belongs to."""
    return WorkerCard(**json.loads(os.environ[VARIABLE]))


def drain_flag(settings: Settings, worker_id: str) -> Path:
    """The file whose presence tells a worker's child to stop: a signal handler can make it, and it
    crosses the spawn that an event object would not."""
    return settings.drain_flags / f"{worker_id}{DRAINING}"
