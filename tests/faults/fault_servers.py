"""Broker and database: away, frozen, cut off, forgetful."""

import contextlib
import shutil
import sqlite3
import time

from sqlalchemy import text

from tests.faults.fault import Fault, Inject, add, fault
from tests.faults.scene import Injection, Scene

DEPLOYED, EMBEDDED = ("deployed",), ("embedded",)
BROKER, DATABASE = "broker", "database"
MESSAGES = {
    "doorbell lost": ("swallow", None),
    "doorbell doubled": ("twice", None),
    "doorbell delayed": ("delay", 2.0),
    "doorbells reordered": ("hold", 3.0),
}


def _message(action: str, argument: float | None) -> Inject:
    def inject(scene: Scene) -> Injection | None:
        return scene.sprung(scene.spring("ring", action, argument))

    return inject


for name, (action, argument) in MESSAGES.items():
    add(Fault(name, BROKER, (*DEPLOYED, *EMBEDDED), _message(action, argument)))


def _down(server: str, seconds: tuple[float, float]) -> Inject:
    """Killed, and started again a while later: Redis forgets everything, PostgreSQL nothing."""

    def inject(scene: Scene) -> Injection | None:
        since, one = time.time(), getattr(scene, server)
        with one.lock:
            one.kill()
            time.sleep(scene.rng.uniform(*seconds))
            one.start()
        return scene.done(since=since)

    return inject


def _frozen(server: str, seconds: tuple[float, float]) -> Inject:
    def inject(scene: Scene) -> Injection | None:
        since = time.time()
        getattr(scene, server).freeze(scene.rng.uniform(*seconds))
        return scene.done(since=since)

    return inject


def _cut(proxy: str) -> Inject:
    def inject(scene: Scene) -> Injection | None:
        getattr(scene, proxy).cut(scene.rng.choice((0.3, 1.0)))
        return scene.done()

    return inject


def _through(proxy: str, method: str, seconds: tuple[float, float]) -> Inject:
    """What a proxy does for a while."""

    def inject(scene: Scene) -> Injection | None:
        since, duration = time.time(), scene.rng.uniform(*seconds)
        getattr(getattr(scene, proxy), method)(duration)
        time.sleep(duration)
        return scene.done(since=since)

    return inject


for name, group, inject in (
    ("Redis killed and started empty", BROKER, _down("redis", (0, 2))),
    ("Redis frozen", BROKER, _frozen("redis", (1, 4))),
    ("connections to Redis cut", BROKER, _cut("redis_proxy")),
    ("connections to Redis half open", BROKER, _through("redis_proxy", "half_open", (1, 4))),
    ("Redis out of reach", BROKER, _through("redis_proxy", "refuse", (1, 3))),
    ("PostgreSQL killed and started", DATABASE, _down("postgres", (0, 2))),
    ("PostgreSQL frozen", DATABASE, _frozen("postgres", (0.5, 1.5))),
    ("connections to PostgreSQL cut", DATABASE, _cut("postgres_proxy")),
    ("connections to PostgreSQL half open", DATABASE, _through("postgres_proxy", "half_open", (0.5, 2))),
    ("PostgreSQL out of reach", DATABASE, _through("postgres_proxy", "refuse", (0.5, 2))),
):
    add(Fault(name, group, DEPLOYED, inject))


@fault("the broker's folder emptied", BROKER, EMBEDDED)
def folder_emptied(scene: Scene) -> Injection | None:
    shutil.rmtree(scene.settings.broker_folder, ignore_errors=True)
    return scene.done()


GARBAGE = (b"", b"\x00\xff\xfe not a message", b"{", b"[]", b'{"body": 1}', b'{"properties": {}, "headers": null}')


@fault("garbage in the broker's folder", BROKER, EMBEDDED)
def folder_garbage(scene: Scene) -> Injection | None:
    folder = scene.settings.broker_folder / "messages"
    folder.mkdir(parents=True, exist_ok=True)
    for number, content in enumerate(GARBAGE):
        (folder / f"{number:020d}_garbage.{scene.settings.queue_prefix}.msg").write_bytes(content)
    with contextlib.suppress(FileExistsError):
        (folder / f"{0:020d}_folder.{scene.settings.queue_prefix}.msg").mkdir()
    return scene.done()


