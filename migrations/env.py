"""Alembic's environment: runs the migrations on the engine it is given, one at a time."""

from alembic import context
from sqlalchemy import Engine, text

from storage.tables import Base

LOCK = 7_301_402_118


def run() -> None:
    """Run the migrations in one transaction, so that a failed one leaves nothing behind."""
    engine: Engine = context.config.attributes["engine"]
    with engine.execution_options(write=True).connect() as connection, connection.begin():
        if connection.dialect.name == "postgresql":  # two API processes may start at once
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
        context.configure(
            connection=connection,
            target_metadata=Base.metadata,
            render_as_batch=True,
            compare_type=True,
            transaction_per_migration=False,
        )
        context.run_migrations()


run()
