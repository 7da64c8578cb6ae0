"""The FastAPI application: what starts and ends with it, and what it is made of."""

import asyncio
import atexit
import contextlib
import gc
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

import anyio.to_thread
from fastapi import Depends, FastAPI

from api import housekeeping, openapi, problems
from api.auth import authenticate
from api.middleware import RequestMiddleware
from api.routes import artifacts, catalog, events, health, jobs, metrics, uploads, workers
from api.service import Service, refuse_unknown_query
from api.watch import Watcher
from kdcore.plan import make_plan
from kdcore.spec import parse_spec
from storage import schema
from storage.blobs import BlobStore
from storage.database import Database
from storage.log import configure_logging
from storage.queue import Doorbell
from storage.settings import Settings

DESCRIPTION = """\
Turns a large PyTorch model (the *teacher*) into a small one (the *student*): post a job, follow it,
download the student.

Errors are RFC 9457 problem documents. Times are UTC. `GET /catalog/spec` is the schema of a job's spec.
"""
SWITCH_SECONDS = 0.001
"""How long a thread that has an answer of the database may wait for the interpreter while the event loop is busy, each
time: Python's own 5 ms are as long as several requests."""


class App(FastAPI):
    """FastAPI with our OpenAPI document."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            self.openapi_schema = openapi.build(self.title, self.version, self.description, list(self.routes))
        return self.openapi_schema


def create_app(settings: Settings | None = None) -> FastAPI:
    """The application.

    Args:
        settings: None in a server process: they are read from the environment, and logging is set up.
    """
    if settings is None:
        settings = Settings()
        configure_logging(settings)
    app = App(
        title="Distillery",
        version=version("distillery"),
        description=DESCRIPTION,
        lifespan=_lifespan,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=openapi.operation_id,
    )
    app.state.settings = settings
    app.add_middleware(RequestMiddleware, settings=settings)
    problems.install(app)
    app.include_router(health.router)
    keyed = [Depends(authenticate), Depends(refuse_unknown_query)]
    modules = (jobs, events, metrics, artifacts, catalog, workers)
    for router in (*(module.router for module in modules), *uploads.routers):
        app.include_router(router, dependencies=keyed, responses=openapi.COMMON)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    sys.setswitchinterval(SWITCH_SECONDS)
    settings: Settings = app.state.settings
    settings.home.mkdir(parents=True, exist_ok=True)
    database = Database(settings.database, before_write=schema.check)
    await anyio.to_thread.run_sync(schema.ensure, database)
    doorbell = Doorbell(settings)
    watcher = Watcher(database, settings.poll_seconds, settings.max_streams)
    app.state.service = Service(settings, database, doorbell, watcher, BlobStore(settings.blobs))
    threads = housekeeping.start(settings, database, doorbell)
    poller = asyncio.create_task(watcher.run())
    threading.Thread(target=_warm_up, name="warm-up").start()  # no daemon: torch must not be torn down under it
    try:
        yield
    finally:
        poller.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await poller
        await anyio.to_thread.run_sync(housekeeping.stop, threads)
        database.close()


def _warm_up() -> None:
    """The first plan of a process takes torch over a second; nobody should have to wait for it."""
    model = {"model": {"type": "mlp"}}
    make_plan(parse_spec({"data": {"type": "digits"}, "teachers": [model], "student": model}))
    gc.collect()
    gc.freeze()  # torch is here to stay: a full pass over its objects would hold up every request
    atexit.register(gc.unfreeze)  # else libraries in C++ report at the end what they think has leaked
