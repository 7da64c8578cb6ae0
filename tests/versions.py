"""Other versions: what the first release left behind (tests/fixtures/first_release), and a release to come."""

import json
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import psycopg
import pytest
import torch
from pydantic import SecretStr
from sqlalchemy import text

from kdcore import spec, train, upgrade
from kdcore.choices import Choices, cpu_name
from kdcore.config import SPEC_VERSION
from kdcore.reporter import RecordingReporter
from kdcore.spec import JobSpec
from storage import schema
from storage.database import Database
from storage.settings import Settings
from tests.conftest import REDIS, drop_postgres, drop_queues, embedded, new_postgres

FIRST = Path(__file__).parent / "fixtures" / "first_release"
NAMES = ("ends", "paused", "lost", "waits")
UNDISTURBED = json.loads((FIRST / "undisturbed.json").read_text())
"""The paused job's student where nothing interrupts it, and what was chosen for it."""
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


@pytest.fixture
def undisturbed() -> str:
    """The digest of the paused job's student where nothing interrupts it; to be imported where it is used.

    Skips where that is another than the first release's: half of a student that goes on from its checkpoints would be
    computed there, half here.
    """
    there: Any = UNDISTURBED["choices"]
    for name, here in (("cpu", cpu_name()), ("torch", torch.__version__)):
        if here != there[name]:
            pytest.skip(f"the first release's bytes are of {name} {there[name]}, and here is {here}")
    if student_here() != UNDISTURBED["student"]:
        pytest.skip("an undisturbed run gives other bytes here than the first release's, on a CPU of the same name")
    return student_here()


@cache
def student_here() -> str:
    """The digest of the paused job's student, as the library alone makes it on the CPU."""
    parsed, choices = spec.parse_spec(written("paused")), Choices.model_validate(UNDISTURBED["choices"])
    with tempfile.TemporaryDirectory() as folder:
        out, reporter = Path(folder) / "out", RecordingReporter()
        train.run(parsed, data_root=Path(folder), out=out, reporter=reporter, choices=choices, download=False)
        return digest((out / "student.safetensors").read_bytes())


def digest(content: bytes) -> str:
    return f"sha256:{sha256(content).hexdigest()}"


def rewrite(checkpoint: Path, **changes: Any) -> None:
    """Change a checkpoint's values; of a dict, those of the keys that are given."""
    content = torch.load(checkpoint, weights_only=True)
    for name, value in changes.items():
        content[name] = content[name] | value if isinstance(value, dict) else value
    torch.save(content, checkpoint)


@contextmanager
def schema_at(database: Database, revision: str) -> Iterator[None]:
    """The database is said to be of another revision."""

    def set_to(number: str) -> None:
        with database.engine.begin() as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = :number"), {"number": number})

    set_to(revision)
    try:
        yield
    finally:
        set_to(schema.head())


NEXT = SPEC_VERSION + 1


class LaterSpec(JobSpec):
    """A spec of the next version: one more field, with a default."""

    spec_version: Literal[3] = 3
    patience: int = 3


def begin_next_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on this process is of a later release, which knows `LaterSpec`."""
    monkeypatch.setattr(spec, "JobSpec", LaterSpec)
    monkeypatch.setattr(upgrade, "SPEC_VERSION", NEXT)
    monkeypatch.setattr(upgrade, "STEPS", (*upgrade.STEPS, lambda document: document))
