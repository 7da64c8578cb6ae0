"""The commands over a database of another version: they refuse with a sentence, until it is migrated."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

from distillery.embedded import environment
from storage import schema
from storage.database import Database
from storage.settings import Settings
from tests.versions import first_release, schema_at

__all__ = ["first_release"]


def distillery(command: str, settings: Settings) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "distillery", command]
    return subprocess.run(line, env=environment(settings), capture_output=True, text=True, timeout=120)


def both_refuse(settings: Settings, *words: str) -> None:
    """API and worker, started side by side."""
    with ThreadPoolExecutor() as pool:
        for done in pool.map(distillery, ("api", "worker"), (settings, settings)):
            assert done.returncode == 3, [done.args, done.stderr]
            assert [word for word in words if word not in done.stderr] == [], done.args
            assert "Traceback" not in done.stderr, done.args


def test_api_and_worker_refuse_the_first_release_s_schema_and_a_later_one_s(first_release: Settings) -> None:
    settings = first_release.model_copy(update={"port": 0, "device": "cpu"})
    both_refuse(settings, "at revision 0001", f"needs {schema.head()}", "run `distillery migrate`")
    done = distillery("migrate", settings)
    assert (done.returncode, done.stdout) == (0, f"schema: 0001 -> {schema.head()}\n"), done.stderr
    database = Database(settings.database)
    with closing(database), schema_at(database, "from_the_future"):
        both_refuse(settings, "at revision from_the_future", "start the version that the database belongs to")
