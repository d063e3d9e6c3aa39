"""Deleting snapshots, and ungrouping them."""

from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

import pytest

from controller.models import Snapshot
from controller.operations import snapshot_delete, ungroup
from controller.store import backup_files, snapshots
from tests.controller.world import World, world


@pytest.fixture
async def one(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as made:
        yield made
        await made.mend()
        await made.check()


@pytest.mark.case("D1")
async def test_a_deleted_snapshot_leaves_nothing_and_its_children_stand_on_its_parent(one: World) -> None:
    first, middle, last = await one.snapshot(), await one.snapshot(), await one.snapshot()
    operation = await one.delete(middle)
    assert operation.state == "succeeded", operation.error
    assert [(item.uuid, item.parent) for item in await one.tree()] == [(first, None), (last, first)]
    assert await one.db.run(backup_files.of_owner, middle) == []
    assert operation.progress.percent == 100


@pytest.mark.case("D1")
async def test_deleting_the_current_snapshot_moves_the_vm_to_its_parent(one: World) -> None:
    first, last = await one.snapshot(), await one.snapshot()
    assert (await one.delete(last)).state == "succeeded"
    assert [(item.uuid, item.current) for item in await one.tree()] == [(first, True)]
    assert (await one.delete(first)).state == "succeeded"
    assert await one.tree() == []


@pytest.mark.case("D2")
async def test_a_disk_that_fails_keeps_snapshot_and_backups_and_repeating_finishes(one: World) -> None:
    first, second = await one.snapshot(), await one.snapshot()
    paths = {volume.target: volume.path for volume in (await one.db.run(snapshots.group, first)).volumes}
    one.agent.undeletable = {paths["vdb"]}
    failed = await one.delete(first)
    assert failed.error is not None
    assert (failed.error.code, failed.error.facts["targets"]) == ("disks-not-deleted", "vdb")
    group = await one.db.run(snapshots.group, first)
    assert (group.snapshot.state, len(group.backups)) == ("ready", 2)
    # The second snapshot's vda was moved off it, and both are usable still.
    assert (await one.revert(second)).state == "succeeded"
    assert (await one.revert(first)).state == "succeeded"
    assert (await one.revert(second, undo_point=False)).state == "succeeded"
    for undo in [item.uuid for item in await one.tree() if item.automatic]:
        assert (await one.delete(undo)).state == "succeeded"
    one.agent.undeletable = set()
    again = await one.delete(first)
    assert again.state == "succeeded", again.error
    assert len(await one.tree()) == 1


@pytest.mark.case("D8")
async def test_of_two_deletes_at_once_the_second_says_gone(one: World) -> None:
    first = await one.snapshot()
    wanted = snapshot_delete.Wanted(snapshot=first)
    queued = [await one.submit("snapshot-delete", wanted) for _ in range(2)]
    worked, gone = [await one.ended(operation.uuid) for operation in queued]
    assert worked.state == "succeeded"
    assert gone.error is not None
    assert (gone.error.code, gone.error.status) == ("snapshot-not-found", 404)


async def test_a_node_that_carries_two_files_is_refused_and_says_what_to_do(one: World) -> None:
    first = await one.snapshot()
    await one.revert(first)
    before = await one.tree()
    one.agent.calls.clear()
    operation = await one.delete(first)
    assert operation.error is not None
    assert operation.error.code == "snapshot-has-children"
    assert "Delete all but one" in operation.error.detail
    assert await one.tree() == before
    assert not [call for call in one.agent.calls if call.startswith("PUT")]


async def test_a_protected_snapshot_is_not_deleted(one: World) -> None:
    first = await one.snapshot()
    await one.db.run(lambda: Snapshot.update(protected=True).where(Snapshot.uuid == first).execute())
    operation = await one.delete(first)
    assert operation.error is not None
    assert operation.error.code == "snapshot-protected"


@pytest.mark.case("D7")
async def test_ungroup_removes_exactly_this_snapshots_backup_files_and_volumes_stay_usable(one: World) -> None:
    first, second = await one.snapshot(), await one.snapshot()
    operation = await one.act("snapshot-ungroup", ungroup.Wanted(snapshot=first))
    assert operation.state == "succeeded", operation.error
    assert await one.db.run(backup_files.of_owner, first) == []
    assert len(await one.db.run(backup_files.of_owner, second)) == 2
    one.vm.host_files["nvram"] = b"later"
    reverted = await one.revert(first)
    assert reverted.state == "succeeded", reverted.error
    assert reverted.result["kept"] == ["nvram", "tpm"]
    assert one.vm.host_files["nvram"] == b"later"
    assert UUID(reverted.result["undo_point"])


async def test_a_file_that_two_snapshots_hold_is_merged_away_for_neither(one: World) -> None:
    first = await one.snapshot()
    held = {volume.target: volume.path for volume in (await one.db.run(snapshots.group, first)).volumes}
    by_hand = {target: one.vm.tops[target] for target in held}
    one.vm.tops.update(held)
    for top in by_hand.values():
        del one.agent.files[top]
    second = await one.snapshot()
    for snapshot in (first, second):
        operation = await one.delete(snapshot)
        assert operation.error is not None
        assert operation.error.code == "frozen-file-held"
    assert (await one.revert(first)).state == "succeeded"
