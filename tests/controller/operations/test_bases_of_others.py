"""Hidden bases whose own VM is gone, while another one stands on them."""

from collections.abc import AsyncIterator
from uuid import UUID

import pytest

from agent.wire.base import utc_now
from agent.wire.upkeep import Leftover
from controller.doctor import examine
from controller.errors import VmNotFound
from controller.operations import snapshot_create, snapshot_delete
from controller.store import bases, events, vms
from tests.controller.databases import Databases
from tests.controller.fake_machine import FakeVm
from tests.controller.world import HOST, World, world


@pytest.fixture
async def one(databases: Databases) -> AsyncIterator[World]:
    async with world(databases, disks=("vda",), host_files={}, expected=[]) as made:
        yield made


async def with_clone(one: World) -> tuple[FakeVm, str]:
    """Return another VM that stands on the one hidden base there is, and the path of that."""
    first = await one.snapshot()
    base = (await one.tree())[0].volumes[0].path
    other = one.agent.add_vm("other", disks=("vda",))
    one.agent.files[other.tops["vda"]].backing = base
    await looked(one)
    assert (await one.delete(first)).state == "succeeded"
    assert [row.path for row in await one.db.run(bases.hidden, HOST)] == [base]
    return other, base


async def undefine(one: World, gone: UUID) -> None:
    """The administrator undefines a VM; the controller sees it."""
    del one.agent.vms[gone]
    await looked(one)


async def looked(one: World) -> None:
    await one.db.run(vms.record_inventory, HOST, await one.hosts.client(HOST).vms(), utc_now())


async def test_a_base_stays_recorded_when_its_vm_is_undefined_and_goes_with_the_last_that_needs_it(one: World) -> None:
    other, base = await with_clone(one)
    await undefine(one, one.vm.uuid)
    assert (await one.db.run(vms.get, one.vm.uuid)).host is None
    assert [row.path for row in await one.db.run(bases.hidden, HOST)] == [base]
    del one.agent.files[one.vm.tops["vda"]]
    taken = await one.act("snapshot-create", snapshot_create.Wanted(), other.uuid)
    assert taken.state == "succeeded", taken.error
    wanted = snapshot_delete.Wanted(snapshot=UUID(taken.result["snapshot"]))
    assert (await one.act("snapshot-delete", wanted, other.uuid)).state == "succeeded"
    assert await one.db.run(bases.hidden, HOST) == []
    await looked(one)
    with pytest.raises(VmNotFound):
        await one.db.run(vms.get, one.vm.uuid)


async def test_forgetting_a_vm_tells_its_files_and_the_doctor_names_one_that_nothing_stands_on(one: World) -> None:
    other, base = await with_clone(one)
    await one.db.run(vms.forget, one.vm.uuid)
    told = [event for event in await one.db.run(events.read, 0, 1000) if event.type == "vm.forgotten"]
    assert told[0].data["files"] == [{"host": HOST, "path": base}]
    assert await one.db.run(bases.hidden, HOST) == []
    one.agent.leftovers = [Leftover(path=base, kind="overlay", transaction=None, size_bytes=1, mtime=utc_now())]
    assert [item.code for item in await examine.examine(one.db, one.hosts)] == []
    await undefine(one, one.vm.uuid)
    await undefine(one, other.uuid)
    with pytest.raises(VmNotFound):
        await one.db.run(vms.get, one.vm.uuid)
    assert [(item.code, item.path) for item in await examine.examine(one.db, one.hosts)] == [("stray-overlay", base)]
