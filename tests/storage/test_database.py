"""The database away, frozen or busy: clear errors, soon."""

import contextlib
import json
import socket
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.pq import TransactionStatus
from sqlalchemy import select, text
from sqlalchemy.exc import OperationalError

from storage import database as module
from storage import schema
from storage.database import Database, now, read_json


def test_nothing_listens():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    database = Database(f"postgresql://nobody@127.0.0.1:{port}/none")
    with pytest.raises(OperationalError, match="refused"):
        schema.ensure(database)
    database.close()


def test_a_frozen_server_is_given_up(monkeypatch):
    monkeypatch.setattr(module, "CONNECT_SECONDS", 2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        database = Database(f"postgresql://nobody@127.0.0.1:{server.getsockname()[1]}/none")
        started = time.monotonic()
        with pytest.raises(OperationalError, match="timeout"):
            schema.ensure(database)
        assert time.monotonic() - started < 5
        database.close()


def test_a_cut_connection_is_replaced(database):
    if database.engine.dialect.name != "postgresql":
        return  # SQLite has no connection to cut
    with database.read() as session:
        pid = session.scalar(text("SELECT pg_backend_pid()"))
    with database.engine.connect() as other, database.engine.connect() as killer:
        killer.execute(text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = :pid"), {"pid": pid})
        other.close()
    with database.read() as session:
        assert session.scalar(text("SELECT 1")) == 1


def test_a_transaction_whose_process_does_nothing_holds_its_rows_for_a_bounded_time(database, jobs, monkeypatch):
    if database.engine.dialect.name != "postgresql":
        pytest.skip("SQLite ends nobody's transaction")
    monkeypatch.setattr(module, "IDLE_SECONDS", 1)
    frozen = Database(database.engine.url.render_as_string(hide_password=False))
    job_id = jobs.submit()

    def freeze():
        with frozen.write() as session:
            session.execute(text("UPDATE jobs SET priority = 5"))
            begun = time.monotonic()
            jobs.set(job_id, priority=7)  # waits for the row
            assert 0.5 < time.monotonic() - begun < 20
            session.execute(text("SELECT 1"))

    with pytest.raises(OperationalError, match="idle-in-transaction") as lost:
        freeze()
    assert lost.value.connection_invalidated
    assert jobs.get(job_id).priority == 7
    with frozen.read() as session:
        assert session.scalar(text("SELECT 1")) == 1
    frozen.close()


def test_a_write_is_all_or_nothing_and_a_read_writes_nothing(database, jobs):
    job_id = jobs.submit()
    with contextlib.suppress(KeyError), database.write() as session:
        session.execute(text("UPDATE jobs SET priority = 5"))
        raise KeyError
    with database.read() as session:
        session.execute(text("UPDATE jobs SET priority = 7"))
    assert jobs.get(job_id).priority == 0


def test_a_look_has_no_transaction_around_it(database):
    """That would be two more round trips to the server."""
    if database.engine.dialect.name != "postgresql":
        pytest.skip("SQLite makes no round trips")
    with database.look() as connection:
        assert connection.scalar(select(now())) > 0
        assert connection.connection.driver_connection.info.transaction_status == TransactionStatus.IDLE


def test_the_clock(database):
    for _ in range(3):
        with database.read() as session:
            assert abs(session.scalar(select(now())) - time.time()) < 2


def test_a_folder_without_room_for_a_database(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises((NotADirectoryError, FileExistsError)):
        Database(f"sqlite:///{tmp_path}/file/a.db")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec=None)),
    lambda each: st.lists(each, max_size=4) | st.dictionaries(st.text(max_size=8), each, max_size=4),
    max_leaves=12,
)


@given(VALUES)
def test_json_is_read_as_python_reads_it(value):
    """To the last bit of a float, half a surrogate pair and numbers of any length among it."""
    written = json.dumps(value)
    found = read_json(written)
    assert found == value
    assert json.dumps(found) == written
    if written.isascii():
        assert read_json(written.encode()) == value
