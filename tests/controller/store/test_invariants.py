"""Each invariant is seen to fail: a check that never does would show nothing."""

from collections.abc import Callable
from uuid import UUID

import pytest
from peewee import SqliteDatabase

from controller.db import Database, write
from controller.models import BackupFile, HostFile, Operation, Snapshot, VolumeSnapshot, database
from controller.store import contents, invariants, operations
from controller.store.contents import pack
from tests.controller.factories import HOST, add_snapshot, add_vm

SOME = UUID(int=7)
#: What makes a database look away from its foreign keys, and look again.
BLINDED = {
    "sqlite": ("PRAGMA foreign_keys = 0", "PRAGMA foreign_keys = 1"),
    "postgresql": ("SET session_replication_role = replica", "SET session_replication_role = DEFAULT"),
}


def spoil(work: Callable[[], object]) -> list[str]:
    """Make a row wrong behind the store's back, look, and take it back."""
    blind, seeing = BLINDED["sqlite" if isinstance(database.obj, SqliteDatabase) else "postgresql"]
    database.execute_sql(blind)
    with write() as _, database.savepoint() as savepoint:
        work()
        found = invariants.orphans()
        savepoint.rollback()
    database.execute_sql(seeing)
    return found


BREAKS: dict[str, Callable[[], object]] = {
    "belongs to nothing": lambda: contents.put(pack(b"nobody's")),
    "is used and not there": lambda: HostFile.update(content="0" * 64).execute(),
    "has lost its snapshot": lambda: BackupFile.update(owner_uuid=SOME, type=BackupFile.uuid).execute(),
    "has lost its vm": lambda: BackupFile.update(owner_kind="vm").execute(),
    "external": lambda: BackupFile.update(owner_kind="external").execute(),
    "volume /images/vda.qcow2 has lost": lambda: (
        VolumeSnapshot.update(snapshot=SOME).where(VolumeSnapshot.id == 1).execute()
    ),
    "is hidden and has a snapshot": lambda: VolumeSnapshot.update(hidden=True).execute(),
    "is called complete": lambda: BackupFile.delete().where(BackupFile.type == "tpm").execute(),
    "still has backup files": lambda: Snapshot.update(ungrouped=True).execute(),
    "has lost its parent": lambda: Snapshot.update(parent=SOME).execute(),
    "is its own ancestor": lambda: Snapshot.update(parent=Snapshot.uuid).execute(),
    "a parent of another VM": lambda: Snapshot.update(vm=SOME).where(Snapshot.parent.is_null()).execute(),
    "and its end is": lambda: Operation.update(state="succeeded").execute(),
    "failed without a reason": lambda: Operation.update(state="failed").execute(),
    "and its owner is": lambda: Operation.update(owner="somebody").execute(),
}


def with_all_kinds_of_rows() -> None:
    vm = add_vm()
    add_snapshot(vm)
    add_snapshot(vm)
    HostFile.create(vm=vm, host=HOST, type="tpm")
    operations.enqueue("vm-sync", vm, HOST, {})
    assert invariants.orphans() == []


@pytest.mark.parametrize("sentence", BREAKS)
async def test_what_belongs_to_nothing_is_found(db: Database, sentence: str) -> None:
    def work() -> list[str]:
        with_all_kinds_of_rows()
        return spoil(BREAKS[sentence])

    found = await db.run(work)
    assert any(sentence in one for one in found), found


@pytest.mark.parametrize("databases", ["sqlite"], indirect=True)
async def test_where_a_database_can_store_what_refers_to_no_row_that_is_found(db: Database) -> None:
    def work() -> list[str]:
        with_all_kinds_of_rows()
        return spoil(lambda: VolumeSnapshot.update(snapshot=SOME).where(VolumeSnapshot.id == 1).execute())

    found = await db.run(work)
    assert any("refers to no row of snapshot" in one for one in found), found


async def test_two_currents_are_found_where_the_index_is_gone(db: Database) -> None:
    def work() -> list[str]:
        vm = add_vm()
        add_snapshot(vm)
        add_snapshot(vm)

        def twice() -> None:
            database.execute_sql("DROP INDEX snapshot_one_current")
            Snapshot.update(current=True).execute()

        return spoil(twice)

    assert any("stands on several" in one for one in await db.run(work))
