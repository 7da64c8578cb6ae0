"""Running the API: one or several uvicorn processes."""

import os
import resource
import shutil
from collections.abc import Callable
from typing import Any

import uvicorn

from api.protocol import Protocol
from storage import schema
from storage.database import Database
from storage.files import make_home
from storage.log import configure_logging
from storage.settings import Settings

GRACE_SECONDS = 2
"""What open streams get when the service stops: their clients reconnect."""
CONNECTIONS_BESIDE = 1_000
"""Connections of an API process beside its streams and waits; with one more a request gets a bare 503."""
HTTP: dict[str, Any] = {
    "http": Protocol,  # on h11: httptools, uvicorn's first choice, reads headers without end into memory
    "h11_max_incomplete_event_size": 65_536,
    "ws": "none",
    "log_config": None,
    "access_log": False,
    "server_header": False,
}
"""How requests are read; the tests' server reads them alike."""


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT. With several processes, each reads its settings from the environment.

    Raises:
        SchemaError: the database belongs to another version.
        OperationalError: the database does not answer.
    """
    configure_logging(settings)
    make_home(settings.home)
    database = Database(settings.database)
    try:
        schema.ensure(database)  # here, so that what is wrong is said once and plainly
    finally:
        database.close()
    _allow_files(2 * (settings.max_streams + CONNECTIONS_BESIDE))  # a download has a socket and a file
    several = settings.api_processes > 1
    if several:
        _share_metrics(settings)
    uvicorn.run(
        "api.app:create_app" if several else _factory(settings),
        factory=True,
        host=settings.host,
        port=settings.port,
        workers=settings.api_processes,
        timeout_keep_alive=30,
        limit_concurrency=settings.max_streams + CONNECTIONS_BESIDE,
        timeout_graceful_shutdown=GRACE_SECONDS,
        timeout_worker_healthcheck=30,
        **HTTP,
    )


def _allow_files(wanted: int) -> None:
    """As many open files as the system lets this process have: many systems begin with 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _share_metrics(settings: Settings) -> None:
    """Before prometheus_client is imported: the processes count into files that each of them can read."""
    folder = settings.home / "prometheus"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)


def _factory(settings: Settings) -> Callable[[], Any]:
    from api.app import create_app  # not sooner: it imports prometheus_client, which must find the folder above

    return lambda: create_app(settings)
