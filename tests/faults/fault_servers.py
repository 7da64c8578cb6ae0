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


@fault("Redis killed and started empty", BROKER, DEPLOYED)
def redis_emptied(scene: Scene) -> Injection | None:
    since = time.time()
    with scene.redis.lock:
        scene.redis.kill()
        time.sleep(scene.rng.uniform(0, 2))
        scene.redis.start()
    return scene.done(since=since)


@fault("Redis frozen", BROKER, DEPLOYED)
def redis_frozen(scene: Scene) -> Injection | None:
    since = time.time()
    with scene.redis.lock:
        scene.redis.freeze()
        time.sleep(scene.rng.uniform(1, 4))
        scene.redis.thaw()
    return scene.done(since=since)


@fault("connections to Redis cut", BROKER, DEPLOYED)
def redis_cut(scene: Scene) -> Injection | None:
    scene.redis_proxy.cut(scene.rng.choice((0.3, 1.0)))
    return scene.done()


@fault("connections to Redis half open", BROKER, DEPLOYED)
def redis_half_open(scene: Scene) -> Injection | None:
    since = time.time()
    seconds = scene.rng.uniform(1, 4)
    scene.redis_proxy.half_open(seconds)
    time.sleep(seconds)
    return scene.done(since=since)


@fault("Redis out of reach", BROKER, DEPLOYED)
def redis_refused(scene: Scene) -> Injection | None:
    since = time.time()
    seconds = scene.rng.uniform(1, 3)
    scene.redis_proxy.refuse(seconds)
    time.sleep(seconds)
    return scene.done(since=since)


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


@fault("PostgreSQL killed and started", DATABASE, DEPLOYED)
def postgres_killed(scene: Scene) -> Injection | None:
    since = time.time()
    with scene.postgres.lock:
        scene.postgres.kill()
        time.sleep(scene.rng.uniform(0, 2))
        scene.postgres.start()
    return scene.done(since=since)


@fault("PostgreSQL frozen", DATABASE, DEPLOYED)
def postgres_frozen(scene: Scene) -> Injection | None:
    since = time.time()
    with scene.postgres.lock:
        scene.postgres.freeze()
        time.sleep(scene.rng.uniform(0.5, 1.5))
        scene.postgres.thaw()
    return scene.done(since=since)


@fault("connections to PostgreSQL cut", DATABASE, DEPLOYED)
def postgres_cut(scene: Scene) -> Injection | None:
    scene.postgres_proxy.cut(scene.rng.choice((0.3, 1.0)))
    return scene.done()


@fault("connections ended by PostgreSQL", DATABASE, DEPLOYED)
def postgres_terminates(scene: Scene) -> Injection | None:
    with contextlib.suppress(Exception):  # it may be down just now
        scene.postgres.cut_connections(scene.postgres_name, scene.rng.choice((0.3, 1.0)), scene.rng)
        return scene.done()
    return None


@fault("connections to PostgreSQL half open", DATABASE, DEPLOYED)
def postgres_half_open(scene: Scene) -> Injection | None:
    since = time.time()
    seconds = scene.rng.uniform(0.5, 2)
    scene.postgres_proxy.half_open(seconds)
    time.sleep(seconds)
    return scene.done(since=since)


@fault("PostgreSQL out of reach", DATABASE, DEPLOYED)
def postgres_refused(scene: Scene) -> Injection | None:
    since = time.time()
    seconds = scene.rng.uniform(0.5, 2)
    scene.postgres_proxy.refuse(seconds)
    time.sleep(seconds)
    return scene.done(since=since)


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
