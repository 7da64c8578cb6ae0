"""Other versions: what the first release left behind (tests/fixtures/first_release), and a release to come."""

import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import psycopg
import pytest
from pydantic import SecretStr

from kdcore import spec, upgrade
from kdcore.config import SPEC_VERSION
from kdcore.spec import JobSpec
from storage.settings import Settings
from tests.conftest import REDIS, drop_postgres, drop_queues, embedded, new_postgres

FIRST = Path(__file__).parent / "fixtures" / "first_release"
NAMES = ("ends", "paused", "lost", "waits")
OWNER = "local"


def written(name: str) -> str:
    """A spec as its user wrote it."""
    return (FIRST / "specs" / f"{name}.yaml").read_text()


def stored(name: str) -> dict[str, Any]:
    """`spec` and `spec_digest` as the first release stored them."""
    found: dict[str, Any] = json.loads((FIRST / "specs" / "stored.json").read_text())[name]
    return found


@contextmanager
def left_behind(form: str, home: Path) -> Iterator[Settings]:
    """Settings of a form, with the first release's database and files; nothing is migrated yet."""
    shutil.copytree(FIRST / "home", home, dirs_exist_ok=True)
    if form == "embedded":
        connection = sqlite3.connect(home / "distillery.db")
        connection.executescript((FIRST / "sqlite.sql").read_text())
        connection.close()
        yield embedded(home)
        return
    url, name = new_postgres()
    prefix = name.replace("_", "-")
    try:
        with psycopg.connect(url) as server:
            server.execute((FIRST / "postgresql.sql").read_bytes())
        yield embedded(home, database_url=SecretStr(url), broker_url=SecretStr(REDIS), queue_prefix=prefix)
    finally:
        drop_postgres(name)
        drop_queues(prefix)


@pytest.fixture(params=["embedded", "deployed"])
def first_release(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Settings]:
    """`left_behind` in each form; to be imported where it is used."""
    if request.param == "deployed":
        request.getfixturevalue("servers")
    with left_behind(request.param, tmp_path) as settings:
        yield settings


NEXT = SPEC_VERSION + 1


class LaterSpec(JobSpec):
    """A spec of the next version: one more field, with a default."""

    spec_version: Literal[3] = 3  # type: ignore[assignment]
    patience: int = 3


def begin_next_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on this process is of a later release, which knows `LaterSpec`."""
    monkeypatch.setattr(spec, "JobSpec", LaterSpec)
    monkeypatch.setattr(upgrade, "SPEC_VERSION", NEXT)
    monkeypatch.setattr(upgrade, "STEPS", (*upgrade.STEPS, lambda document: document))
