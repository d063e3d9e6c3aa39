"""Retention policies."""

from typing import Any

import peewee

_TABLE = """
CREATE TABLE "retention_policy" (
    "name" TEXT NOT NULL PRIMARY KEY,
    "vm_id" TEXT REFERENCES "vm" ("uuid") ON DELETE CASCADE,
    "labels" TEXT NOT NULL,
    "keep_last" {integer} NOT NULL,
    "keep_hourly" {integer} NOT NULL,
    "keep_daily" {integer} NOT NULL,
    "keep_weekly" {integer} NOT NULL,
    "keep_monthly" {integer} NOT NULL,
    "enabled" {boolean} NOT NULL,
    "created_at" TEXT NOT NULL
);
CREATE INDEX "retention_policy_vm_id" ON "retention_policy" ("vm_id");
"""


def up(_migrator: Any, db: peewee.Database) -> None:
    """Make the table, as SQLite or PostgreSQL writes it."""
    sqlite = isinstance(db, peewee.SqliteDatabase)
    made = _TABLE.format(integer="INTEGER" if sqlite else "BIGINT", boolean="INTEGER" if sqlite else "BOOLEAN")
    for statement in made.split(";"):
        if statement.strip():
            db.execute_sql(statement)  # type: ignore[no-untyped-call]
