"""The first release's database, brought to this version."""

from typing import Any

from sqlalchemy import MetaData, select

from storage import schema
from storage.database import Database
from storage.settings import Settings
from tests.versions import NAMES, first_release

__all__ = ["first_release"]

Rows = dict[str, tuple[list[str], list[str]]]


def rows(database: Database, columns: Rows | None = None) -> Rows:
    """Columns and rows of every table; of `columns` those alone."""
    found: Rows = {}
    with database.engine.connect() as connection:
        metadata = MetaData()
        metadata.reflect(connection)
        for table in metadata.sorted_tables:
            if table.name == "alembic_version" or (columns is not None and table.name not in columns):
                continue
            names = columns[table.name][0] if columns is not None else sorted(table.columns.keys())
            read: Any = connection.execute(select(*(table.columns[name] for name in names)))
            found[table.name] = (names, sorted(map(repr, read)))
    return found


def test_every_row_is_kept_on_the_way_up_and_down(first_release: Settings) -> None:
    database = Database(first_release.database)
    try:
        assert schema.current(database) == "0001"
        before = rows(database)
        assert {len(before[name][1]) for name in ("jobs", "idempotency_keys")} == {len(NAMES)}
        assert all(before[name][1] for name in ("artifacts", "attempts", "checkpoints", "events", "job_labels"))
        assert len(before["metrics"][1]) > 100
        schema.migrate(database)
        schema.ensure(database)
        assert rows(database, before) == before
        schema.downgrade(database, "0001")
        assert rows(database) == before
    finally:
        database.close()
