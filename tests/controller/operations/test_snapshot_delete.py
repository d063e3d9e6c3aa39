"""Deleting snapshots, and ungrouping them."""

import asyncio
from uuid import UUID

import pytest

from controller.models import Snapshot
from controller.operations import snapshot_create, snapshot_delete, sync, ungroup
from controller.store import backup_files, operations, snapshots
from tests.controller.fake_machine import FakeFile
from tests.controller.world import World, define


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


@pytest.mark.case("D2")
async def test_a_disk_that_was_half_written_is_not_reverted_to_nor_cloned_and_repeating_finishes(one: World) -> None:
    first, second = await one.snapshot(), await one.snapshot()
    vda = (await one.db.run(snapshots.group, first)).volumes[0]
    one.agent.undeletable = one.agent.half_written = {vda.path}
    assert (await one.delete(first)).state == "failed"
    refused = await one.revert(first)
    assert refused.error is not None
    assert (refused.error.code, refused.error.facts["targets"]) == ("snapshot-partly-deleted", "vda")
    not_cloned = await one.clone(first, "copy")
    assert not_cloned.error is not None
    assert (not_cloned.error.code, not_cloned.error.facts["targets"]) == ("snapshot-partly-deleted", "vda")
    assert (await one.revert(first, volumes=["vdb"])).state == "succeeded"
    assert (await one.revert(second, undo_point=False)).state == "succeeded"
    for undo in [item.uuid for item in await one.tree() if item.automatic]:
        assert (await one.delete(undo)).state == "succeeded"
    one.agent.undeletable = set()
    assert (await one.delete(first)).state == "succeeded"
    assert [item.uuid for item in await one.tree()] == [second]


async def branch(one: World, count: int) -> tuple[UUID, list[UUID]]:
    """Make a node with so many children, on the last of which the VM stands."""
    node = await one.snapshot(name="node")
    children = []
    for number in range(count):
        if number:
            assert (await one.revert(node, undo_point=False)).state == "succeeded"
        children.append(await one.snapshot(name=str(number)))
    return node, children


@pytest.mark.case("D3")
async def test_a_node_with_three_children_goes_at_once_and_its_files_when_one_child_is_left(one: World) -> None:
    root = await one.snapshot()
    node, children = await branch(one, 3)
    operation = await one.delete(node)
    assert (operation.state, operation.result["hidden"]) == ("succeeded", ["vda", "vdb"])
    assert [(item.uuid, item.parent) for item in await one.tree()] == [
        (root, None),
        *((uuid, root) for uuid in children),
    ]
    assert await one.db.run(backup_files.of_owner, node) == []
    assert len(await one.hidden()) == 2
    await one.check()
    assert (await one.delete(children[0])).state == "succeeded"
    assert len(await one.hidden()) == 2
    last = await one.delete(children[1])
    assert (last.state, last.result["remarks"]) == ("succeeded", [])
    assert await one.hidden() == {}


@pytest.mark.case("D3")
async def test_a_chain_of_hidden_bases_goes_when_the_last_fork_does(one: World) -> None:
    outer, (left, right) = await branch(one, 2)
    inner, tips = await branch(one, 2)
    for node in (outer, right, inner):
        assert (await one.delete(node)).state == "succeeded"
    await one.check()
    assert {item.uuid for item in await one.tree()} == {left, *tips}
    assert (await one.delete(left)).state == "succeeded"
    assert (await one.delete(tips[0])).state == "succeeded"
    assert await one.hidden() == {}
    assert [item.uuid for item in await one.tree()] == [tips[1]]


@pytest.mark.case("D3")
async def test_a_revert_that_drops_the_second_file_on_a_hidden_base_merges_it(one: World) -> None:
    node, (only,) = await branch(one, 1)
    other = await one.snapshot()
    await one.revert(node, undo_point=False)
    assert (await one.delete(node)).state == "succeeded"
    assert len(await one.hidden()) == 2
    reverted = await one.revert(other, undo_point=False)
    assert (reverted.state, reverted.result["remarks"]) == ("succeeded", [])
    assert await one.hidden() == {}
    assert {item.uuid for item in await one.tree()} == {only, other}


async def test_a_base_that_cannot_be_merged_yet_is_a_remark_and_goes_with_the_next_deletion(one: World) -> None:
    node, children = await branch(one, 3)
    assert (await one.delete(node)).state == "succeeded"
    assert (await one.delete(children[0])).state == "succeeded"
    one.agent.undeletable = set(await one.hidden())
    operation = await one.delete(children[1])
    assert operation.state == "succeeded"
    assert "files kept out of sight were not merged away" in operation.result["remarks"][0]
    await one.check()
    one.agent.undeletable = set()
    assert (await one.delete(await one.snapshot())).state == "succeeded"
    assert await one.hidden() == {}


