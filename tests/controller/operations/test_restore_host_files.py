"""Putting host files back that were lost, and replacing them on request."""

from typing import Any
from uuid import UUID

import pytest

from agent.wire.operation import Operation
from controller.operations import restore_host_files
from controller.store import backup_files, host_files
from tests.controller.fake_machine import digest
from tests.controller.world import World


async def restore(one: World, **wanted: Any) -> Operation:
    return await one.act("vm-restore-host-files", restore_host_files.Wanted(**wanted))


def code(operation: Operation) -> str:
    assert operation.error is not None
    return operation.error.code


@pytest.mark.case("P5")
async def test_what_the_host_lacks_is_put_back_from_the_newest_copy_and_the_rest_is_left(one: World) -> None:
    await one.sync()
    before = dict(one.vm.host_files)
    del one.vm.host_files["tpm"]
    one.vm.host_files["nvram"] = b"newer than its copy"
    done = await restore(one)
    assert (done.state, done.result["restored"], done.result["kept_as"]) == ("succeeded", ["tpm"], None)
    assert one.vm.host_files == {"nvram": b"newer than its copy", "tpm": before["tpm"]}
    kept = {item.type: item for item in await one.db.run(host_files.of_vm, one.vm.uuid)}
    assert kept["nvram"].sha256 == digest(b"newer than its copy")
    again = await restore(one)
    assert (again.state, again.result["restored"]) == ("succeeded", [])


async def test_what_is_replaced_is_kept_under_the_operation(one: World) -> None:
    first = await one.snapshot()
    frozen = dict(one.vm.host_files)
    one.vm.host_files = {"nvram": b"since", "tpm": b"since then"}
    done = await restore(one, types=["nvram"], snapshot=first)
    assert one.vm.host_files == {"nvram": frozen["nvram"], "tpm": b"since then"}
    assert done.result["kept_as"] == str(done.uuid)
    (kept,) = await one.db.run(backup_files.of_owner, done.uuid)
    assert await one.db.run(backup_files.data, kept.uuid) == b"since"
    back = await restore(one, backup_file=kept.uuid)
    assert back.state == "succeeded"
    assert one.vm.host_files["nvram"] == b"since"


async def test_nothing_is_begun_where_a_chosen_copy_is_not_held(one: World) -> None:
    one.vm.host_files.clear()
    assert code(await restore(one)) == "host-file-not-held"
    assert code(await restore(one, backup_file=UUID(int=1))) == "backup-file-not-found"
    one.vm.expected = ["nvram"]
    assert code(await restore(one, types=["tpm"])) == "invalid-request"
    assert not one.agent.transactions


async def test_a_vm_that_runs_keeps_its_files_and_no_copy_is_made_of_them(one: World) -> None:
    await one.sync()
    one.vm.state = "running"
    done = await restore(one, types=["nvram", "tpm"])
    assert code(done) == "domain-running"
    assert await one.db.run(backup_files.of_owner, done.uuid) == []
    one.vm.state = "shut-off"
