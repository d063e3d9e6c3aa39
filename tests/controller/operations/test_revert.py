"""Going back."""

from uuid import UUID

import pytest

from agent.wire.snapshot import EditSnapshot
from agent.wire.transaction import RevertRequest
from controller.models import Content
from controller.store import backup_files, deletions, groups, operations, snapshot_edit, snapshots
from tests.controller.databases import Databases
from tests.controller.world import HOST, World, world


async def undo_points(one: World) -> list[UUID]:
    return [item.uuid for item in await one.tree() if item.automatic]


async def test_a_revert_puts_disks_and_host_files_back_again_and_again(one: World) -> None:
    first, saved = await one.snapshot(), dict(one.vm.host_files)
    frozen = {target: one.agent.files[top].backing for target, top in one.vm.tops.items()}
    for turn in range(3):
        one.vm.host_files = {"nvram": b"nvram %d" % turn, "tpm": b"tpm %d" % turn}
        operation = await one.revert(first)
        assert operation.state == "succeeded", operation.error
        assert one.vm.host_files == saved
        assert {target: one.agent.files[top].backing for target, top in one.vm.tops.items()} == frozen


@pytest.mark.case("R8")
async def test_the_undo_point_brings_back_the_state_before_and_only_the_newest_is_kept(one: World) -> None:
    first = await one.snapshot()
    one.vm.host_files = {"nvram": b"later", "tpm": b"later too"}
    undone = await one.revert(first)
    assert await undo_points(one) == [UUID(undone.result["undo_point"])]
    back = await one.revert(UUID(undone.result["undo_point"]))
    assert back.state == "succeeded", back.error
    assert one.vm.host_files == {"nvram": b"later", "tpm": b"later too"}
    # The VM stands on the older undo point, so its data are moved by a deletion of its own.
    (deletion,) = back.result["deletions"]
    assert (await one.ended(UUID(deletion))).state == "succeeded"
    assert await undo_points(one) == [UUID(back.result["undo_point"])]
    assert one.vm.host_files == {"nvram": b"later", "tpm": b"later too"}
    again = await one.revert(first)
    third = await one.revert(first)
    assert third.result["retired_undo_points"] == [again.result["undo_point"]]


@pytest.mark.case("R8")
@pytest.mark.case("D10")
async def test_an_older_undo_point_that_is_protected_stays_and_so_does_one_that_is_the_last_by_then(one: World) -> None:
    first = await one.snapshot()
    older = UUID((await one.revert(first)).result["undo_point"])
    await one.db.run(snapshot_edit.edit, older, EditSnapshot(protected=True))
    back = await one.revert(older)
    assert back.result["deletions"] == []
    newer = UUID(back.result["undo_point"])
    await one.db.run(snapshot_edit.edit, older, EditSnapshot(protected=False))
    one.vm.state = "running"
    queued = await one.db.run(deletions.retire, one.vm.uuid, HOST, [older], UUID(int=1))
    one.engine.nudge()
    assert (await one.engine.wait(queued[0], 20)).is_parked
    assert await one.db.run(deletions.retire, one.vm.uuid, HOST, [older], UUID(int=2)) == queued
    await one.db.run(operations.cancel, queued[0])
    one.vm.state = "shut-off"
    assert (await one.delete(newer)).state == "succeeded"
    queued = await one.db.run(deletions.retire, one.vm.uuid, HOST, [older], UUID(int=3))
    one.engine.nudge()
    assert (await one.ended(queued[0])).state == "cancelled"
    assert await undo_points(one) == [older]


async def test_without_an_undo_point_none_is_made(one: World) -> None:
    first = await one.snapshot()
    operation = await one.revert(first, undo_point=False)
    assert (operation.state, operation.result["undo_point"]) == ("succeeded", None)
    assert await undo_points(one) == []


async def test_an_old_undo_point_that_cannot_be_deleted_does_not_fail_the_revert(one: World) -> None:
    first = await one.snapshot()
    old = UUID((await one.revert(first)).result["undo_point"])
    group = await one.db.run(snapshots.group, old)
    one.agent.undeletable = {group.volumes[0].path}
    operation = await one.revert(first)
    assert operation.state == "succeeded"
    assert str(old) in operation.result["remarks"][0]
    one.agent.undeletable = set()
    assert (await one.delete(old)).state == "succeeded"


@pytest.mark.case("R5")
async def test_a_backup_whose_bytes_are_damaged_is_refused_before_the_host_is_asked(one: World) -> None:
    first = await one.snapshot()
    (nvram, _) = await one.db.run(backup_files.of_owner, first)
    good = await one.db.run(lambda: bytes(Content.get(Content.sha256 == nvram.sha256).data))
    await one.db.run(lambda: Content.update(data=b"rotten").where(Content.sha256 == nvram.sha256).execute())
    one.agent.calls.clear()
    operation = await one.revert(first)
    assert operation.error is not None
    assert operation.error.code == "content-corrupt"
    assert one.agent.calls == []
    await one.db.run(lambda: Content.update(data=good).where(Content.sha256 == nvram.sha256).execute())


