from typing import Any
from uuid import UUID, uuid4

import peewee
import pytest

from agent.wire.snapshot import Snapshot
from controller.db import Database
from controller.errors import (
    ContentMissing,
    OwnerReserved,
    SnapshotBusy,
    SnapshotExists,
    SnapshotNotFound,
    SnapshotProtected,
    VmNotFound,
)
from controller.models import BackupFile, Content, VolumeSnapshot
from controller.models import Snapshot as SnapshotRow
from controller.store import backup_files, deletions, events, groups, invariants, snapshots
from tests.controller.factories import HOST, add_snapshot, add_vm, at, both, frozen, held, new_group


async def chain(db: Database, vm: UUID, length: int) -> list[Snapshot]:
    """Record snapshots that each stand on the one before."""
    return [
        await db.run(add_snapshot, vm, name=str(number), host_files=both(b"%d" % number), created_at=at(number))
        for number in range(length)
    ]


async def tree(db: Database, vm: UUID) -> dict[str, tuple[str | None, bool]]:
    """Return name → (parent's name, current)."""
    found = {one.uuid: one for one in await db.run(snapshots.tree, vm)}
    return {one.name: (found[one.parent].name if one.parent else None, one.current) for one in found.values()}


@pytest.mark.case("S1")
async def test_a_group_is_written_under_its_own_uuid_as_creating_and_is_current_only_when_ready(db: Database) -> None:
    vm = await db.run(add_vm)
    new = new_group(vm, volumes=[frozen("vda"), frozen("vdb")], excluded=["sda"], labels={"for": "update"})
    made = await db.run(groups.create, new)
    assert (made.uuid, made.state, made.current, made.labels) == (new.uuid, "creating", False, {"for": "update"})
    assert [volume.target for volume in made.volumes] == ["vda", "vdb"]
    owners = await db.run(lambda: {(row.owner_kind, row.owner_uuid) for row in BackupFile.select()})
    assert owners == {("snapshot", new.uuid)}
    assert (await db.run(groups.ready, new.uuid)).current
    assert [event.type for event in await db.run(events.read, 0, 9)][-1] == "snapshot.ready"


async def test_what_work_on_a_group_needs_comes_back_as_it_was_written(db: Database) -> None:
    vm, secret = await db.run(add_vm), uuid4()
    new = new_group(vm, domain_xml="<domain/>", tpm_secret=secret, volumes=[frozen(fingerprint="1:2", backing="/base")])
    await db.run(groups.create, new)
    found = await db.run(snapshots.group, new.uuid)
    assert (found.domain_xml, found.tpm_secret, found.transaction) == ("<domain/>", secret, new.transaction)
    (volume,) = found.volumes
    assert (volume.host, volume.fingerprint, volume.backing, volume.merged) == (HOST, "1:2", "/base", False)
    assert [backup.type for backup in found.backups] == ["nvram", "tpm"]


@pytest.mark.case("S4")
async def test_a_group_that_cannot_be_written_whole_leaves_nothing(db: Database) -> None:
    vm = await db.run(add_vm)
    twice_the_same_disk = new_group(vm, volumes=[frozen(), frozen()])
    with pytest.raises(peewee.IntegrityError):
        await db.run(groups.create, twice_the_same_disk)
    with pytest.raises(ContentMissing):
        await db.run(groups.create, new_group(vm, host_files={"nvram": held("nvram", "0" * 64)}))
    assert await db.run(lambda: [m.select().count() for m in (SnapshotRow, BackupFile, Content)]) == [0, 0, 0]


@pytest.mark.case("S15")
async def test_creating_again_with_the_same_transaction_is_the_same_group(db: Database) -> None:
    new = new_group(await db.run(add_vm))
    first = await db.run(groups.create, new)
    assert await db.run(groups.create, new) == first
    await db.run(groups.ready, new.uuid)
    assert (await db.run(groups.create, new)).state == "ready"
    with pytest.raises(SnapshotExists):
        await db.run(groups.create, new_group(new.vm, uuid=new.uuid))


