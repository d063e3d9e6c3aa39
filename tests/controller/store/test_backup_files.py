import asyncio
from typing import Any
from uuid import UUID, uuid4

import pytest

from controller.db import Database
from controller.errors import BackupFileNotFound, BackupFileOwned, ContentMissing, OwnerReserved
from controller.models import BackupFile, Content
from controller.store import backup_files, contents, host_files
from tests.controller.factories import HOST, add_snapshot, add_vm, at, both, held


async def bytes_of(db: Database, owner: UUID) -> dict[str, bytes]:
    files = await db.run(backup_files.of_owner, owner)
    return {file.type: await db.run(backup_files.data, file.uuid) for file in files}


@pytest.mark.case("B2")
async def test_two_types_to_two_owners_make_four_files_with_the_sources_bytes(db: Database) -> None:
    owners = [uuid4(), uuid4()]
    made = await db.run(backup_files.replace_many, "external", owners, both())
    assert len({file.uuid for files in made.values() for file in files}) == 4
    for owner in owners:
        assert await bytes_of(db, owner) == {"nvram": b"nvram", "tpm": b"tpm"}


@pytest.mark.case("B1")
async def test_a_vm_without_host_files_is_backed_up_as_an_empty_list(db: Database) -> None:
    owner = uuid4()
    assert await db.run(backup_files.replace_many, "external", [owner], {}) == {owner: []}


@pytest.mark.case("B3")
async def test_backing_up_again_keeps_one_file_per_type_with_its_uuid_and_the_newest_bytes(db: Database) -> None:
    owner = uuid4()
    first = await db.run(backup_files.replace, "external", owner, both(b"1"))
    again = await db.run(backup_files.replace, "external", owner, both(b"2"))
    assert [file.uuid for file in again] == [file.uuid for file in first]
    assert await bytes_of(db, owner) == {"nvram": b"nvram2", "tpm": b"tpm2"}
    assert await db.run(lambda: Content.select().count()) == 2