@pytest.mark.case("R5")
async def test_an_altered_frozen_file_and_an_attached_disk_are_refused_by_name(one: World) -> None:
    first = await one.snapshot()
    frozen = (await one.db.run(snapshots.group, first)).volumes[0].path
    one.agent.files[frozen].version += 1
    altered = await one.revert(first)
    one.agent.files[frozen].version -= 1
    one.vm.tops["vdz"] = one.vm.tops["vda"]
    attached = await one.revert(first)
    del one.vm.tops["vdz"]
    assert [operation.error and operation.error.code for operation in (altered, attached)] == [
        "frozen-file-altered",
        "disk-attached",
    ]
    assert [item.state for item in await one.tree()] == ["ready"]


@pytest.mark.case("R6")
async def test_a_tpm_that_a_complete_snapshot_did_not_have_is_removed_and_kept_in_the_undo_point(
    databases: Databases,
) -> None:
    async with world(databases, host_files={"nvram": b"n"}, expected=["nvram"]) as one:
        first = await one.snapshot()
        one.vm.host_files["tpm"], one.vm.expected = b"a TPM since", ["nvram", "tpm"]
        await one.sync()
        operation = await one.revert(first)
        assert operation.result["removed"] == ["tpm"]
        assert one.vm.host_files == {"nvram": b"n"}
        undo = await one.db.run(backup_files.of_owner, UUID(operation.result["undo_point"]))
        assert [file.type for file in undo] == ["nvram", "tpm"]


@pytest.mark.case("R6")
async def test_a_partial_snapshot_keeps_what_it_does_not_hold_and_says_so(one: World) -> None:
    one.vm.broken["tpm"] = "damaged"
    first = await one.snapshot(host_files="best-effort")
    one.vm.broken.clear()
    operation = await one.revert(first)
    assert operation.result["kept"] == ["tpm"]
    assert one.vm.host_files["tpm"] == b"tpm of win11"


@pytest.mark.case("R9")
async def test_one_volume_alone_goes_back_and_host_files_and_place_stay(one: World) -> None:
    first = await one.snapshot()
    second = await one.snapshot()
    one.vm.host_files["nvram"] = b"later"
    top = one.vm.tops["vdb"]
    operation = await one.revert(first, volumes=["vda"])
    assert operation.state == "succeeded", operation.error
    assert (operation.result["host_files"], operation.result["current"]) == ("left-alone", False)
    assert one.vm.host_files["nvram"] == b"later"
    assert one.vm.tops["vdb"] == top
    current = [item.uuid for item in await one.tree() if item.current]
    assert current == [second]
    undo = await one.db.run(snapshots.get, UUID(operation.result["undo_point"]))
    assert (undo.host_files.state, undo.excluded) == ("none", ["vdb"])
    back = await one.revert(undo.uuid)
    assert back.state == "succeeded", back.error
    # Whole again, so that the fixture's check of where the VM stands holds.
    assert (await one.revert(second)).state == "succeeded"


async def test_a_disk_that_an_unfinished_deletion_has_merged_is_named(one: World) -> None:
    first = await one.snapshot()
    second = await one.snapshot()
    frozen = (await one.db.run(snapshots.group, first)).volumes
    one.agent.undeletable, one.agent.piecemeal = {frozen[1].path}, True
    assert (await one.delete(first)).state == "failed"
    whole = await one.revert(first)
    assert whole.error is not None
    assert (whole.error.code, whole.error.facts["targets"]) == ("snapshot-partly-deleted", "vda")
    assert (await one.revert(first, volumes=["vdb"])).state == "succeeded"
    assert (await one.revert(second)).state == "succeeded"


async def test_an_unknown_disk_or_a_snapshot_that_is_not_whole_is_refused(one: World) -> None:
    first = await one.snapshot()
    unknown = await one.revert(first, volumes=["vdq"])
    await one.db.run(groups.fail, first, "for the test")
    failed = await one.revert(first)
    await one.db.run(groups.remove, first)
    gone = await one.revert(first)
    codes = [operation.error and operation.error.code for operation in (unknown, failed, gone)]
    assert codes == ["invalid-request", "snapshot-busy", "snapshot-not-found"]
    one.agent.files.clear()
    one.vm.tops.clear()


async def test_without_undo_point_the_host_is_told_which_files_snapshots_hold(one: World) -> None:
    first, second = await one.snapshot(), await one.snapshot()
    held = {volume.path for uuid in (first, second) for volume in (await one.db.run(snapshots.group, uuid)).volumes}
    assert (await one.revert(first, undo_point=False)).state == "succeeded"
    requests = [running.request for running in one.agent.transactions.values()]
    (asked,) = [request for request in requests if isinstance(request, RevertRequest)]
    assert set(asked.held) == held
