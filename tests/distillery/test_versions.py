"""The commands over a database of another version: they refuse with a sentence, until it is migrated."""

import subprocess
import sys

import pytest
from sqlalchemy import text

from distillery.embedded import environment
from storage import schema
from storage.database import Database
from storage.settings import Settings
from tests.versions import first_release

__all__ = ["first_release"]


def distillery(command: str, settings: Settings) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "distillery", command]
    return subprocess.run(line, env=environment(settings), capture_output=True, text=True, timeout=120)


def refuses(command: str, settings: Settings, *words: str) -> None:
    done = distillery(command, settings)
    assert done.returncode == 3, done.stderr
    assert [word for word in words if word not in done.stderr] == []
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["api", "worker"])
def test_api_and_worker_refuse_the_first_release_s_schema_and_a_later_one_s(
    command: str, first_release: Settings
) -> None:
    settings = first_release.model_copy(update={"port": 0, "device": "cpu"})
    refuses(command, settings, "at revision 0001", f"needs {schema.head()}", "run `distillery migrate`")
    done = distillery("migrate", settings)
    assert (done.returncode, done.stdout) == (0, f"schema: 0001 -> {schema.head()}\n"), done.stderr
    database = Database(settings.database)
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = 'from_the_future'"))
    database.close()
    refuses(command, settings, "at revision from_the_future", "start the version that the database belongs to")
