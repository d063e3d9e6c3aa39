"""Snapshots that were taken when dates told their order keep the order in which their files were recorded."""

import importlib
from pathlib import Path

import peewee
from playhouse.migrate import SchemaMigrator

EARLIER = ("0001_records", "0002_hidden_bases", "0003_clones", "0004_retention", "0008_identity", "0009_counts")
SNAPSHOT = """
INSERT INTO snapshot VALUES ('{name}', 'v', NULL, '{name}', '', '{{}}', 0, 'ready', 0, 0, 0, 'none', '[]', '[]', NULL,
    '[]', '', '[]', NULL, NULL, '{at}');
INSERT INTO volume_snapshot (snapshot_id, vm_id, target, host, path, format, virtual_size_bytes, allocated_bytes,
    fingerprint, hidden, merged, altered) VALUES ('{name}', 'v', 'vda', 'kvm1', '/{name}', 'qcow2', 1, 1, '', 0, 0, 0)
"""


def test_snapshots_are_numbered_as_they_were_recorded(tmp_path: Path) -> None:
    db = peewee.SqliteDatabase(str(tmp_path / "old.db"))
    migrator = SchemaMigrator.from_database(db)
    with db.connection_context(), db.atomic():
        for name in EARLIER:
            importlib.import_module(f"controller.migrations.{name}").up(migrator, db)
        vm = "INSERT INTO vm VALUES ('v', 'win11', NULL, NULL, 'shut-off', 'uefi', NULL, 0, '[]', NULL, '', NULL)"
        db.execute_sql(vm)  # type: ignore[no-untyped-call]
        for name, at in (("ahead", "2036-11-01"), ("right", "2026-11-02"), ("behind", "1970-01-01")):
            for statement in SNAPSHOT.format(name=name, at=at).split(";"):
                db.execute_sql(statement)  # type: ignore[no-untyped-call]
        importlib.import_module("controller.migrations.0010_snapshot_order").up(migrator, db)
        rows = db.execute_sql("SELECT uuid, seq FROM snapshot ORDER BY seq").fetchall()  # type: ignore[no-untyped-call]
    assert rows == [("ahead", 1), ("right", 2), ("behind", 3)]
    db.close()
