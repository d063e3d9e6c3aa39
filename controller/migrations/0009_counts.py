"""Counts where times were compared that another clock, or a wrong one, may have given.

An operation's owner is known to live by a count that it raises; copies of host files, and the starts that make them
old, are in the order in which they were recorded. What is recorded already keeps the order of its times.
"""

from typing import Any

import peewee
from playhouse.migrate import migrate


def up(migrator: Any, db: peewee.Database) -> None:
    """Exchange and add the columns."""
    for column in ("synced_seq", "dirty_seq"):
        db.execute_sql(f'ALTER TABLE "host_file" ADD COLUMN "{column}" INTEGER NOT NULL DEFAULT 0')  # type: ignore[no-untyped-call]
    db.execute_sql('ALTER TABLE "operation" ADD COLUMN "beat" INTEGER NOT NULL DEFAULT 0')  # type: ignore[no-untyped-call]
    migrate(migrator.drop_column("operation", "lease_until"))  # SQLite below 3.35 (RHEL 9) has no DROP COLUMN
    _number(db)


def _number(db: peewee.Database) -> None:
    """Give each time its place among all of them. One pass: a subquery for each row takes minutes of a large fleet,
    which PostgreSQL is not given for a statement, nor the service for its start.
    """
    rows: list[tuple[int, str | None, str | None]] = db.execute_sql(  # type: ignore[no-untyped-call]
        'SELECT "id", "synced_at", "dirty_since" FROM "host_file"'
    ).fetchall()
    known = sorted({at for _, *times in rows for at in times if at is not None})
    places: dict[str | None, int] = {at: place for place, at in enumerate(known, 1)}
    value = "?" if isinstance(db, peewee.SqliteDatabase) else "%s"
    numbered = f'UPDATE "host_file" SET "synced_seq" = {value}, "dirty_seq" = {value} WHERE "id" = {value}'  # noqa: S608 - placeholders are pasted in
    for key, synced_at, dirty_since in rows:
        db.execute_sql(numbered, (places.get(synced_at, 0), places.get(dirty_since, 0), key))  # type: ignore[no-untyped-call]
