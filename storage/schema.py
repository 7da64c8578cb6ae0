"""Whether the database's schema is this version's, and how it gets there (Alembic)."""

from functools import cache
from pathlib import Path
from typing import Literal

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, text
from sqlalchemy.orm import Session

from storage import upload_tables as _upload_tables  # noqa: F401 - else the metadata lacks them
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


@cache
def head() -> str:
    """This version's revision: that of the code that runs, though another version's files may lie there by now."""
    revision = ScriptDirectory(str(MIGRATIONS)).get_current_head()
    assert revision is not None
    return revision


def current(database: Database) -> str | None:
    """The database's revision; None where nothing was migrated yet."""
    with database.engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def check(session: Session) -> None:
    """Refuse to go on once somebody has migrated the database under this process: one small query.

    Raises:
        SchemaError: the schema is no longer this version's.
    """
    found = session.scalar(text("SELECT version_num FROM alembic_version"))
    if found != head():
        raise SchemaError(
            f"the database's schema went to revision {found} while this process, which needs {head()}, was running: "
            "start the version that the database belongs to"
        )


State = Literal["current", "empty", "behind", "ahead", "foreign"]


def state(database: Database) -> tuple[State, str | None]:
    """How the database's schema stands to this version's, and its revision; changes nothing."""
    tables, found = _tables(database), current(database)
    if found == head():
        return "current", found
    if found is None:
        return ("foreign" if tables else "empty"), None
    if found in _known():
        return "behind", found
    return ("ahead" if "jobs" in tables else "foreign"), found


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
