"""Verification against an agent in memory: what it finds, and that it changes nothing."""

from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import msgspec
import pytest

from agent.wire.finding import Finding
from agent.wire.operation import Operation
from controller.models import BackupFile, Content, Snapshot, VolumeSnapshot
from controller.operations import snapshot_create, verify, verify_all
from controller.store import operations
from tests.controller.databases import Databases
from tests.controller.world import World, define, world


@pytest.fixture
async def one(databases: Databases) -> AsyncIterator[World]:
    async with world(databases) as made:
        yield made


async def verified(one: World, snapshot: UUID | None = None, **wanted: Any) -> Operation:
    operation = await one.act("snapshot-verify", verify.Wanted(snapshot=snapshot, **wanted))
    assert operation.state == "succeeded", operation.error
    return operation


def found(operation: Operation) -> list[Finding]:
    return msgspec.convert(operation.result["findings"], list[Finding])


async def codes(one: World, snapshot: UUID | None = None, **wanted: Any) -> list[str]:
    return [finding.code for finding in found(await verified(one, snapshot, **wanted))]


async def test_what_is_as_it_was_has_no_findings(one: World) -> None:
    first, _ = await one.snapshot(), await one.snapshot()
    operation = await verified(one, first)
    assert (operation.result["snapshots"], operation.result["volumes"], found(operation)) == (1, 2, [])
    assert operation.progress.percent == 100
    assert (await verified(one)).result["snapshots"] == 2
    one.vm.state = "running"
    assert await codes(one) == []
    await one.check()


async def test_missing_altered_moved_and_corrupt_files_are_each_named(one: World) -> None:
    first, second = await one.snapshot(), await one.snapshot()
    volumes = {volume.target: volume.path for volume in (await one.tree())[0].volumes}
    upper = {volume.target: volume.path for volume in (await one.tree())[1].volumes}
    gone = one.agent.files.pop(volumes["vda"])
    one.agent.files[volumes["vdb"]].version += 1
    one.agent.files[upper["vda"]].backing = "/images/other.qcow2"
    one.agent.corrupt.add(upper["vdb"])
    operation = await verified(one, first)
    assert [(finding.code, finding.path) for finding in found(operation)] == [
        ("frozen-file-missing", volumes["vda"]),
        ("frozen-file-altered", volumes["vdb"]),
    ]
    assert all(finding.snapshot == first and finding.host == "kvm1" for finding in found(operation))
    assert await codes(one, second) == ["backing-changed", "image-corrupt"]
    assert await codes(one, second, deep=False) == ["backing-changed"]
    one.agent.files[volumes["vda"]] = gone


async def test_damaged_and_lost_copies_of_host_files_are_named(one: World) -> None:
    snapshot = await one.snapshot()

    def spoil() -> None:
        nvram = BackupFile.get(BackupFile.owner_uuid == snapshot, BackupFile.type == "nvram")
        Content.update(data=b"not zstd").where(Content.sha256 == nvram.content_id).execute()
        BackupFile.delete().where(BackupFile.owner_uuid == snapshot, BackupFile.type == "tpm").execute()

    await one.db.run(spoil)
    assert await codes(one, snapshot) == ["host-file-copy-damaged", "host-file-copy-missing"]


async def test_host_files_that_differ_from_the_newest_copy_are_told_for_information(one: World) -> None:
    snapshot = await one.snapshot()
    await one.sync()
    assert await codes(one, snapshot) == []
    one.vm.host_files["nvram"] = b"edited by hand"
    del one.vm.host_files["tpm"]
    findings = {finding.code: finding.severity for finding in found(await verified(one, snapshot))}
    assert findings == {"host-file-drift": "info", "host-file-unusable": "warning"}
    one.vm.state = "running"
    assert await codes(one, snapshot) == []


async def test_a_host_that_does_not_answer_is_a_finding_and_not_silence(one: World) -> None:
    snapshot = await one.snapshot()
    one.agent.dead = True
    assert await codes(one, snapshot) == ["not-checked", "not-checked"]


async def test_a_snapshot_that_is_gone_when_its_turn_comes_fails_the_operation(one: World) -> None:
    snapshot = await one.snapshot()
    await one.delete(snapshot)
    operation = await one.act("snapshot-verify", verify.Wanted(snapshot=snapshot))
    assert operation.error is not None
    assert operation.error.code == "snapshot-not-found"


async def test_everything_is_verified_vm_by_vm_with_one_result(one: World) -> None:
    await one.snapshot()
    other = await define(one, "other")
    await one.act("snapshot-create", snapshot_create.Wanted(), other.uuid)
    one.agent.files[f"/images/{other.name}.vda.qcow2"].version += 1
    operation = await one.engine.submit("fleet-verify", verify_all.Wanted(), lambda: (None, None))
    ended = await one.ended(operation.uuid)
    assert (ended.result["vms"], ended.result["snapshots"], ended.result["volumes"]) == (2, 2, 4)
    assert [(finding.code, finding.vm) for finding in found(ended)] == [("frozen-file-altered", other.uuid)]


async def test_cancelling_the_whole_cancels_what_waits(one: World) -> None:
    await one.snapshot()
    held = await one.db.run(operations.enqueue, "held", one.vm.uuid, None, {})
    await one.db.run(operations.claim, held.uuid, "somebody")
    operation = await one.engine.submit("fleet-verify", verify_all.Wanted(), lambda: (None, None))
    while not (waiting := (await one.db.run(operations.page, 10, kind="snapshot-verify")).items):
        await one.db.changed(one.db.version)
    await one.engine.cancel(operation.uuid)
    assert (await one.ended(operation.uuid)).state == "cancelled"
    assert (await one.ended(waiting[0].uuid)).state == "cancelled"
    await one.db.run(operations.finish, held.uuid, "succeeded")


async def test_verifying_writes_no_record_of_snapshots(one: World) -> None:
    await one.snapshot()

    def rows() -> list[Any]:
        return [list(model.select().dicts()) for model in (Snapshot, VolumeSnapshot, BackupFile, Content)]

    before = await one.db.run(rows)
    await codes(one)
    assert await one.db.run(rows) == before