async def test_a_uuid_that_an_outside_owner_uses_is_not_taken_over(db: Database) -> None:
    vm, owner = await db.run(add_vm), uuid4()
    await db.run(backup_files.replace, "external", owner, both(b"outside"))
    for uuid in (owner, vm):
        with pytest.raises(OwnerReserved):
            await db.run(groups.create, new_group(vm, uuid=uuid))
    with pytest.raises(VmNotFound):
        await db.run(groups.create, new_group(uuid4()))


async def test_each_snapshot_stands_on_the_one_before_and_only_the_last_is_current(db: Database) -> None:
    vm = await db.run(add_vm)
    await chain(db, vm, 3)
    assert await tree(db, vm) == {"0": (None, False), "1": ("0", False), "2": ("1", True)}


async def test_the_database_itself_refuses_a_second_current(db: Database) -> None:
    vm = await db.run(add_vm)
    first, _ = await chain(db, vm, 2)
    with pytest.raises(peewee.IntegrityError):
        await db.run(lambda: SnapshotRow.update(current=True).where(SnapshotRow.uuid == first.uuid).execute())


@pytest.mark.case("R8")
async def test_a_revert_moves_current_and_keeps_the_state_before_as_an_undo_point(db: Database) -> None:
    vm = await db.run(add_vm)
    first, _ = await chain(db, vm, 2)
    await db.run(groups.begin, first.uuid, "reverting")
    undo = await db.run(groups.create, new_group(vm, name="undo", automatic=True, host_files=both(b"undo")))
    done = await db.run(groups.reverted, first.uuid, undo.uuid)
    assert (done.state, done.current) == ("ready", True)
    assert await tree(db, vm) == {"0": (None, True), "1": ("0", False), "undo": ("1", False)}
    assert await db.run(snapshots.older_automatic, vm, undo.uuid) == []
    later = await db.run(add_snapshot, vm, name="undo2", automatic=True, current=False)
    assert await db.run(snapshots.older_automatic, vm, later.uuid) == [undo.uuid]
    branched = await db.run(add_snapshot, vm, name="3")
    assert branched.parent == first.uuid


@pytest.mark.case("R9")
async def test_reverting_single_volumes_leaves_current_where_it_was(db: Database) -> None:
    vm = await db.run(add_vm)
    first, last = await chain(db, vm, 2)
    await db.run(groups.begin, first.uuid, "reverting")
    await db.run(groups.reverted, first.uuid, moves_current=False)
    assert await db.run(snapshots.current, vm) == last.uuid


async def test_work_on_a_snapshot_excludes_other_work_and_can_be_taken_up_again(db: Database) -> None:
    vm = await db.run(add_vm)
    (one,) = await chain(db, vm, 1)
    for _ in range(2):
        assert (await db.run(groups.begin, one.uuid, "reverting")).state == "reverting"
    with pytest.raises(SnapshotBusy, match="reverting"):
        await db.run(groups.begin, one.uuid, "deleting")
    assert await db.run(groups.unsettled_vms, HOST) == [vm]
    assert len(await db.run(invariants.unsettled)) == 1
    for _ in range(2):
        await db.run(groups.settle, one.uuid)
    assert (await db.run(snapshots.get, one.uuid)).state == "ready"
    assert await db.run(groups.unsettled_vms, HOST) == []


@pytest.mark.case("D10")
async def test_a_protected_snapshot_is_neither_deleted_nor_ungrouped_and_can_be_reverted_to(db: Database) -> None:
    one = await db.run(lambda: add_snapshot(add_vm(), protected=True))
    with pytest.raises(SnapshotProtected):
        await db.run(groups.begin, one.uuid, "deleting")
    with pytest.raises(SnapshotProtected):
        await db.run(groups.ungroup, one.uuid)
    assert (await db.run(groups.begin, one.uuid, "reverting")).state == "reverting"


