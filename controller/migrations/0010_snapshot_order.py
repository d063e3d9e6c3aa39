"""The order in which snapshots were taken, where their dates told it.

The frozen files of those that there are were numbered as they came, so they tell it too.
"""

from typing import Any

import peewee

_ORDERED = """
SELECT "uuid" FROM "snapshot" ORDER BY
    (SELECT MIN("id") FROM "volume_snapshot" WHERE "snapshot_id" = "snapshot"."uuid"), "created_at", "uuid"
"""


def up(_migrator: Any, db: peewee.Database) -> None:
    """Add the column and number what is there."""
    sqlite = isinstance(db, peewee.SqliteDatabase)
    integer, value = ("INTEGER", "?") if sqlite else ("BIGINT", "%s")
    db.execute_sql(f'ALTER TABLE "snapshot" ADD COLUMN "seq" {integer} NOT NULL DEFAULT 0')  # type: ignore[no-untyped-call]
    numbered = f'UPDATE "snapshot" SET "seq" = {value} WHERE "uuid" = {value}'  # noqa: S608 - a placeholder is pasted in
    for seq, (uuid,) in enumerate(db.execute_sql(_ORDERED).fetchall(), 1):  # type: ignore[no-untyped-call]
        db.execute_sql(numbered, (seq, uuid))  # type: ignore[no-untyped-call]