@pytest.mark.case("D3")
async def test_a_file_that_another_vm_stands_on_is_kept_and_merged_in_that_vms_own_work(one: World) -> None:
    first = await one.snapshot()
    (vda, vdb) = (await one.db.run(snapshots.group, first)).volumes
    clone = await define(one, "clone", tops={"vda": "/images/clone.vda"}, disks=("vda",))
    one.agent.files["/images/clone.vda"] = FakeFile(backing=vda.path)
    await one.act("vm-sync", sync.Wanted(), clone.uuid)
    assert (await one.revert(await one.snapshot(), undo_point=False)).state == "succeeded"
    assert (await one.delete(first)).result["hidden"] == ["vda"]
    assert set(await one.hidden()) == {vda.path}
    for item in await one.tree():
        assert (await one.delete(item.uuid)).state == "succeeded"
    # Its own VM's file still stands on it, and so does the clone's.
    assert set(await one.hidden()) == {vda.path}
    one.agent.files[one.vm.tops["vda"]].backing = None
    await one.sync()
    made = await one.act("snapshot-create", snapshot_create.Wanted(), clone.uuid)
    gone = await one.act("snapshot-delete", snapshot_delete.Wanted(snapshot=UUID(made.result["snapshot"])), clone.uuid)
    assert gone.state == "succeeded", gone.error
    assert await one.hidden() == {}
    assert vdb.path not in one.agent.files


async def test_a_delete_of_a_running_vm_waits_for_its_stop_and_holds_up_nothing(one: World) -> None:
    first, _ = await one.snapshot(), await one.snapshot()
    one.vm.state = "running"
    asked = await one.submit("snapshot-delete", snapshot_delete.Wanted(snapshot=first))
    waiting = await one.engine.wait(asked.uuid, 20)
    assert (waiting.state, waiting.step) == ("queued", "waiting for the VM to stop")
    assert (await one.db.run(snapshots.get, first)).state == "ready"
    assert (await one.sync()).state == "succeeded"
    await one.restart()
    one.vm.state = "shut-off"
    assert (await one.engine.wait(asked.uuid, 0)).is_parked
    assert (await one.sync()).state == "succeeded"  # as the hook's event asks for it
    assert (await one.ended(asked.uuid)).state == "succeeded"


async def test_a_waiting_delete_can_be_withdrawn_and_leaves_the_snapshot_as_it_is(one: World) -> None:
    first = await one.snapshot()
    one.vm.state = "paused"
    asked = await one.submit("snapshot-delete", snapshot_delete.Wanted(snapshot=first))
    assert (await one.engine.wait(asked.uuid, 20)).is_parked
    assert (await one.engine.cancel(asked.uuid)).state == "cancelled"
    one.vm.state = "shut-off"
    assert (await one.sync()).state == "succeeded"
    assert (await one.db.run(snapshots.get, first)).state == "ready"


async def test_a_vm_that_starts_under_the_request_makes_the_delete_wait(one: World) -> None:
    first = await one.snapshot()
    one.agent.refuse["PUT /v1/transactions/{id}"] = "domain-starting"
    asked = await one.submit("snapshot-delete", snapshot_delete.Wanted(snapshot=first))
    assert (await one.engine.wait(asked.uuid, 20)).is_parked
    assert (await one.db.run(snapshots.get, first)).state == "ready"
    one.agent.refuse.clear()
    assert (await one.ended(asked.uuid)).state == "succeeded"


async def test_a_deletion_that_is_stopped_records_what_was_moved_and_can_be_repeated(one: World) -> None:
    first, second = await one.snapshot(), await one.snapshot()
    one.agent.slow_merges = True
    asked = await one.submit("snapshot-delete", snapshot_delete.Wanted(snapshot=first))
    while (await one.db.run(operations.get, asked.uuid)).progress.total_bytes == 0:
        await asyncio.sleep(0)
    await one.engine.cancel(asked.uuid)
    stopped = await one.ended(asked.uuid)
    assert (stopped.state, [item.uuid for item in await one.tree()]) == ("cancelled", [first, second])
    await one.check()
    one.agent.slow_merges = False
    assert (await one.delete(first)).state == "succeeded"


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


@pytest.mark.case("D3")
async def test_a_hidden_base_that_a_later_snapshot_holds_stays_while_anything_does(one: World) -> None:
    node, children = await branch(one, 2)
    assert (await one.delete(node)).state == "succeeded"
    hidden = set(await one.hidden())
    assert hidden <= set(await one.db.run(snapshots.held, one.vm.uuid))
    by_hand = dict(one.vm.tops)
    one.vm.tops.update({target: next(path for path in hidden if target in path) for target in by_hand})
    for top in by_hand.values():
        del one.agent.files[top]
    again = await one.snapshot()
    assert (await one.delete(children[0])).state == "succeeded"
    assert (await one.delete(children[1])).state == "succeeded"
    assert hidden <= set(one.agent.files)
    assert (await one.delete(again)).state == "succeeded"
    assert await one.hidden() == {}
    await one.check()