@fault("PostgreSQL restarted", DATABASE, DEPLOYED)
def postgres_restarted(scene: Scene) -> Injection | None:
    since = time.time()
    with scene.postgres.lock:
        scene.postgres.restart("fast")
    return scene.done(since=since)


@fault("connections ended by PostgreSQL", DATABASE, DEPLOYED)
def postgres_terminates(scene: Scene) -> Injection | None:
    with contextlib.suppress(Exception):  # it may be down just now
        scene.postgres.cut_connections(scene.postgres_name, scene.rng.choice((0.3, 1.0)), scene.rng)
        return scene.done()
    return None


@fault("PostgreSQL slow to answer", DATABASE, DEPLOYED)
def postgres_slow(scene: Scene) -> Injection | None:
    since = time.time()
    seconds = scene.rng.uniform(1, 3)
    scene.postgres_proxy.delay(0.05, seconds)
    time.sleep(seconds)
    return scene.done(since=since)


@fault("a commit's reply lost", DATABASE, DEPLOYED)
def reply_lost(scene: Scene) -> Injection | None:
    before = scene.postgres_proxy.lost_replies
    scene.postgres_proxy.lose_commit_reply(3)
    scene.wait_for(lambda: scene.postgres_proxy.lost_replies > before, 5.0)
    return scene.done() if scene.postgres_proxy.lost_replies > before else None


@fault("database away during a checkpoint's row", DATABASE, DEPLOYED)
def checkpoint_committed(scene: Scene) -> Injection | None:
    """The row is committed, but who wrote it hears only that the connection is lost, and then nothing for a while."""
    note = scene.spring("checkpoint.committed", "lose_reply", role="training")
    if note is None:
        return None
    seconds = scene.rng.uniform(0.2, 2.0)
    scene.postgres_proxy.refuse(seconds)
    time.sleep(seconds)
    return scene.done(since=note["at"])


# A sequence counts beyond the transaction that is rolled back: so many updates fail, then no more.
FAILING = """
CREATE SEQUENCE IF NOT EXISTS faults_counted;
CREATE TABLE IF NOT EXISTS faults_wanted (until bigint);
CREATE OR REPLACE FUNCTION faults_fail() RETURNS trigger AS $$
BEGIN
  IF (SELECT until FROM faults_wanted) > nextval('faults_counted') THEN
    RAISE EXCEPTION 'could not serialize access (of the test)' USING ERRCODE = '40001';
  END IF;
  RETURN NULL;
END $$ LANGUAGE plpgsql;
DELETE FROM faults_wanted;
INSERT INTO faults_wanted VALUES (nextval('faults_counted') + 4);
DROP TRIGGER IF EXISTS faults_fail ON jobs;
CREATE TRIGGER faults_fail AFTER INSERT OR UPDATE OR DELETE ON jobs FOR EACH STATEMENT EXECUTE FUNCTION faults_fail();
"""


@fault("serialization failures", DATABASE, DEPLOYED)
def serialization_failure(scene: Scene) -> Injection | None:
    since = time.time()
    with contextlib.suppress(Exception):
        with scene.database.write() as session:
            session.execute(text("SET LOCAL lock_timeout = '5s'"))
            session.execute(text(FAILING))
        counted = "SELECT last_value >= (SELECT until FROM faults_wanted) FROM faults_counted"
        if scene.wait_for(lambda: any(row[0] for row in scene.rows(text(counted))), 5.0):
            return scene.done(since=since)
    return None


@fault("SQLite locked by another process for 3 s", DATABASE, EMBEDDED)
def sqlite_locked(scene: Scene) -> Injection | None:
    other = sqlite3.connect(scene.settings.home / "distillery.db", isolation_level=None, timeout=10)
    since = time.time()
    try:
        other.execute("BEGIN EXCLUSIVE")
        time.sleep(3.0)
        other.execute("ROLLBACK")
    except sqlite3.OperationalError:
        return None
    finally:
        other.close()
    return scene.done(since=since)
