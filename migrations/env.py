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
            connection.execute(text("SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0"))
            # two API processes may start at once
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
        context.configure(
            connection=connection,
            target_metadata=Base.metadata,
            render_as_batch=True,
            compare_type=True,
            transaction_per_migration=False,
        )
        context.run_migrations()


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
