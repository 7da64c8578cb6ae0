"""What is wrong with a deployment: each case made for real, each found, and nothing else."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
from pydantic import SecretStr
from sqlalchemy import text, update

from storage import looks, schema, workers
from storage.database import Database, now
from storage.diagnosis import Diagnosis, Finding
from storage.looks import Look
from storage.queue import Doorbell
from storage.reconciler import MOST_RINGS
from storage.settings import Settings
from storage.tables import Job, Worker
from storage.workers import WorkerCard
from tests.conftest import REDIS, embedded
from tests.storage.conftest import Jobs

ENOUGH = 2**40


def found(settings: Settings, database: Database | None = None) -> dict[str, Finding]:
    """By code, but for a disk that happens to be nearly full here."""
    findings = Diagnosis(settings, database).findings()
    codes = [finding.code for finding in findings]
    assert len(set(codes)) == len(codes)
    for finding in findings:
        assert finding.message[0].isupper() or finding.message[0].isdigit()
        assert finding.message.endswith(".")
    return {finding.code: finding for finding in findings if finding.code != "disk_low"}


@contextmanager
def a_worker(database: Database, device: str = "cpu", memory: int = ENOUGH, **values: object) -> Iterator[WorkerCard]:
    card = WorkerCard(f"wrk_{device}_{time.time_ns()}", "host", 1, device, "a device", memory, "0.1.0", 1)
    with database.write() as session:
        workers.register(session, card)
        if values:
            session.execute(update(Worker).where(Worker.id == card.id).values(values))
    yield card
    with database.write() as session:
        workers.leave(session, card.id)


@contextmanager
def silent_port() -> Iterator[int]:
    """Takes connections and never says a word."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(16)
        yield listening.getsockname()[1]


def test_nothing_is_wrong_with_a_deployment_that_works(settings: Settings, database: Database, jobs: Jobs):
    jobs.submit()
    with a_worker(database):
        assert found(settings, database) == {}
        assert found(settings) == {}


def test_no_worker_and_silent_ones(settings: Settings, database: Database, jobs: Jobs):
    jobs.submit()
    finding = found(settings, database)["no_worker"]
    assert (finding.part, finding.severity) == ("worker", "critical")
    assert "(1 queued job)" in finding.message
    with a_worker(database, heartbeat_at=now() - 100) as silent, a_worker(database):
        (finding,) = found(settings, database).values()
        assert (finding.code, finding.part, finding.severity) == ("workers_silent", None, "warning")
        assert silent.id in finding.about[0]
        assert silent.hostname not in finding.message  # strangers read it


def test_jobs_for_a_device_that_no_worker_has(settings: Settings, database: Database, jobs: Jobs):
    jobs.submit(device="cuda")
    with a_worker(database):
        (finding,) = found(settings, database).values()
        assert finding.code == "no_worker_for_device"
        assert "No worker has cuda (1 queued job)" in finding.message
        with a_worker(database, "cuda"):
            assert found(settings, database) == {}


def test_specs_that_no_worker_reads(settings: Settings, database: Database, jobs: Jobs):
    jobs.submit(spec_version=2)
    with a_worker(database, spec_version=None):  # a worker of the version before says nothing of it
        assert list(found(settings, database)) == ["spec_too_new"]
        with a_worker(database, spec_version=2):
            assert found(settings, database) == {}


def test_a_queue_that_nobody_drains(settings: Settings, database: Database, jobs: Jobs):
    job_id = jobs.submit()
    jobs.set(job_id, available_at=now() - 100)
    with a_worker(database, status="busy"):
        assert found(settings, database) == {}
        with a_worker(database, memory=1):
            assert list(found(settings, database)) == ["queue_not_drained"]
            with database.write() as session:  # an idle worker that is too small for it is no sign of trouble
                session.execute(update(Job).values(plan={"memory": {"total": 2**33, "copies": 0}}))
            assert found(settings, database) == {}