async def test_a_group_that_never_became_whole_is_neither_reverted_to_nor_made_ready_but_can_go(db: Database) -> None:
    new = new_group(await db.run(add_vm))
    await db.run(groups.create, new)
    with pytest.raises(SnapshotBusy, match="creating"):
        await db.run(groups.begin, new.uuid, "reverting")
    await db.run(groups.fail, new.uuid, "disk full")
    with pytest.raises(SnapshotBusy, match="failed"):
        await db.run(groups.ready, new.uuid)
    assert (await db.run(snapshots.get, new.uuid)).host_files.reason == "disk full"
    await db.run(groups.begin, new.uuid, "deleting")
    await db.run(groups.remove, new.uuid)
    assert await db.run(lambda: [m.select().count() for m in (SnapshotRow, BackupFile, Content)]) == [0, 0, 0]


@pytest.mark.case("D3")
@pytest.mark.parametrize(
    ("doomed", "left"),
    [
        ("0", {"1": (None, False), "2": ("1", True)}),
        ("1", {"0": (None, False), "2": ("0", True)}),
        ("2", {"0": (None, False), "1": ("0", True)}),
    ],
)
async def test_removing_a_root_a_middle_or_the_current_one_keeps_the_tree_whole(
    db: Database, doomed: str, left: dict[str, Any]
) -> None:
    vm = await db.run(add_vm)
    uuid = (await chain(db, vm, 3))[int(doomed)].uuid
    await db.run(groups.begin, uuid, "deleting")
    await db.run(groups.remove, uuid)
    assert await tree(db, vm) == left
    with pytest.raises(SnapshotNotFound):
        await db.run(groups.remove, uuid)


@pytest.mark.case("D1")
async def test_a_removed_snapshot_takes_its_own_files_and_contents_and_no_others(db: Database) -> None:
    vm, outside = await db.run(add_vm), uuid4()
    first, second = await chain(db, vm, 2)
    await db.run(backup_files.replace, "external", outside, both(b"0"))
    await db.run(groups.remove, first.uuid)
    left = await db.run(lambda: {row.owner_uuid for row in BackupFile.select()})
    assert left == {second.uuid, outside}
    assert await db.run(backup_files.data, second.backup_files[0]) == b"nvram1"
    assert await db.run(lambda: {row.snapshot_id for row in VolumeSnapshot.select()}) == {second.uuid}


async def test_a_node_with_three_children_gives_them_all_to_its_parent(db: Database) -> None:
    vm = await db.run(add_vm)
    root, node = await chain(db, vm, 2)
    for name in "abc":
        await db.run(groups.reverted, node.uuid)
        await db.run(add_snapshot, vm, name=name)
    await db.run(groups.remove, node.uuid)
    found = await tree(db, vm)
    assert found == {"0": (None, False), "a": ("0", False), "b": ("0", False), "c": ("0", True)}
    assert [one.parent for one in await db.run(snapshots.tree, vm)] == [None, root.uuid, root.uuid, root.uuid]


@pytest.mark.case("D7")
async def test_ungrouping_takes_exactly_this_snapshots_backup_files_and_keeps_its_volumes(db: Database) -> None:
    vm, outside = await db.run(add_vm), uuid4()
    first, second = await chain(db, vm, 2)
    await db.run(backup_files.replace, "external", outside, both(b"0"))
    done = await db.run(groups.ungroup, first.uuid)
    assert (done.backup_files, done.volumes, done.state) == ([], first.volumes, "ready")
    assert (done.host_files.state, done.host_files.missing) == ("none", ["nvram", "tpm"])
    assert "ungrouped" in str(done.host_files.reason)
    assert (await db.run(snapshots.group, first.uuid)).ungrouped
    assert len(await db.run(backup_files.of_owner, second.uuid)) == 2
    assert len(await db.run(backup_files.of_owner, outside)) == 2
    assert await db.run(groups.ungroup, first.uuid) == done


