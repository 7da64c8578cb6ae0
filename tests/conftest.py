"""What every test may use: settings and databases of both forms, embedded and deployed.

PostgreSQL and Redis are used where they answer (`DISTILLERY_TEST_POSTGRES`, `DISTILLERY_TEST_REDIS`); where
they don't, tests of the deployed form are skipped with the reason, or fail under `CI=true`.
"""

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from pydantic import SecretStr

from storage import schema
from storage.database import Database
from storage.settings import Settings

POSTGRES = os.environ.get("DISTILLERY_TEST_POSTGRES", "postgresql://postgres@127.0.0.1:5432/postgres")
REDIS = os.environ.get("DISTILLERY_TEST_REDIS", "redis://127.0.0.1:6379/0")

for variable in [name for name in os.environ if name.startswith("DISTILLERY_") and "_TEST_" not in name]:
    del os.environ[variable]  # a developer's own settings must not reach the tests


def unreachable() -> str | None:
    """Why the deployed form cannot be tested here; None where it can."""
    try:
        psycopg.connect(POSTGRES, connect_timeout=3).close()
    except psycopg.OperationalError as error:
        return f"PostgreSQL at DISTILLERY_TEST_POSTGRES does not answer: {error}"
    try:
        redis.Redis.from_url(REDIS, socket_timeout=3, socket_connect_timeout=3).ping()
    except redis.RedisError as error:
        return f"Redis at DISTILLERY_TEST_REDIS does not answer: {error}"
    return None


@pytest.fixture(scope="session")
def servers() -> None:
    """Needs PostgreSQL and Redis."""
    reason = unreachable()
    if reason is not None:
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)


def embedded(home: Path, **values: Any) -> Settings:
    """Settings of the embedded form, quick enough for tests."""
    return Settings(**{"home": home, "data": home / "data", "allow_download": False, "reconcile_seconds": 0.5} | values)


def new_postgres() -> tuple[str, str]:
    """A database of its own: its URL and its name."""
    name = f"distillery_test_{secrets.token_hex(6)}"
    with psycopg.connect(POSTGRES, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    return POSTGRES.rsplit("/", 1)[0] + f"/{name}", name


@pytest.fixture
def empty_postgres(servers: None) -> Iterator[str]:
    """URL of a PostgreSQL database without any table."""
    url, name = new_postgres()
    yield url
    drop_postgres(name)


@pytest.fixture(scope="session")
def migrated(servers: None) -> Iterator[list[tuple[str, str]]]:
    """Migrated PostgreSQL databases that no test uses: making and dropping one per test takes a second or more."""
    free: list[tuple[str, str]] = []
    yield free
    for _, name in free:
        drop_postgres(name)


def take_postgres(free: list[tuple[str, str]]) -> tuple[str, str]:
    """URL and name of a migrated database without rows."""
    if free:
        return free.pop()
    url, name = new_postgres()
    database = Database(url)
    schema.ensure(database)
    database.close()
    return url, name


def give_back_postgres(free: list[tuple[str, str]], url: str, name: str) -> None:
    """Empty the database for the next test; whoever is still connected is thrown out."""
    others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid()"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(others, (name,))
        connection.execute("DELETE FROM uploads")
        connection.execute("DELETE FROM upload_names")
        connection.execute("DELETE FROM jobs")  # and by cascade what belongs to them
        connection.execute("DELETE FROM workers")
    free.append((url, name))


def drop_postgres(name: str) -> None:
    with psycopg.connect(POSTGRES, autocommit=True) as connection:
        connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


def drop_queues(prefix: str) -> None:
    client = redis.Redis.from_url(REDIS, socket_timeout=3)
    for queue in (prefix, f"{prefix}-cuda"):
        client.delete(queue, f"_kombu.binding.{queue}", f"_kombu.binding_permanent.{queue}")
    client.close()


OpenSettings = Callable[[str, Path], AbstractContextManager[Settings]]


@pytest.fixture(scope="session")
def open_settings(request: pytest.FixtureRequest) -> OpenSettings:
    """Makes settings of a form, `embedded` or `deployed`, with a database without rows and queues of their own."""

    @contextmanager
    def opened(form: str, home: Path) -> Iterator[Settings]:
        if form == "embedded":
            yield embedded(home)
            return
        free = request.getfixturevalue("migrated")
        url, name = take_postgres(free)
        prefix = f"distillery-test-{secrets.token_hex(6)}"
        try:
            yield embedded(home, database_url=SecretStr(url), broker_url=SecretStr(REDIS), queue_prefix=prefix)
        finally:
            give_back_postgres(free, url, name)
            drop_queues(prefix)

    return opened


@pytest.fixture(params=["embedded", "deployed"])
def settings(request: pytest.FixtureRequest, tmp_path: Path, open_settings: OpenSettings) -> Iterator[Settings]:
    """Settings of each form in turn."""
    with open_settings(request.param, tmp_path) as settings:
        yield settings


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    """A migrated database of each form."""
    database = Database(settings.database)
    schema.ensure(database)
    yield database
    database.close()
