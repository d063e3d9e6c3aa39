"""Records that were made before files could outlive their snapshot are all there afterwards."""

import importlib
from pathlib import Path

import peewee

ROWS = """
INSERT INTO vm VALUES ('v', 'win11', NULL, NULL, 'shut-off', 'uefi', NULL, 0, '[]', NULL, '', NULL);
INSERT INTO snapshot VALUES ('s', 'v', NULL, 'first', '', '{}', 1, 'ready', 0, 0, 0, 'none', '[]', '[]', NULL, '[]', '',
    '[]', NULL, NULL, 'now');
INSERT INTO volume_snapshot VALUES (7, 's', 'vda', 'kvm1', '/a', 'qcow2', NULL, 9, 8, '1:2', 0, 1)
"""


def test_volumes_of_the_version_before_keep_their_values_and_learn_their_vm(tmp_path: Path) -> None:
    db = peewee.SqliteDatabase(str(tmp_path / "old.db"), pragmas={"foreign_keys": 1})
    first, second = (
        importlib.import_module(f"controller.migrations.{name}") for name in ("0001_records", "0002_hidden_bases")
    )
    with db.connection_context(), db.atomic():
        first.up(None, db)
        for statement in ROWS.split(";"):
            db.execute_sql(statement)  # type: ignore[no-untyped-call]
        second.up(None, db)
        row = db.execute_sql(  # type: ignore[no-untyped-call]
            "SELECT id, snapshot_id, vm_id, target, host, path, format, backing, virtual_size_bytes, allocated_bytes, "
            "fingerprint, hidden, merged, altered FROM volume_snapshot"
        ).fetchall()
        broken = db.execute_sql("PRAGMA foreign_key_check").fetchall()  # type: ignore[no-untyped-call]
    assert broken == []
    assert row == [(7, "s", "v", "vda", "kvm1", "/a", "qcow2", None, 9, 8, "1:2", 0, 1, 0)]
    db.close()
