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
    """Bring the schema to `revision`; on an empty database this creates it.

    Raises:
        SchemaError: the database is a later version's, or another program's.
    """
    _refuse_strangers(database)
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
        SchemaError: says what is there, what is needed, and what mends it.
    """
    if current(database) is None and not _tables(database):
        migrate(database)
    found = current(database)  # looked up again: another process may have migrated meanwhile
    if found == head():
        return
    _refuse_strangers(database)
    raise SchemaError(
        f"the database's schema is at revision {found}, this version needs {head()}: "
        "run `distillery migrate` (after a backup)"
    )


def _refuse_strangers(database: Database) -> None:
    """A schema that this version cannot migrate: a later version's, or of another program."""
    tables, found = _tables(database), current(database)  # in this order: another process may be migrating
    if tables and found is None:
        raise SchemaError(
            f"the database holds tables that are not Distillery's ({', '.join(sorted(tables)[:3])}): "
            "give it a database of its own"
        )
    if found is not None and found not in _known():
        raise SchemaError(
            f"the database's schema is at revision {found}, which this version (at {head()}) does not know: "
            "start the version that the database belongs to"
        )


def _known() -> set[str]:
    return {script.revision for script in ScriptDirectory(str(MIGRATIONS)).walk_revisions()}


def _tables(database: Database) -> set[str]:
    return set(inspect(database.engine).get_table_names()) - {"alembic_version"}
