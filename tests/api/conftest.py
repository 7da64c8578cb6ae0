"""A real server of each form, with an owner of its own for every test."""

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
import uvicorn
from pydantic import SecretStr
from sqlalchemy import update

from api.app import create_app
from api.server import HTTP
from api.service import Service
from storage import attempts, records
from storage.database import Database
from storage.lifecycle import Fence
from storage.settings import Settings
from storage.tables import Job
from storage.workers import WorkerCard, leave, register
from tests.conftest import OpenSettings, embedded

OWNERS = 600
SPEC = {
    "data": {"type": "digits"},
    "teachers": [{"model": {"type": "mlp", "hidden": [32]}, "train": {"epochs": 2}}],
    "student": {"model": {"type": "mlp", "hidden": [8]}},
}


class Api:
    """A running server, seen from both sides: its address, and the database behind it."""

    def __init__(self, settings: Settings, url: str, service: Service) -> None:
        self.settings = settings
        self.url = url
        self.service = service
        self.database: Database = service.database
        self.port = int(url.rsplit(":", 1)[1])

    def client(self, owner: str | None = None) -> httpx.Client:
        keys = self.settings.api_keys
        headers = {"Authorization": f"Bearer {keys[owner].get_secret_value()}"} if owner is not None else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=20, trust_env=False)

    def claim(self, job_id: str) -> Fence:
        """Take this job as a worker would."""
        with self.database.write() as session:
            session.execute(update(Job).where(Job.id == job_id).values(priority=1_000_000))
            job = attempts.claim(session, "worker-1", ("auto", "cpu"), 60.0)
            assert job is not None
            assert job.id == job_id
            session.execute(update(Job).where(Job.id == job_id).values(priority=0))
        return Fence(job_id, job.attempt)

    def end(self, fence: Fence, how: str) -> None:
        """`failed`, or what was requested: `pause`, `cancel`, `drain`."""
        with self.database.write() as session:
            if how == "failed":
                attempts.fail(session, fence, {"code": "diverged", "kind": "user", "message": "nan at step 3"})
            else:
                attempts.yield_job(session, fence, how)

    def succeed(
        self, fence: Fence, files: dict[str, bytes] | None = None, result: dict[str, Any] | None = None
    ) -> None:
        """Publish files and end the job well."""
        new = []
        for name, data in (files or {}).items():
            source = self.settings.home / f"source-{secrets.token_hex(4)}"
            source.write_bytes(data)
            digest, size = self.service.blobs.put(source)
            new.append(records.NewArtifact(name, digest, size, "application/octet-stream"))
        with self.database.write() as session:
            if new:
                records.publish(session, fence, new)
            attempts.succeed(session, fence, result or {"student": {"accuracy": 0.9}})

    def report(self, fence: Fence, **what: Any) -> None:
        with self.database.write() as session:
            records.report(session, fence, **what)

    @contextmanager
    def worker(self, device: str = "cpu") -> Iterator[WorkerCard]:
        card = WorkerCard(f"wrk_{secrets.token_hex(4)}", "host", 1, device, "a CPU", 2**30, "0.1.0", 1)
        with self.database.write() as session:
            register(session, card)
        yield card
        with self.database.write() as session:
            leave(session, card.id)


@contextmanager
def serving(settings: Settings) -> Iterator[Api]:
    """A uvicorn server in a thread of this process."""
    app = create_app(settings)
    config = uvicorn.Config(app, host="127.0.0.1", port=0, timeout_graceful_shutdown=1, **HTTP)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    eventually(lambda: server.started or not thread.is_alive(), 60)
    assert server.started
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield Api(settings, f"http://127.0.0.1:{port}", app.state.service)
    finally:
        server.should_exit = True
        thread.join(20)
    assert not thread.is_alive()


def eventually(check: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait until something is so; as long as a busy machine may need."""
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def with_owners(**values: Any) -> dict[str, Any]:
    keys = {f"owner-{number}": SecretStr(secrets.token_hex(16)) for number in range(OWNERS)}
    return {"api_keys": keys, "poll_seconds": 0.05, "min_free_bytes": 0} | values


@pytest.fixture(scope="session", params=["embedded", "deployed"])
def api(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, open_settings: OpenSettings
) -> Iterator[Api]:
    """A server of each form, shared by all tests: each is an owner of its own."""
    home = tmp_path_factory.mktemp(request.param)
    with open_settings(request.param, home) as settings, serving(settings.model_copy(update=with_owners())) as api:
        yield api


@pytest.fixture(scope="session")
def files_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """One server of the embedded form, for what no database changes."""
    with serving(embedded(tmp_path_factory.mktemp("one"), **with_owners())) as api:
        yield api


@pytest.fixture(scope="session")
def owners() -> Iterator[str]:
    return (f"owner-{number}" for number in range(OWNERS))


@pytest.fixture
def owner(owners: Iterator[str]) -> str:
    """An owner that no other test has."""
    return next(owners)


@pytest.fixture
def client(api: Api, owner: str) -> Iterator[httpx.Client]:
    """A client of the server of each form."""
    with api.client(owner) as client:
        yield client


@pytest.fixture
def files_client(files_api: Api, owner: str) -> Iterator[httpx.Client]:
    """A client of the embedded server."""
    with files_api.client(owner) as client:
        yield client


def submit(client: httpx.Client, **changes: Any) -> dict[str, Any]:
    """A new job."""
    response = client.post("/jobs", json=SPEC | changes)
    assert response.status_code == 201, response.text
    job: dict[str, Any] = response.json()
    return job


def said(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The problem document, checked for its form."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert problem["code"] == code
    assert problem["status"] == status
    assert problem["detail"]
    assert problem["title"]
    assert problem["request_id"] == response.headers["x-request-id"]
    return problem
