"""The fault suite's own servers and proxy do what its faults rely on: real PostgreSQL, real Redis, real sockets."""

import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, TypeVar

import psutil
import psycopg
import pytest
import redis

from tests.faults.proxy import Proxy
from tests.faults.servers import MissingServer, Postgres, Redis

Server = TypeVar("Server", bound=Postgres | Redis)


def own(kind: type[Server], folder: Path) -> Server:
    """A server that runs; skips without its program, or fails under CI=true."""
    try:
        return kind(folder)
    except MissingServer as error:
        if os.environ.get("CI") == "true":
            pytest.fail(str(error))
        pytest.skip(str(error))


def connect(url: str, **values: Any) -> psycopg.Connection[tuple[Any, ...]]:
    return psycopg.connect(url, **{"connect_timeout": 5, "autocommit": True} | values)


def eventually(true: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not become so in time"
        time.sleep(0.02)


def left_of(pids: list[int]) -> list[int]:
    """Those that still run; a process that init has yet to reap does not."""
    running = []
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                running.append(pid)
    return running


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    server = own(Postgres, tmp_path_factory.mktemp("postgres"))
    yield server
    server.close()


@pytest.fixture(scope="module")
def database(postgres: Postgres) -> str:
    """A database with the table `rows`."""
    url = postgres.create_database("faults")
    with connect(url) as connection:
        connection.execute("CREATE TABLE rows (id int)")
    return url


@pytest.fixture
def url(postgres: Postgres, database: str) -> str:
    """The database, its table empty."""
    postgres.start()  # it runs, unless the test before failed halfway
    with connect(database) as connection:
        connection.execute("TRUNCATE rows")
    return database


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    server = own(Redis, tmp_path_factory.mktemp("redis"))
    yield server
    server.close()


@pytest.fixture
def proxy(postgres: Postgres, caplog: pytest.LogCaptureFixture) -> Iterator[Proxy]:
    with Proxy("127.0.0.1", postgres.port, random.Random(0)) as proxy:
        yield proxy
    assert [record.getMessage() for record in caplog.get_records("call") if record.name == "asyncio"] == []


def shared_memory() -> list[str]:
    """The ids of the machine's shared memory segments."""
    return [line.split()[1] for line in Path("/proc/sysvipc/shm").read_text().splitlines()]


def rows(url: str) -> list[int]:
    with connect(url) as connection:
        return [row[0] for row in connection.execute("SELECT id FROM rows ORDER BY id")]


def test_postgres_runs_without_root_and_commits_durably(postgres: Postgres, url: str) -> None:
    assert all(psutil.Process(pid).uids().effective != 0 for pid in postgres.pids())
    with connect(url) as connection:
        for name in ("fsync", "synchronous_commit", "full_page_writes"):
            assert connection.execute(f"SHOW {name}").fetchone() == ("on",)


def test_committed_rows_survive_a_power_cut(postgres: Postgres, url: str) -> None:
    before = postgres.pids()
    segment = (postgres.data / "postmaster.pid").read_text().splitlines()[6].split()[1]
    assert segment in shared_memory()
    with closing(connect(url)) as done, closing(connect(url, autocommit=False)) as undone:
        undone.execute("INSERT INTO rows VALUES (0)")
        done.execute("INSERT INTO rows SELECT generate_series(1, 1000)")
        postgres.kill()
        for connection in (done, undone):
            with pytest.raises(psycopg.OperationalError) as cut:
                connection.execute("SELECT 1")
            assert cut.value.sqlstate is None  # not a word from the server
    assert not postgres.running
    assert left_of(before) == []
    assert segment not in shared_memory()
    with pytest.raises(psycopg.OperationalError, match="refused"):
        connect(url)
    postgres.start()
    assert rows(url) == list(range(1, 1001))


def test_postgres_starts_again_where_its_parent_died_alone(postgres: Postgres, url: str) -> None:
    """The backends hold the old shared memory, for which PostgreSQL refuses to start."""
    with connect(url) as connection:
        connection.execute("INSERT INTO rows VALUES (1)")
        [main] = [pid for pid in postgres.pids() if psutil.Process(pid).ppid() == os.getpid()]
        for pid in set(postgres.pids()) - {main}:
            psutil.Process(pid).suspend()  # or they notice, and end
        psutil.Process(main).kill()
        eventually(lambda: not postgres.running)
        postgres.start()
    assert rows(url) == [1]


def test_postgres_restarts_in_either_mode(postgres: Postgres, url: str) -> None:
    for mode in ("fast", "immediate"):
        with connect(url) as connection:
            postgres.restart(mode)
            with pytest.raises(psycopg.OperationalError):
                connection.execute("SELECT 1")
        assert rows(url) == []


def test_a_frozen_postgres_lets_connects_time_out_until_thawed(postgres: Postgres, url: str) -> None:
    with connect(url) as connection:
        postgres.freeze()
        try:
            assert {psutil.Process(pid).status() for pid in postgres.pids()} == {psutil.STATUS_STOPPED}
            with pytest.raises(psycopg.errors.ConnectionTimeout):
                connect(url, connect_timeout=2)
        finally:
            postgres.thaw()
        assert connection.execute("SELECT 1").fetchone() == (1,)
        began = time.monotonic()
        postgres.freeze(0.3)
        assert time.monotonic() - began >= 0.3
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_postgres_cuts_a_share_of_a_databases_connections(postgres: Postgres, url: str) -> None:
    connections = [connect(url) for _ in range(10)]
    assert postgres.cut_connections("faults", 0.5, random.Random(1)) == 5
    alive = 0
    for connection in connections:
        with suppress(psycopg.OperationalError):
            alive += connection.execute("SELECT 1").fetchone() == (1,)
        connection.close()
    assert alive == 5


def test_redis_comes_back_empty(broker: Redis) -> None:
    client = redis.Redis.from_url(broker.url(), socket_timeout=5)
    client.set("a", "b")
    before = broker.pids()
    broker.restart_empty()
    assert left_of(before) == []
    assert client.get("a") is None
    broker.freeze()
    hasty = redis.Redis.from_url(broker.url(), socket_timeout=0.3, retry=None)
    with pytest.raises(redis.TimeoutError):
        hasty.ping()
    broker.stop()  # a frozen one as well
    with pytest.raises(redis.ConnectionError, match="refused"):
        hasty.ping()
    broker.start()
    assert client.ping()
    client.close()
    hasty.close()


@pytest.mark.parametrize("kind", [Postgres, Redis])
def test_a_closed_server_leaves_no_process_and_no_file(kind: type[Postgres] | type[Redis], tmp_path: Path) -> None:
    server = own(kind, tmp_path)
    pids = server.pids()
    assert left_of(pids)
    server.freeze()
    server.close()
    assert left_of(pids) == []
    assert server.pids() == []
    assert not server.folder.exists()
    assert list(tmp_path.iterdir()) == []
    server.close()  # again does nothing


def test_a_missing_program_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingServer, match="apt-get install redis-server"):
        Redis(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_proxy_passes_what_psycopg_and_redis_say(proxy: Proxy, url: str, broker: Redis) -> None:
    long = "x" * 3_000_000
    with connect(proxy.url(url)) as connection:
        assert connection.execute("SELECT %s", (long,)).fetchone() == (long,)
        assert proxy.connections == 1
    eventually(lambda: proxy.connections == 0)
    with Proxy("127.0.0.1", broker.port) as other:
        client = redis.Redis.from_url(other.url(broker.url()), socket_timeout=5)
        client.set("long", long)
        assert client.get("long") == long.encode()
        client.close()


def test_the_proxy_keeps_the_rest_of_a_url() -> None:
    with Proxy("127.0.0.1", 1) as proxy:
        at = f"127.0.0.1:{proxy.port}"
        assert proxy.url("postgresql+psycopg://me:p%40ss@db:1/x?sslmode=disable") == (
            f"postgresql+psycopg://me:p%40ss@{at}/x?sslmode=disable"
        )
        assert proxy.url("redis://127.0.0.1/3") == f"redis://{at}/3"


def test_many_connections_pass_at_once_and_a_share_is_cut(proxy: Proxy, url: str, postgres: Postgres) -> None:
    connections = [connect(proxy.url(url)) for _ in range(100)]
    assert proxy.cut(0.3) == 30
    lost = 0
    for connection in connections:
        try:
            connection.execute("SELECT 1")
        except psycopg.OperationalError:
            lost += 1
        connection.close()
    assert lost == 30
    eventually(lambda: proxy.connections == 0)
    with connect(postgres.url()) as direct:  # the server's side is closed as well
        sessions = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'faults'"
        eventually(lambda: direct.execute(sessions).fetchone() == (0,))


def test_a_refusing_proxy_cuts_and_refuses_until_its_time_is_over(proxy: Proxy, url: str) -> None:
    with connect(proxy.url(url)) as connection:
        proxy.refuse(0.5)
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    with pytest.raises(psycopg.OperationalError, match="refused"):
        connect(proxy.url(url))
    time.sleep(0.6)
    assert rows(proxy.url(url)) == []
    proxy.refuse(60)
    proxy.heal()
    assert rows(proxy.url(url)) == []


def test_a_server_that_is_away_resets_the_proxys_clients(broker: Redis) -> None:
    with Proxy("127.0.0.1", broker.port) as proxy:
        client = redis.Redis.from_url(proxy.url(broker.url()), socket_timeout=5, retry=None)
        broker.kill()
        with pytest.raises(redis.ConnectionError):
            client.ping()
        broker.start()
        assert client.ping()
        client.close()


def test_half_open_connections_are_silent_and_then_reset(broker: Redis) -> None:
    with Proxy("127.0.0.1", broker.port) as proxy:
        url = proxy.url(broker.url())
        impatient, patient, late = (
            redis.Redis.from_url(url, socket_timeout=seconds, retry=None) for seconds in (0.3, 5, 0.3)
        )
        direct = redis.Redis.from_url(broker.url(), socket_timeout=5)
        direct.delete("said")
        impatient.ping(), patient.ping()
        began = time.monotonic()
        proxy.half_open(1.0)
        for client in (impatient, late):  # a connection from before and one from meanwhile
            with pytest.raises(redis.TimeoutError):
                client.set("said", 1)
        with pytest.raises(redis.ConnectionError, match="reset"):
            patient.set("said", 1)
        assert time.monotonic() - began >= 1.0
        assert direct.get("said") is None
        assert patient.ping()
        assert late.ping()
        for client in (impatient, patient, late, direct):
            client.close()


def test_chunks_are_delayed_for_a_while(proxy: Proxy, url: str) -> None:
    with connect(proxy.url(url)) as connection:
        proxy.delay(0.2, 60)
        began = time.monotonic()
        connection.execute("SELECT 1")
        assert time.monotonic() - began >= 0.4  # there and back
        proxy.delay(30, 0.1)
        time.sleep(0.3)
        began = time.monotonic()
        connection.execute("SELECT 1")
        assert time.monotonic() - began < 20


def insert(url: str, number: int) -> bool:
    """Insert a row as the service does, and whether the client heard that it is committed."""
    connection = connect(url, autocommit=False)
    try:
        connection.execute("INSERT INTO rows VALUES (%s)", (number,))
        connection.commit()
        return True
    except psycopg.OperationalError:
        return False
    finally:
        connection.close()


def test_lost_replies_to_commits_that_are_done(proxy: Proxy, url: str) -> None:
    proxy.lose_commit_reply(2)
    heard = [insert(proxy.url(url), number) for number in range(5)]
    assert heard == [False, False, True, True, True]
    assert proxy.lost_replies == 2
    assert rows(url) == [0, 1, 2, 3, 4]
    assert proxy.disarm() == 0


def test_exactly_the_asked_replies_are_lost_among_reads_rollbacks_and_prepared_writes(proxy: Proxy, url: str) -> None:
    reader, writer = (connect(proxy.url(url), autocommit=False) for _ in range(2))
    for number in range(10):  # from the fifth on psycopg prepares it: its text is sent no more
        writer.execute("INSERT INTO rows VALUES (%s)", (number,))
        writer.commit()
    proxy.lose_commit_reply()
    reader.execute("SELECT * FROM rows")
    reader.commit()
    writer.execute("INSERT INTO rows VALUES (%s)", (10,))
    writer.rollback()
    writer.autocommit = True
    writer.execute("INSERT INTO rows VALUES (%s)", (11,))
    writer.autocommit = False
    writer.execute("SELECT 1")
    writer.commit()
    assert proxy.lost_replies == 0
    writer.execute("INSERT INTO rows VALUES (%s)", (12,))
    with pytest.raises(psycopg.OperationalError):
        writer.commit()
    reader.execute("SELECT 1")
    reader.commit()
    assert proxy.lost_replies == 1
    assert rows(url) == [*range(10), 11, 12]
    proxy.lose_commit_reply(only_writes=False)
    reader.execute("SELECT 1")
    with pytest.raises(psycopg.OperationalError):
        reader.commit()
    assert proxy.lost_replies == 2


def test_a_commit_that_rolled_back_is_not_lost_and_a_disarmed_proxy_loses_none(proxy: Proxy, url: str) -> None:
    proxy.lose_commit_reply()
    with connect(proxy.url(url), autocommit=False) as connection:
        connection.execute("INSERT INTO rows VALUES (1)")
        with pytest.raises(psycopg.errors.UndefinedTable):
            connection.execute("SELECT * FROM nothing")
        connection.commit()  # PostgreSQL answers it with ROLLBACK
    assert proxy.lost_replies == 0
    assert proxy.disarm() == 1
    assert insert(proxy.url(url), 2)
    assert rows(url) == [2]


def test_a_closed_proxy_gives_its_port_back_and_ends_its_thread(postgres: Postgres, url: str) -> None:
    proxy = Proxy("127.0.0.1", postgres.port)
    with connect(proxy.url(url)) as connection:
        proxy.half_open(60)
        proxy.close()
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    assert not proxy._thread.is_alive()
    with pytest.raises(psycopg.OperationalError, match="refused"):
        connect(proxy.url(url))
    proxy.close()  # again does nothing
