"""Frozen files that outlive their snapshot, files that a deletion has begun to write to, and operations that wait."""

from typing import Any

import peewee

_SQLITE = """
CREATE TABLE "volume_snapshot_new" (
    "id" INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    "snapshot_id" TEXT REFERENCES "snapshot" ("uuid") ON DELETE CASCADE,
    "vm_id" TEXT NOT NULL REFERENCES "vm" ("uuid") ON DELETE RESTRICT,
    "target" TEXT NOT NULL,
    "host" TEXT NOT NULL,
    "path" TEXT NOT NULL,
    "format" TEXT NOT NULL,
    "backing" TEXT,
    "virtual_size_bytes" INTEGER NOT NULL,
    "allocated_bytes" INTEGER NOT NULL,
    "fingerprint" TEXT NOT NULL,
    "hidden" INTEGER NOT NULL,
    "merged" INTEGER NOT NULL,
    "altered" INTEGER NOT NULL
);
INSERT INTO "volume_snapshot_new" SELECT "volume_snapshot"."id", "snapshot_id", "snapshot"."vm_id", "target", "host",
    "path", "format", "backing", "virtual_size_bytes", "allocated_bytes", "fingerprint", "hidden", "merged", 0
    FROM "volume_snapshot" JOIN "snapshot" ON "snapshot"."uuid" = "volume_snapshot"."snapshot_id";
DROP TABLE "volume_snapshot";
ALTER TABLE "volume_snapshot_new" RENAME TO "volume_snapshot";
CREATE INDEX "volume_snapshot_snapshot_id" ON "volume_snapshot" ("snapshot_id");
CREATE INDEX "volume_snapshot_path" ON "volume_snapshot" ("path");
CREATE UNIQUE INDEX "volume_snapshot_snapshot_id_target" ON "volume_snapshot" ("snapshot_id", "target");
"""
_POSTGRESQL = """
ALTER TABLE "volume_snapshot" ALTER COLUMN "snapshot_id" DROP NOT NULL;
ALTER TABLE "volume_snapshot" ADD COLUMN "vm_id" TEXT REFERENCES "vm" ("uuid") ON DELETE RESTRICT;
ALTER TABLE "volume_snapshot" ADD COLUMN "altered" BOOLEAN NOT NULL DEFAULT FALSE;
UPDATE "volume_snapshot" SET "vm_id" = (SELECT "vm_id" FROM "snapshot" WHERE "uuid" = "snapshot_id");
ALTER TABLE "volume_snapshot" ALTER COLUMN "vm_id" SET NOT NULL;
ALTER TABLE "volume_snapshot" ALTER COLUMN "altered" DROP DEFAULT;
"""
_BOTH = """
CREATE INDEX "volume_snapshot_vm_id" ON "volume_snapshot" ("vm_id");
ALTER TABLE "operation" ADD COLUMN "parked_until" TEXT;
"""


def up(_migrator: Any, db: peewee.Database) -> None:
    """Let a frozen file belong to its VM alone. SQLite cannot lift NOT NULL, so its table is made anew."""
    own = _SQLITE if isinstance(db, peewee.SqliteDatabase) else _POSTGRESQL
    for statement in (own + _BOTH).split(";"):
        if statement.strip():
            db.execute_sql(statement)  # type: ignore[no-untyped-call]
