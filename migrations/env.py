"""Alembic's environment: runs the migrations on the engine it is given, one at a time."""

from collections.abc import Iterator
from contextlib import contextmanager

from alembic import context
from sqlalchemy import Connection, Engine, text

from storage.tables import Base

LOCK = 7_301_402_118


def run() -> None:
    """Run the migrations in one transaction, so that a failed one leaves nothing behind."""
    engine: Engine = context.config.attributes["engine"]
    with engine.execution_options(write=True).connect() as connection, _prepared(connection), connection.begin():
        if connection.dialect.name == "postgresql":
            _take_turn(connection)
        context.configure(
            connection=connection,
            target_metadata=Base.metadata,
            render_as_batch=True,
            compare_type=True,
            transaction_per_migration=False,
        )
        context.run_migrations()


def _take_turn(connection: Connection) -> None:
    """Wait for other migrations (two API processes may start at once), and for who writes.

    Who has checked the version (`storage.schema.check`) holds a lock on its table until the commit: nothing that was
    checked against the old version is written under the new schema, and who checks now is told the new version.
    """
    for limit in ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"):
        connection.execute(text(f"SET LOCAL {limit} = 0"))
    connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
    if connection.scalar(text("SELECT to_regclass('alembic_version')")) is not None:
        connection.execute(text("LOCK TABLE alembic_version IN ACCESS EXCLUSIVE MODE"))


@contextmanager
def _prepared(connection: Connection) -> Iterator[None]:
    """SQLite alters a table by copying and dropping it, which with foreign keys on empties its children."""
    if connection.dialect.name != "sqlite":
        yield
        return
    driver = connection.connection.cursor()  # the driver's own: SQLAlchemy would begin a transaction
    driver.execute("PRAGMA foreign_keys = OFF")
    try:
        yield
    finally:
        driver.execute("PRAGMA foreign_keys = ON")
        driver.close()


run()
