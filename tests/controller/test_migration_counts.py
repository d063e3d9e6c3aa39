"""Records that were made when times were compared keep the order of their times."""

import importlib
from pathlib import Path

import peewee

NAMES = ("0001_records", "0002_hidden_bases", "0003_clones", "0004_retention", "0008_identity", "0009_counts")
ROWS = """
INSERT INTO vm VALUES ('v', 'win11', NULL, NULL, 'shut-off', 'uefi', NULL, 0, '[]', NULL, '', NULL);
INSERT INTO host_file (vm_id, host, type, synced_at, dirty_since) VALUES
    ('v', 'kvm1', 'nvram', '2026-11-01', '2026-11-02'),
    ('v', 'kvm2', 'nvram', '2026-11-03', NULL),
    ('v', 'kvm3', 'nvram', NULL, '2026-11-03')
"""


def test_copies_and_starts_are_numbered_as_they_were_dated(tmp_path: Path) -> None:
    db = peewee.SqliteDatabase(str(tmp_path / "old.db"))
    *earlier, last = (importlib.import_module(f"controller.migrations.{name}") for name in NAMES)
    with db.connection_context(), db.atomic():
        earlier[0].up(None, db)
        for statement in ROWS.split(";"):
            db.execute_sql(statement)  # type: ignore[no-untyped-call]
        for migration in (*earlier[1:], last):
            migration.up(None, db)
        rows = db.execute_sql("SELECT synced_seq, dirty_seq FROM host_file ORDER BY host").fetchall()  # type: ignore[no-untyped-call]
    assert rows == [(1, 2), (3, 0), (0, 3)]
    db.close()
