"""What VMs were cloned from."""

from typing import Any

import peewee

_TABLE = """
CREATE TABLE "clone" (
    "vm" TEXT NOT NULL PRIMARY KEY,
    "name" TEXT NOT NULL,
    "source" TEXT NOT NULL,
    "snapshot" TEXT NOT NULL,
    "host" TEXT NOT NULL,
    "mode" TEXT NOT NULL,
    "tpm" TEXT NOT NULL,
    "operation" TEXT NOT NULL,
    "transaction" TEXT NOT NULL,
    "state" TEXT NOT NULL,
    "started" {bool} NOT NULL,
    "seeds" TEXT NOT NULL,
    "result" TEXT NOT NULL,
    "created_at" TEXT NOT NULL
);
CREATE INDEX "clone_source" ON "clone" ("source");
CREATE INDEX "clone_snapshot" ON "clone" ("snapshot");
"""


def up(_migrator: Any, db: peewee.Database) -> None:
    """Make the table, as SQLite or PostgreSQL writes it."""
    boolean = "INTEGER" if isinstance(db, peewee.SqliteDatabase) else "BOOLEAN"
    for statement in _TABLE.format(bool=boolean).split(";"):
        if statement.strip():
            db.execute_sql(statement)  # type: ignore[no-untyped-call]