@pytest.mark.case("B4")
async def test_an_error_in_the_middle_of_a_replacement_leaves_every_old_copy_readable(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    owners = [uuid4(), uuid4()]
    await db.run(backup_files.replace_many, "external", owners, both(b"old"))
    calls = []

    def fail_at_the_last(*args: Any) -> None:
        calls.append(args)
        if len(calls) == 4:
            raise OSError("out of luck")
        upsert(*args)

    upsert = backup_files._upsert
    monkeypatch.setattr(backup_files, "_upsert", fail_at_the_last)
    with pytest.raises(OSError, match="out of luck"):
        await db.run(backup_files.replace_many, "external", owners, both(b"new"))
    for owner in owners:
        assert await bytes_of(db, owner) == {"nvram": b"nvramold", "tpm": b"tpmold"}


@pytest.mark.case("B4")
async def test_a_copy_that_is_not_at_hand_leaves_the_old_set_whole(db: Database) -> None:
    owner = uuid4()
    await db.run(backup_files.replace, "external", owner, both(b"old"))
    copies = both(b"new") | {"tpm": held("tpm", "0" * 64)}
    with pytest.raises(ContentMissing):
        await db.run(backup_files.replace, "external", owner, copies)
    assert await bytes_of(db, owner) == {"nvram": b"nvramold", "tpm": b"tpmold"}


@pytest.mark.case("B6")
async def test_many_backups_to_one_owner_at_once_all_answer_and_leave_one_consistent_set(db: Database) -> None:
    owner = uuid4()
    work = [db.run(backup_files.replace, "external", owner, both(b"%d" % number)) for number in range(10)]
    answers = await asyncio.gather(*work)
    assert all(len(files) == 2 for files in answers)
    left = await bytes_of(db, owner)
    assert left["nvram"].removeprefix(b"nvram") == left["tpm"].removeprefix(b"tpm")
    assert await db.run(lambda: Content.select().count()) == 2


async def test_an_owner_named_twice_is_one_owner(db: Database) -> None:
    owner = uuid4()
    made = await db.run(backup_files.replace_many, "external", [owner, owner], both())
    assert len(made[owner]) == 2


async def test_an_old_copy_stays_where_no_new_one_came_and_goes_where_the_vm_has_none(db: Database) -> None:
    owner = uuid4()
    await db.run(backup_files.replace, "external", owner, both(b"1"))
    await db.run(backup_files.replace, "external", owner, {"nvram": held("nvram", b"2")})
    assert await bytes_of(db, owner) == {"nvram": b"2", "tpm": b"tpm1"}
    await db.run(backup_files.replace, "external", owner, {"nvram": held("nvram", b"3")}, absent=["tpm"])
    assert await bytes_of(db, owner) == {"nvram": b"3"}


async def test_a_backup_of_bytes_that_are_held_refers_to_them(db: Database) -> None:
    vm, owner = await db.run(add_vm), uuid4()
    await db.run(host_files.record_sync, vm, HOST, "nvram", held("nvram", b"synced"), "/nvram", at(1))
    kept = (await db.run(host_files.newest, vm))["nvram"]
    await db.run(backup_files.replace, "external", owner, {"nvram": held("nvram", str(kept.sha256))})
    assert await bytes_of(db, owner) == {"nvram": b"synced"}


async def test_an_outside_owner_cannot_take_over_the_files_of_a_snapshot_or_a_vm(db: Database) -> None:
    vm = await db.run(add_vm)
    snapshot = await db.run(add_snapshot, vm)
    for owner in (snapshot.uuid, vm):
        with pytest.raises(OwnerReserved):
            await db.run(backup_files.replace, "external", owner, both(b"new"))
    assert await bytes_of(db, snapshot.uuid) == {"nvram": b"nvram", "tpm": b"tpm"}


async def test_a_seed_cannot_take_over_the_files_of_an_outside_owner(db: Database) -> None:
    owner = uuid4()
    await db.run(backup_files.replace, "external", owner, both())
    with pytest.raises(OwnerReserved, match="external"):
        await db.run(backup_files.replace, "vm", owner, both(b"new"))


async def test_removing_one_owner_leaves_all_others_alone(db: Database) -> None:
    one, other = uuid4(), uuid4()
    await db.run(backup_files.replace_many, "external", [one, other], both())
    assert await db.run(backup_files.remove_owner, "external", one) == 2
    assert await db.run(backup_files.remove_owner, "snapshot", other) == 0
    assert await bytes_of(db, other) == {"nvram": b"nvram", "tpm": b"tpm"}


async def test_a_removal_without_a_condition_removes_nothing(db: Database) -> None:
    await db.run(backup_files.replace, "external", uuid4(), both())
    assert await db.run(backup_files._remove) == 0
    assert await db.run(lambda: BackupFile.select().count()) == 2


async def test_one_file_of_an_outside_owner_can_be_removed_and_a_snapshots_cannot(db: Database) -> None:
    snapshot = await db.run(lambda: add_snapshot(add_vm()))
    with pytest.raises(BackupFileOwned, match=str(snapshot.uuid)):
        await db.run(backup_files.remove_external, snapshot.backup_files[0])
    (file,) = await db.run(backup_files.replace, "external", uuid4(), {"tpm": held("tpm", b"mine")})
    assert (await db.run(backup_files.remove_external, file.uuid)).uuid == file.uuid
    with pytest.raises(BackupFileNotFound):
        await db.run(backup_files.get, file.uuid)
    with pytest.raises(ContentMissing):
        await db.run(contents.get, file.sha256)


async def test_pages_hold_every_file_once(db: Database) -> None:
    owner = uuid4()
    await db.run(backup_files.replace_many, "external", [owner, *(uuid4() for _ in range(4))], both())
    seen, position = [], None
    while True:
        cut = await db.run(backup_files.page, 3, position)
        seen += [file.uuid for file in cut.items]
        if (position := cut.next) is None:
            break
    assert len(seen) == len(set(seen)) == 10
    assert {file.owner_uuid for file in (await db.run(backup_files.page, 9, owner=owner)).items} == {owner}
    assert len((await db.run(backup_files.page, 9, owner=owner, type="tpm")).items) == 1
