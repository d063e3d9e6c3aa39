"""Sync, and backing host files up for outside owners."""

from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import pytest

from agent.wire.base import utc_now
from agent.wire.operation import Operation
from controller.operations import backup_host_files
from controller.store import backup_files, host_files
from controller.store.host_files import Kept
from tests.controller.databases import Databases
from tests.controller.world import HASTY, HOST, World, define, world


async def kept(one: World) -> dict[str, Kept]:
    return {item.type: item for item in await one.db.run(host_files.of_vm, one.vm.uuid)}


async def back_up(one: World, *owners: UUID, **changes: Any) -> Operation:
    return await one.act("vm-backup-host-files", backup_host_files.Wanted(owners=list(owners)), **changes)


async def bytes_of(one: World, owner: UUID) -> dict[str, bytes]:
    files = await one.db.run(backup_files.of_owner, owner)
    return {file.type: await one.db.run(backup_files.data, file.uuid) for file in files}


@pytest.mark.case("B8")
async def test_one_type_that_cannot_be_read_does_not_keep_the_other_from_being_saved(one: World) -> None:
    one.vm.broken["nvram"] = "truncated"
    operation = await one.sync()
    assert operation.state == "succeeded"
    assert operation.result["changed"] == ["tpm"]
    held = await kept(one)
    assert held["tpm"].sha256 is not None
    assert held["nvram"].sha256 is None
    assert "host-file-damaged" in str(held["nvram"].reason)


@pytest.mark.case("B7")
async def test_a_type_that_should_be_there_and_is_not_is_reported(one: World) -> None:
    del one.vm.host_files["tpm"]
    operation = await one.sync()
    assert [item["type"] for item in operation.result["failed"]] == ["tpm"]
    assert (await kept(one))["tpm"].reason


async def test_unchanged_host_files_are_not_sent_again(one: World) -> None:
    await one.sync()
    operation = await one.sync()
    assert operation.result["changed"] == []
    assert set(operation.result["host_files"]) == {"nvram", "tpm"}


@pytest.mark.case("B9")
async def test_a_start_noted_while_a_sync_reads_keeps_the_dirty_mark(one: World) -> None:
    async def start(_: int, call: str) -> None:
        if call.endswith("host-files/{type}"):
            await one.db.run(host_files.note_started, one.vm.uuid, HOST, utc_now())

    one.agent.on_call = start
    await one.sync()
    assert all(item.dirty_since is not None for item in (await kept(one)).values())
    one.agent.on_call = None
    await one.sync()
    assert all(item.dirty_since is None for item in (await kept(one)).values())


async def test_what_was_read_while_the_vm_started_is_not_taken(one: World) -> None:
    async def start(_: int, call: str) -> None:
        if call.endswith("host-files/{type}"):
            one.vm.state = "running"

    await one.sync()
    before = await kept(one)
    one.vm.host_files["nvram"] = b"torn"
    one.agent.on_call = start
    operation = await one.sync()
    assert "running" in operation.result["skipped"]
    assert await kept(one) == before


@pytest.mark.case("B1")
async def test_backing_up_a_vm_without_host_files_succeeds_with_an_empty_list(databases: Databases) -> None:
    async with world(databases, host_files={}, expected=[]) as one:
        operation = await back_up(one, uuid4())
        assert (operation.state, operation.result["backup_files"]) == ("succeeded", [])


@pytest.mark.case("B2")
async def test_two_types_to_two_owners_are_four_backup_files_with_the_sources_bytes(one: World) -> None:
    owners = uuid4(), uuid4()
    operation = await back_up(one, *owners)
    assert len(operation.result["backup_files"]) == 4
    assert [await bytes_of(one, owner) for owner in owners] == [one.vm.host_files, one.vm.host_files]


@pytest.mark.case("B3")
async def test_backing_up_again_replaces_and_leaves_no_old_content(one: World) -> None:
    owner = uuid4()
    first = await back_up(one, owner)
    one.vm.host_files = {"nvram": b"newer", "tpm": b"newer too"}
    again = await back_up(one, owner)
    assert again.result["backup_files"] == first.result["backup_files"]
    assert await bytes_of(one, owner) == {"nvram": b"newer", "tpm": b"newer too"}


@pytest.mark.case("B6")
async def test_backups_of_two_vms_to_one_owner_at_once_both_end_and_leave_one_consistent_set(one: World) -> None:
    owner, other = uuid4(), await define(one, "other")
    wanted = backup_host_files.Wanted(owners=[owner])
    queued = [await one.submit("vm-backup-host-files", wanted, vm) for vm in (one.vm.uuid, other.uuid, one.vm.uuid)]
    assert {(await one.ended(operation.uuid)).state for operation in queued} == {"succeeded"}
    assert await bytes_of(one, owner) in (one.vm.host_files, other.host_files)


@pytest.mark.case("B7")
async def test_a_backup_with_a_hole_is_refused_by_name_and_the_old_set_stays(one: World) -> None:
    owner = uuid4()
    await back_up(one, owner)
    saved = dict(one.vm.host_files)
    one.vm.host_files["nvram"] = b"newer"
    one.vm.broken["tpm"] = "damaged"
    operation = await back_up(one, owner)
    assert operation.error is not None
    assert (operation.error.code, operation.error.facts["types"]) == ("host-files-missing", "tpm")
    assert await bytes_of(one, owner) == saved


async def test_of_a_running_vm_the_copies_from_when_it_stopped_are_taken_and_that_is_said(one: World) -> None:
    owner = uuid4()
    await one.sync()
    saved = dict(one.vm.host_files)
    one.vm.state, one.vm.host_files["nvram"] = "running", b"being written"
    operation = await back_up(one, owner)
    assert (operation.result["source"], bool(operation.result["as_of"])) == ("last-sync", True)
    assert await bytes_of(one, owner) == saved


async def test_a_running_vm_that_was_never_copied_cannot_be_backed_up(one: World) -> None:
    one.vm.state = "running"
    operation = await back_up(one, uuid4())
    assert operation.error is not None
    assert operation.error.code == "host-files-missing"


async def test_a_snapshot_cannot_be_named_as_owner(one: World) -> None:
    operation = await back_up(one, await one.snapshot())
    assert operation.error is not None
    assert operation.error.code == "owner-reserved"


@pytest.mark.case("B10")
async def test_a_host_file_above_the_limit_is_refused_by_name_and_the_other_is_kept(one: World) -> None:
    await one.kill()
    patience = replace(HASTY, host_file_limit_bytes=1000)
    one.engine = await one.new_engine(patience=patience).__aenter__()
    one.vm.host_files["nvram"] = b"x" * 1001
    operation = await one.sync()
    assert operation.result["changed"] == ["tpm"]
    assert operation.result["failed"][0]["type"] == "nvram"
    refused = await one.create()
    assert refused.error is not None
    assert (refused.error.code, refused.error.facts["type"]) == ("host-file-too-large", "nvram")
