"""The command line: what goes wrong is a sentence and an exit code, never a traceback."""

import json
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import update

from distillery.embedded import environment
from storage import schema, workers
from storage.database import Database
from storage.settings import Settings
from storage.tables import Worker
from storage.teacher_urls import TeacherSecret
from storage.workers import WorkerCard
from tests.versions import schema_at


def distillery(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "distillery", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | variables,
    )


@pytest.mark.parametrize("command", ["serve", "api", "worker", "migrate", "calibrate", "doctor"])
def test_bad_settings_are_a_sentence_each(command: str) -> None:
    done = distillery(command, DISTILLERY_PORT="99999", DISTILLERY_LEASE_SECONDS="soon")
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert [line.split(":")[1].strip() for line in lines] == ["DISTILLERY_PORT", "DISTILLERY_LEASE_SECONDS"]


def test_settings_that_contradict_each_other_and_bad_json_are_sentences_too() -> None:
    done = distillery("api", DISTILLERY_HOST="0.0.0.0")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "DISTILLERY_API_KEYS" in done.stderr
    done = distillery("api", DISTILLERY_API_KEYS="{")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "api_keys" in done.stderr


def test_a_secret_in_a_bad_setting_is_not_printed() -> None:
    done = distillery("api", DISTILLERY_API_KEYS='{"alice": "s3cr3t"}')
    assert done.returncode == 2
    assert "alice" in done.stderr
    assert "s3cr3t" not in done.stderr


@pytest.mark.parametrize("command", ["serve", "migrate", "calibrate"])  # api and worker: test_versions.py
def test_a_schema_of_another_version_is_named(command: str, tmp_path: Path) -> None:
    database = Database(Settings(home=tmp_path).database)
    schema.ensure(database)
    with closing(database), schema_at(database, "from_the_future"):
        done = distillery(command, DISTILLERY_HOME=str(tmp_path), DISTILLERY_PORT="0")
    assert done.returncode == 3, done.stderr
    assert "from_the_future" in done.stderr
    assert "Traceback" not in done.stderr


def test_migrate_makes_the_schema_and_says_so(database: Database, settings: Settings) -> None:
    schema.downgrade(database, "base")
    database.close()
    url = {"DISTILLERY_DATABASE_URL": settings.database}
    assert f"-> {schema.head()}" in distillery("migrate", **url).stdout
    assert f"{schema.head()} -> {schema.head()}" in distillery("migrate", **url).stdout


def test_the_doctor_needs_no_api_and_says_what_is_wrong(database: Database, settings: Settings) -> None:
    variables = environment(settings)
    done = distillery("doctor", **variables)
    assert (done.returncode, done.stderr) == (1, "")
    assert "critical (no_worker): No worker is running: start one with `distillery worker`." in done.stdout.splitlines()
    with database.write() as session:
        workers.register(session, WorkerCard("wrk_1", "host-1", 1, "cpu", "a CPU", 2**30, "0.1.0", 1))
        session.execute(update(Worker).values(clock_offset=100.0))
    done = distillery("doctor", "--json", **variables)
    assert (done.returncode, done.stderr) == (1, "")
    told = {finding["code"]: finding for finding in json.loads(done.stdout)}
    assert told["worker_clock_off"]["severity"] == "warning"
    assert told["worker_clock_off"]["about"] == ["wrk_1 on host-1: +100 s"]
    with database.write() as session:
        session.execute(update(Worker).values(clock_offset=0.0))
    done = distillery("doctor", **variables)
    if "(disk_low)" not in done.stdout:  # as it may be here
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("Nothing is wrong")


def test_the_doctor_says_that_nothing_was_started_here_and_makes_nothing(tmp_path: Path) -> None:
    done = distillery("doctor", "--home", str(tmp_path / "none"))
    assert done.returncode == 1
    assert "critical (database_away): There is no database here yet: `distillery serve` makes one" in done.stdout
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "none").exists()


def test_no_service_and_no_file_are_sentences(tmp_path: Path) -> None:
    nowhere = {"DISTILLERY_URL": "http://127.0.0.1:9"}
    done = distillery("jobs", **nowhere)
    assert (done.returncode, "Traceback" in done.stderr) == (5, False)
    assert "distillery serve" in done.stderr
    done = distillery("submit", str(tmp_path / "none.yaml"), **nowhere)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert "none.yaml" in done.stderr


def test_every_kind_of_setting_reaches_the_processes_that_are_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = Settings(
        home=tmp_path,
        port=8123,
        api_keys={"alice": SecretStr("a-key-of-some-length")},
        allowed_hosts=["a.example", "b.example"],
        teacher_urls=["https://models.internal/v1/"],
        teacher_secrets={
            "any": TeacherSecret(token=SecretStr("t")),
            "models": TeacherSecret(token=SecretStr("u"), url="https://models.internal/v1/"),
        },
        warm_spare=False,
    )
    for name, value in environment(given).items():
        if name.startswith("DISTILLERY_"):
            monkeypatch.setenv(name, value)
    assert Settings() == given
