"""The health check of a worker's container, on both forms of database."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from sqlalchemy import update

from storage import workers
from storage.database import Database
from storage.settings import Settings
from storage.tables import Worker
from worker.health import is_alive


def card(hostname: str) -> workers.WorkerCard:
    return workers.WorkerCard("worker-1", hostname, 1, "cpu", "a CPU", 2**30, "0", 1)


def test_a_worker_is_healthy_while_its_row_is_fresh(database: Database, settings: Settings) -> None:
    assert not is_alive(database, settings, "here")
    with database.write() as session:
        workers.register(session, card("here"))
    assert is_alive(database, settings, "here")
    assert not is_alive(database, settings, "elsewhere")
    with database.write() as session:
        session.execute(update(Worker).values(heartbeat_at=Worker.heartbeat_at - settings.lease_seconds - 1))
    assert not is_alive(database, settings, "here")


def test_the_command_says_it_by_its_exit_status(database: Database, settings: Settings, root: Path) -> None:
    environment = os.environ | {"DISTILLERY_HOME": str(settings.home), "DISTILLERY_DATABASE_URL": settings.database}

    def status() -> int:
        command = [sys.executable, "-m", "worker.health"]
        return subprocess.run(command, cwd=root, env=environment, timeout=60, capture_output=True).returncode

    assert status() == 1
    with database.write() as session:
        workers.register(session, card(socket.gethostname()))
    assert status() == 0
