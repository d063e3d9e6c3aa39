"""The controller's own UUID, by which an agent tells it from another controller."""

from typing import Any
from uuid import uuid4

import peewee


def up(_migrator: Any, db: peewee.Database) -> None:
    """Make the table and its one row."""
    db.execute_sql('CREATE TABLE "identity" ("uuid" TEXT NOT NULL PRIMARY KEY)')  # type: ignore[no-untyped-call]
    mark = "?" if isinstance(db, peewee.SqliteDatabase) else "%s"
    db.execute_sql(f'INSERT INTO "identity" ("uuid") VALUES ({mark})', (str(uuid4()),))  # type: ignore[no-untyped-call]  # noqa: S608 - no value is pasted in
