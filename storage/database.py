"""The database: engine, short transactions, and the database's own clock."""

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from pydantic_core import from_json
from sqlalchemy import Connection, Double, Engine, ExceptionContext, Table, create_engine, event, make_url
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import InternalError, OperationalError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase, Session
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

STATEMENT_SECONDS = 30
CONNECT_SECONDS = 5
SQLITE_WAIT_SECONDS = 15
IDLE_SECONDS = 30
"""After which PostgreSQL ends a transaction whose process does nothing in it: one that was frozen must not hold its
rows for longer than a lease (its default), which is when others may have its job."""


class now(FunctionElement[float]):  # noqa: N801 - reads as a SQL function
    """Seconds since 1970 by the database's clock: the one clock that leases and ages are measured with."""

    type = Double()
    inherit_cache = True


@compiles(now, "postgresql")
def _now_postgresql(element: now, compiler: SQLCompiler, **options: Any) -> str:
    return "CAST(EXTRACT(EPOCH FROM clock_timestamp()) AS DOUBLE PRECISION)"


@compiles(now, "sqlite")
def _now_sqlite(element: now, compiler: SQLCompiler, **options: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


def _connect_sqlite(connection: Any, record: object) -> None:
    connection.isolation_level = None  # transactions are begun by _begin_sqlite alone
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {SQLITE_WAIT_SECONDS * 1000}")  # before anything that may wait for a lock
    _use_wal(cursor)
    cursor.execute("PRAGMA synchronous = FULL")  # what was acknowledged survives a power cut
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _use_wal(cursor: sqlite3.Cursor) -> None:
    """Turn write-ahead logging on; two processes that do so at once do not wait for each other, as they should."""
    until = time.monotonic() + SQLITE_WAIT_SECONDS
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
        time.sleep(0.01)


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that reads first and writes later would fail when another writer came between.
    write = connection.get_execution_options().get("write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _say_lost(context: ExceptionContext) -> Exception | None:
    """PostgreSQL calls it an internal error that it ended a transaction for doing nothing: a lost connection."""
    error = context.original_exception
    if not context.is_disconnect or not isinstance(context.sqlalchemy_exception, InternalError):
        return None
    return OperationalError(context.statement, None, error, hide_parameters=True, connection_invalidated=True)


def read_json(text: str | bytes) -> Any:
    """A JSON column's value, by a parser that is faster than Python's own.

    It refuses half of a surrogate pair, which Python's writes and reads.
    """
    try:
        return from_json(text)
    except ValueError:
        return json.loads(text)


def _make_engine(url: str) -> Engine:
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        if parsed.database:
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(parsed, pool_size=20, max_overflow=40, hide_parameters=True, json_deserializer=read_json)
        event.listen(engine, "connect", _connect_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    if parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    engine = create_engine(
        parsed,
        pool_size=20,  # those beyond are opened anew each time, which costs the server a process
        max_overflow=20,
        hide_parameters=True,  # an error in the log must not carry a spec
        json_deserializer=read_json,
        pool_pre_ping=True,
        connect_args={
            "connect_timeout": CONNECT_SECONDS,
            "options": f"-c statement_timeout={STATEMENT_SECONDS * 1000} -c lock_timeout={STATEMENT_SECONDS * 1000} "
            f"-c idle_in_transaction_session_timeout={IDLE_SECONDS * 1000}",
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 20_000,
        },
    )
    event.listen(engine, "handle_error", _say_lost, retval=True)
    return engine


def insert_into(session: Session, table: type[DeclarativeBase]) -> postgresql.Insert | sqlite.Insert:
    """An INSERT that knows ON CONFLICT, which both databases write alike; on the table, as rows need no objects."""
    rows = cast(Table, table.__table__)
    return postgresql.insert(rows) if session.get_bind().dialect.name == "postgresql" else sqlite.insert(rows)


class Database:
    """One engine and its two kinds of short transaction.

    Args:
        before_write: called first in every transaction that writes; what it raises ends the transaction.
    """

    def __init__(self, url: str, before_write: Callable[[Session], None] | None = None) -> None:
        self.engine = _make_engine(url)
        self._before_write = before_write
        self._writer = self.engine.execution_options(write=True)
        self._looker = self.engine
        if self.engine.dialect.name == "postgresql":  # to begin and to end a transaction are two more round trips
            self._looker = self.engine.execution_options(isolation_level="AUTOCOMMIT")
        self._turn = threading.Lock() if self.engine.dialect.name == "sqlite" else None

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A read-only transaction."""
        with Session(self.engine, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def look(self) -> Iterator[Connection]:
        """For what is asked all the time: without the ORM, whose session costs as much as a short question, and each
        question by itself, as PostgreSQL's would be in one transaction, too."""
        with self._looker.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that commits when the block ends, and rolls back when it raises."""
        with self._in_turn(), Session(self._writer, expire_on_commit=False) as session, session.begin():
            if self._before_write is not None:
                self._before_write(session)
            yield session

    @contextmanager
    def _in_turn(self) -> Iterator[None]:
        """SQLite's writers try again and again at growing intervals: of many, some would starve until they fail."""
        if self._turn is None:
            yield
            return
        if not self._turn.acquire(timeout=SQLITE_WAIT_SECONDS):
            raise OperationalError("BEGIN IMMEDIATE", None, sqlite3.OperationalError("database is locked"))
        try:
            yield
        finally:
            self._turn.release()

    def close(self) -> None:
        self.engine.dispose()