def test_a_job_that_the_idle_worker_does_not_read_is_no_fault_of_the_broker(
    settings: Settings, database: Database, jobs: Jobs
):
    job_id = jobs.submit(spec_version=2)
    jobs.set(job_id, available_at=now() - 100)
    with a_worker(database):
        assert list(found(settings, database)) == ["spec_too_new"]
        with a_worker(database, spec_version=2):
            assert list(found(settings, database)) == ["queue_not_drained"]


def test_a_worker_that_rests_is_named_and_nothing_else_is_blamed(settings: Settings, database: Database, jobs: Jobs):
    job_id = jobs.submit()
    jobs.set(job_id, available_at=now() - 100)
    doorbell = Doorbell(settings)
    for _ in range(MOST_RINGS):
        assert doorbell.ring("auto")
    with a_worker(database, status="resting") as card:
        (finding,) = found(settings, database).values()
        assert (finding.code, finding.part) == ("workers_resting", "worker")
        assert card.id in finding.about[0]
        with a_worker(database, status="busy"):
            (finding,) = found(settings, database).values()
            assert (finding.code, finding.part) == ("workers_resting", None)


def test_a_look_whose_thread_cannot_be_started_is_taken_the_next_time(monkeypatch: pytest.MonkeyPatch):
    look = Look(lambda: "seen")

    def no_thread(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(looks.threading.Thread, "start", no_thread)
        with pytest.raises(RuntimeError, match="new thread"):
            look.begin()
    assert look.begin().result(5) == "seen"


def test_doorbells_that_an_idle_worker_does_not_hear(settings: Settings, database: Database):
    doorbell = Doorbell(settings)
    with a_worker(database):
        for _ in range(MOST_RINGS):
            assert doorbell.ring("auto")
        assert list(found(settings, database)) == ["doorbells_unheard"]
    with a_worker(database, status="busy"):
        assert found(settings, database) == {}


def test_leases_that_nobody_takes_back(settings: Settings, database: Database, jobs: Jobs):
    fence = jobs.running()
    with a_worker(database, status="busy"):
        jobs.set(fence.job_id, lease_expires_at=now() - 1)
        assert found(settings, database) == {}
        jobs.set(fence.job_id, lease_expires_at=now() - 100)
        assert list(found(settings, database)) == ["lease_expired"]


def test_clocks_that_are_off(settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch):
    with a_worker(database, clock_offset=-3600.0) as late, a_worker(database, clock_offset=4.0):
        finding = found(settings, database)["worker_clock_off"]
        assert "-3,600 s" in finding.message
        assert "leases do not depend on it" in finding.message
        assert [late.id in line for line in finding.about] == [True]
    real = time.time
    with a_worker(database):
        monkeypatch.setattr("storage.looks.time.time", lambda: real() + 60)
        finding = found(settings, database)["clock_off"]
    assert "+60 s" in finding.message


@pytest.mark.parametrize(
    ("statement", "code", "mend"),
    [
        ("UPDATE alembic_version SET version_num = '0001'", "schema_behind", "distillery migrate"),
        ("UPDATE alembic_version SET version_num = '9999'", "schema_ahead", "run the version it belongs to"),
        ("DELETE FROM alembic_version", "schema_foreign", "a database of its own"),
    ],
)
def test_a_schema_of_another_version(settings: Settings, database: Database, statement: str, code: str, mend: str):
    try:
        with database.write() as session:
            session.execute(text(statement))
        (finding,) = found(settings, database).values()
        assert (finding.code, finding.part) == (code, "schema")
        assert mend in finding.message
    finally:
        with database.write() as session:
            session.execute(text("DELETE FROM alembic_version"))
            session.execute(text("INSERT INTO alembic_version VALUES (:head)"), {"head": schema.head()})


def test_an_empty_database_and_another_programs(empty_postgres: str, tmp_path: Path):
    settings = embedded(tmp_path, database_url=SecretStr(empty_postgres))
    assert list(found(settings)) == ["schema_empty"]
    database = Database(empty_postgres)
    with database.write() as session:
        session.execute(text("CREATE TABLE theirs (id integer)"))
    database.close()
    assert list(found(settings)) == ["schema_foreign"]


def test_to_look_makes_nothing(tmp_path: Path):
    home = tmp_path / "none"
    codes = found(embedded(home))
    assert set(codes) == {"database_away", "home_not_writable"}
    assert "distillery serve" in codes["database_away"].message
    assert not home.exists()


def test_a_database_that_refuses_is_away_and_why_is_said_to_the_operator_alone(tmp_path: Path):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"postgresql://someone:s3cret@127.0.0.1:{nobody.getsockname()[1]}/db"
        finding = found(embedded(tmp_path, database_url=SecretStr(url)))["database_away"]
    assert "127.0.0.1" not in finding.message
    assert "127.0.0.1" in finding.about[0]
    assert "s3cret" not in repr(finding)


def test_a_database_that_hangs_is_waited_for_once_and_within_bounds(tmp_path: Path):
    with silent_port() as port:
        url = SecretStr(f"postgresql://postgres@127.0.0.1:{port}/db")
        diagnosis = Diagnosis(embedded(tmp_path, database_url=url))
        begun, before = time.monotonic(), threading.active_count()
        for _ in range(3):
            (finding,) = [each for each in diagnosis.findings(0.3) if each.part == "database"]
            assert finding.code == "database_away"
            assert "does not answer within 0.3 s" in finding.message
        assert time.monotonic() - begun < 5
        assert threading.active_count() <= before + 1  # the one look that hangs


@pytest.mark.parametrize("hangs", [False, True])
def test_a_broker_that_is_away_or_hangs(database: Database, settings: Settings, hangs: bool):
    with silent_port() as port, socket.socket() as nobody, a_worker(database):
        nobody.bind(("127.0.0.1", 0))  # bound, never listening
        at = port if hangs else nobody.getsockname()[1]
        broken = settings.model_copy(update={"broker_url": SecretStr(f"redis://:s3cret@127.0.0.1:{at}/0")})
        begun = time.monotonic()
        (finding,) = found(broken, database).values()
        assert time.monotonic() - begun < 6
    assert (finding.code, finding.part) == ("broker_away", "broker")
    assert "start Redis" in finding.message
    assert "s3cret" not in repr(finding)


def test_an_embedded_broker_whose_folder_is_none(tmp_path: Path):
    settings = embedded(tmp_path)
    database = Database(settings.database)
    schema.ensure(database)
    (tmp_path / "broker").mkdir()
    (tmp_path / "broker" / "messages").touch()
    with a_worker(database):
        (finding,) = found(settings, database).values()
    database.close()
    assert (finding.code, finding.part) == ("broker_unusable", "broker")


def test_a_disk_that_is_nearly_full(settings: Settings, database: Database):
    full = settings.model_copy(update={"min_free_bytes": 2**60})
    with a_worker(database):
        findings = Diagnosis(full, database).findings()
    (finding,) = [finding for finding in findings if finding.code == "disk_low"]
    assert finding.severity == "warning"
    assert "submissions are refused below" in finding.message


def test_a_folder_that_takes_no_files(settings: Settings, database: Database):
    settings.blobs.touch()  # where a folder should be: also root cannot write into it
    with a_worker(database):
        finding = found(settings, database)["home_not_writable"]
    assert "blobs" in finding.about[0]
    assert str(settings.home) not in finding.message


def test_looking_leaves_no_message_in_redis(settings: Settings, database: Database):
    found(settings, database)
    if settings.broker is not None:
        with redis.Redis.from_url(REDIS, socket_timeout=3) as client:
            assert client.llen(settings.queue_prefix) == 0
    assert not list(settings.home.glob("tmp*"))
