"""Taking a snapshot."""

import pytest

from controller.store import backup_files, host_files, snapshots
from tests.controller.databases import Databases
from tests.controller.world import HOST, World, world


async def test_a_snapshot_holds_disks_and_host_files_under_its_own_uuid(one: World) -> None:
    uuid = await one.snapshot(name="first", labels={"why": "test"})
    group = await one.db.run(snapshots.group, uuid)
    assert [volume.target for volume in group.volumes] == ["vda", "vdb"]
    assert {backup.owner_uuid for backup in group.backups} == {uuid}
    held = {backup.type: await one.db.run(backup_files.data, backup.uuid) for backup in group.backups}
    assert held == one.vm.host_files
    assert (group.snapshot.current, group.snapshot.labels) == (True, {"why": "test"})
    assert group.snapshot.host_files.state == "complete"


async def test_the_captured_host_files_are_also_the_newest_copies(one: World) -> None:
    await one.snapshot()
    kept = await one.db.run(host_files.of_vm, one.vm.uuid)
    assert {item.type for item in kept if item.sha256 and item.host == HOST} == {"nvram", "tpm"}


async def test_a_second_snapshot_stands_on_the_first(one: World) -> None:
    first, second = await one.snapshot(), await one.snapshot()
    tree = await one.tree()
    assert [(item.uuid, item.parent, item.current) for item in tree] == [(first, None, False), (second, first, True)]


@pytest.mark.case("S2")
async def test_a_bios_vm_without_tpm_is_complete_with_nothing_expected(databases: Databases) -> None:
    async with world(databases, host_files={}, expected=[]) as one:
        await one.snapshot()
        (taken,) = await one.tree()
        assert (taken.host_files.state, taken.host_files.expected, taken.backup_files) == ("complete", [], [])


@pytest.mark.case("S3")
async def test_with_host_files_none_no_host_file_is_read(one: World) -> None:
    await one.snapshot(host_files="none")
    (taken,) = await one.tree()
    assert (taken.host_files.state, taken.backup_files) == ("none", [])
    assert not [call for call in one.agent.calls if "host-files" in call]


@pytest.mark.case("S5")
async def test_a_host_file_that_cannot_be_read_fails_a_required_snapshot_with_the_hosts_reason(one: World) -> None:
    one.vm.broken["tpm"] = "its header disagrees with its size"
    operation = await one.create()
    assert operation.state == "failed"
    assert operation.error is not None
    assert (operation.error.code, operation.error.facts["type"]) == ("host-file-damaged", "tpm")
    assert await one.tree() == []


@pytest.mark.case("S5")
async def test_with_best_effort_the_snapshot_is_partial_and_says_why(one: World) -> None:
    one.vm.broken["tpm"] = "its header disagrees with its size"
    await one.snapshot(host_files="best-effort")
    (taken,) = await one.tree()
    assert (taken.host_files.state, taken.host_files.missing) == ("partial", ["tpm"])
    assert taken.host_files.reason == "tpm: its header disagrees with its size"
    assert len(taken.backup_files) == 1


async def test_a_running_vm_is_refused_with_the_hosts_own_code(one: World) -> None:
    one.vm.state = "running"
    operation = await one.create()
    assert operation.error is not None
    assert (operation.state, operation.error.code, operation.error.status) == ("failed", "domain-running", 409)


async def test_other_bytes_than_announced_are_not_used(one: World) -> None:
    async def alter(_: int, name: str) -> None:
        if name.endswith("host-files/{type}"):
            for running in one.agent.transactions.values():
                running.captured["tpm"] = b"altered on the way"

    one.agent.on_call = alter
    operation = await one.create()
    assert operation.error is not None
    assert (operation.error.code, operation.error.facts["type"]) == ("capture-corrupt", "tpm")
    assert await one.tree() == []


async def test_a_commit_whose_answer_never_comes_is_settled_before_the_next_work(one: World) -> None:
    commit = await number_of(one, "POST /v1/transactions/{id}/commit")

    async def die_from_commit_on(number: int, _: str) -> None:
        one.agent.dead = number > commit

    one.agent.faults[commit] = "drop-after"
    one.agent.on_call = die_from_commit_on
    operation = await one.create(name="second")
    assert operation.error is not None
    assert operation.error.code == "outcome-unknown"
    assert [item.state for item in await one.tree()] == ["ready", "creating"]
    one.agent.on_call, one.agent.dead = None, False
    assert (await one.create(name="third")).state == "succeeded"
    assert [item.name for item in await one.tree()] == ["first", "second", "third"]


async def test_while_the_host_does_not_say_no_other_work_begins(one: World) -> None:
    commit = await number_of(one, "POST /v1/transactions/{id}/commit")
    one.agent.faults[commit] = "crash"
    assert (await one.create(name="second")).state == "failed"
    refused = await one.create(name="third")
    assert refused.error is not None
    assert refused.error.code == "outcome-unknown"
    await one.mend()
    assert [item.name for item in await one.tree()] == ["first"]


async def number_of(one: World, call: str) -> int:
    """Return the number that this call will have in the next snapshot, seen in a first one."""
    await one.snapshot(name="first")
    number = one.agent.calls.index(call)
    one.agent.calls.clear()
    return number
