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
    for column, at in (("synced_seq", "synced_at"), ("dirty_seq", "dirty_since")):
        both = 'SELECT "synced_at" AS "at" FROM "host_file" UNION SELECT "dirty_since" AS "at" FROM "host_file"'
        earlier = f'SELECT COUNT(*) FROM ({both}) AS "known" WHERE "known"."at" <= "host_file"."{at}"'  # noqa: S608 - no value is pasted in
        db.execute_sql(f'UPDATE "host_file" SET "{column}" = ({earlier})')  # type: ignore[no-untyped-call]  # noqa: S608 - no value is pasted in