@pytest.mark.case("D7")
async def test_a_snapshot_under_work_is_not_ungrouped(db: Database) -> None:
    one = await db.run(lambda: add_snapshot(add_vm()))
    await db.run(groups.begin, one.uuid, "reverting")
    with pytest.raises(SnapshotBusy):
        await db.run(groups.ungroup, one.uuid)


@pytest.mark.case("D2")
async def test_a_merged_disk_moves_what_stood_on_it_and_leaves_the_others(db: Database) -> None:
    vm = await db.run(add_vm)
    disks = [frozen("vda", path="/a0", backing="/base"), frozen("vdb", path="/b0", backing=None)]
    first = await db.run(add_snapshot, vm, volumes=disks)
    disks = [frozen("vda", path="/a1", backing="/a0"), frozen("vdb", path="/b1", backing="/b0")]
    second = await db.run(add_snapshot, vm, volumes=disks)
    for _ in range(2):
        await db.run(groups.merged, first.uuid, "vda", {"/a1": "9:9"}, "/base")
    found = {one.target: one for one in (await db.run(snapshots.group, second.uuid)).volumes}
    assert (found["vda"].backing, found["vda"].fingerprint) == ("/base", "9:9")
    assert (found["vdb"].backing, found["vdb"].fingerprint) == ("/b0", frozen().fingerprint)
    done = {one.target: one.merged for one in (await db.run(snapshots.group, first.uuid)).volumes}
    assert done == {"vda": True, "vdb": False}
    assert len((await db.run(snapshots.get, first.uuid)).backup_files) == 2


async def test_a_merge_on_one_host_leaves_files_of_the_same_path_on_another_alone(db: Database) -> None:
    here, there = await db.run(add_vm), await db.run(add_vm, "kvm2")
    first = await db.run(add_snapshot, here, volumes=[frozen(path="/a0")])
    other = await db.run(add_snapshot, there, host="kvm2", volumes=[frozen(path="/a1", backing="/a0")])
    await db.run(groups.merged, first.uuid, "vda", {"/a1": "9:9"}, None)
    (volume,) = (await db.run(snapshots.group, other.uuid)).volumes
    assert (volume.backing, volume.fingerprint) == ("/a0", frozen().fingerprint)


async def test_snapshots_are_in_the_order_in_which_they_were_taken_whatever_the_clock_said(db: Database) -> None:
    vm = await db.run(add_vm)
    days = [10, 11, 1, 2]  # it was set back, to a wrong or to the right time
    made = [await db.run(add_snapshot, vm, name=str(day), automatic=True, created_at=at(day)) for day in days]
    first = await db.run(snapshots.page, 2)
    late = await db.run(add_snapshot, vm, name="0", automatic=True, created_at=at(0))
    rest = await db.run(snapshots.page, 9, first.next)
    assert [one.uuid for one in (*first.items, *rest.items)] == [*(one.uuid for one in made), late.uuid]
    assert [one.name for one in await db.run(snapshots.tree, vm)] == ["10", "11", "1", "2", "0"]
    assert [await db.run(deletions.is_superseded, one.uuid) for one in (*made, late)] == [True] * 4 + [False]


async def test_pages_are_as_they_were_taken_and_filtered(db: Database) -> None:
    vm, other = await db.run(add_vm), await db.run(add_vm)
    made = await chain(db, vm, 5)
    await db.run(add_snapshot, other, automatic=True, created_at=at(99))
    first = await db.run(snapshots.page, 4)
    rest = await db.run(snapshots.page, 4, first.next)
    assert [one.uuid for one in first.items + rest.items][:5] == [one.uuid for one in made]
    assert len(rest.items) == 2
    assert len((await db.run(snapshots.page, 9, vm=vm)).items) == 5
    assert len((await db.run(snapshots.page, 9, automatic=True)).items) == 1
    assert [one.name for one in (await db.run(snapshots.page, 9, vm=vm, name="2", state="ready")).items] == ["2"]
