"""Whether the database's schema is this version's, and how it gets there (Alembic)."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect

from storage.database import Database
from storage.errors import SchemaError

MIGRATIONS = Path(__file__).parent.parent / "migrations"


def alembic_config(database: Database) -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["engine"] = database.engine
    return config


def migrate(database: Database, revision: str = "head") -> None:
    """Bring the schema to `revision`; on an empty database this creates it."""
    command.upgrade(alembic_config(database), revision)


def downgrade(database: Database, revision: str) -> None:
    command.downgrade(alembic_config(database), revision)


def head() -> str:
    """This version's revision."""
    revision = ScriptDirectory(str(MIGRATIONS)).get_current_head()
    assert revision is not None
    return revision


def current(database: Database) -> str | None:
    """The database's revision; None where nothing was migrated yet."""
    with database.engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def ensure(database: Database) -> None:
    """Create the schema of an empty database, or check that it is this version's.

    Raises:
        SchemaError: says what is there, what is needed, and the command that mends it.
    """
    found, needed = current(database), head()
    if found == needed:
        return
    if found is None and not set(inspect(database.engine).get_table_names()) - {"alembic_version"}:
        migrate(database)
        return
    raise SchemaError(
        f"the database's schema is at revision {found or 'none'}, this version needs {needed}: "
        "run `distillery migrate` (after a backup), or start the version that the database belongs to"
    )
