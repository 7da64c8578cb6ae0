"""The schema: up, down, without drift, and never another program's."""

import sqlite3
import subprocess
import sys
import threading

import pytest
from alembic import op
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect, text

from storage import schema
from storage.database import Database
from storage.errors import SchemaError
from storage.tables import Base


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/deep/er/a.db"
    return request.getfixturevalue("empty_postgres")


@pytest.fixture
def empty(url):
    database = Database(url)
    yield database
    database.close()


def tables(database):
    return set(inspect(database.engine).get_table_names())


def run(database, statement):
    with database.write() as session:
        session.execute(text(statement))


def test_up_without_drift_and_down_and_up_again(empty):
    schema.ensure(empty)
    assert schema.current(empty) == schema.head()
    assert tables(empty) == {*Base.metadata.tables, "alembic_version"}
    with empty.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, Base.metadata) == []
    schema.downgrade(empty, "base")
    assert tables(empty) == {"alembic_version"}
    assert schema.current(empty) is None
    schema.migrate(empty)
    schema.ensure(empty)
    assert schema.current(empty) == schema.head()


def test_migrating_twice_keeps_the_rows(empty):
    schema.ensure(empty)
    run(empty, "INSERT INTO workers VALUES ('w', 'h', 1, 'cpu', 'n', 1, '1', 'idle', NULL, 1.0, 1.0, 0.0, 1)")
    schema.ensure(empty)
    schema.migrate(empty)
    with empty.read() as session:
        assert session.scalar(text("SELECT count(*) FROM workers")) == 1


START = """
import sys
from storage import schema
from storage.database import Database

database = Database(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
schema.ensure(database)
print(schema.current(database))
"""


def test_two_processes_that_start_at_once(url):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([sys.executable, "-c", START, url], **pipes) for _ in range(2)]
    try:
        assert [process.stdout.readline() for process in processes] == ["ready\n"] * 2
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        ends = [process.communicate(timeout=60) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [out for out, _ in ends] == [f"{schema.head()}\n"] * 2, [error for _, error in ends]


def test_a_migration_waits_for_who_checked_the_version(empty):
    """On PostgreSQL a writer that had seen the old version wrote under the new schema."""
    schema.ensure(empty)
    refused = []

    def come_late():
        try:
            with empty.write() as session:
                schema.check(session)
        except SchemaError as error:
            refused.append(error)

    migrating = threading.Thread(target=schema.downgrade, args=(empty, "0002"))
    late = threading.Thread(target=come_late)
    with empty.write() as session:
        schema.check(session)
        migrating.start()
        migrating.join(1.0)
        assert migrating.is_alive()
        if empty.engine.dialect.name == "postgresql":  # SQLite's writers wait where they begin, in no order
            late.start()
            late.join(0.3)
            assert late.is_alive()
        session.execute(text("INSERT INTO workers SELECT 'w', 'h', 1, 'cpu', 'n', 1, '1', 'idle', NULL, 1, 1, 0, 1"))
    migrating.join(20)
    assert schema.current(empty) == "0002"
    if late.ident is not None:
        late.join(20)
        assert "went to revision 0002" in str(refused[0])


def test_a_later_version_s_database(empty):
    schema.ensure(empty)
    run(empty, "UPDATE alembic_version SET version_num = '9999'")
    before = tables(empty)
    for act in (schema.ensure, schema.migrate):
        with pytest.raises(
            SchemaError, match=r"at revision 9999, which this version .* does not know: start the version"
        ):
            act(empty)
    assert tables(empty) == before


def test_an_older_version_s_database(empty):
    schema.migrate(empty, "0001")
    with pytest.raises(SchemaError, match=r"at revision 0001, this version needs 000\d: run `distillery migrate`"):
        schema.ensure(empty)
    schema.migrate(empty)
    schema.ensure(empty)


def test_another_program_s_database(empty):
    run(empty, "CREATE TABLE customers (id integer)")
    for act in (schema.ensure, schema.migrate):
        with pytest.raises(SchemaError, match=r"not Distillery's \(customers\): give it a database of its own"):
            act(empty)
    assert tables(empty) == {"customers"}


def test_a_migration_that_fails_leaves_nothing(empty, monkeypatch):
    def broken(*_args, **_values):
        raise RuntimeError("the disk is full")

    monkeypatch.setattr(op, "drop_table", broken)
    monkeypatch.setattr(op, "batch_alter_table", broken)  # the first table is made by then
    with pytest.raises(RuntimeError, match="full"):
        schema.ensure(empty)
    assert tables(empty) - {"alembic_version"} == set()
    assert schema.current(empty) is None


def test_foreign_keys_are_off_while_sqlite_migrates_and_on_again_after(tmp_path):
    """SQLite alters a table by dropping a copy: with foreign keys on, that would empty the tables below it."""
    database = Database(f"sqlite:///{tmp_path}/a.db")
    schema.ensure(database)
    with database.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
    database.close()


def test_a_file_that_is_no_database(tmp_path):
    (tmp_path / "a.db").write_text("hello " * 1000)
    database = Database(f"sqlite:///{tmp_path}/a.db")
    with pytest.raises(Exception, match="file is not a database"):
        schema.ensure(database)
    database.close()


def test_a_writer_waits_for_another_program_s_lock(tmp_path):
    database = Database(f"sqlite:///{tmp_path}/a.db")
    schema.ensure(database)
    other = sqlite3.connect(tmp_path / "a.db", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    threading.Timer(0.5, lambda: other.execute("COMMIT")).start()
    run(database, "DELETE FROM workers")
    other.close()
    database.close()
