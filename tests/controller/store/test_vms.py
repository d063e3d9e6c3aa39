from uuid import UUID, uuid4

import msgspec
import pytest

from agent.wire.vm import HostVm
from controller.db import Database
from controller.errors import VmAmbiguous, VmBusy, VmConflict, VmNotFound, VmNowhere
from controller.models import BackupFile, Content, Vm, VolumeSnapshot
from controller.store import backup_files, events, host_files, operations, snapshots, vms
from tests.controller.factories import HOST, T0, add_host, add_snapshot, add_vm, at, both, held, host_vm


async def inventory(db: Database, host: str, *found: HostVm) -> None:
    await db.run(add_host, host)
    await db.run(vms.record_inventory, host, list(found), T0)


async def event_types(db: Database) -> list[str]:
    return [event.type for event in await db.run(events.read, 0, 100) if event.type.startswith("vm.")]


async def test_a_vm_is_shown_as_its_host_shows_it(db: Database) -> None:
    vm = host_vm(name="win11")
    await inventory(db, HOST, vm)
    found = await db.run(vms.get, vm.uuid)
    assert (found.name, found.host, found.state, found.tpm, found.disks) == ("win11", HOST, "shut-off", "2.0", vm.disks)
    assert await db.run(vms.definition, vm.uuid, HOST) == vm
    assert await db.run(vms.host_of, vm.uuid) == HOST
    assert await db.run(vms.on_host, HOST) == [vm.uuid]


async def test_changes_are_told_once_and_an_unchanged_vm_tells_nothing(db: Database) -> None:
    vm = host_vm()
    await inventory(db, HOST, vm)
    await inventory(db, HOST, vm)
    await inventory(db, HOST, msgspec.structs.replace(vm, state="running"))
    assert await event_types(db) == ["vm.added", "vm.changed", "vm.changed"]


async def test_a_vm_that_moved_is_on_its_new_host(db: Database) -> None:
    vm = host_vm()
    await inventory(db, HOST, vm)
    await inventory(db, "kvm2", vm)
    await inventory(db, HOST)
    assert await db.run(vms.host_of, vm.uuid) == "kvm2"


@pytest.mark.case("P8")
async def test_a_vm_on_two_hosts_is_a_conflict_until_one_gives_it_up(db: Database) -> None:
    vm = host_vm()
    await inventory(db, HOST, vm)
    await inventory(db, "kvm2", vm)
    assert (await db.run(vms.get, vm.uuid)).conflict == "kvm1, kvm2"
    with pytest.raises(VmConflict, match="kvm1, kvm2"):
        await db.run(vms.host_of, vm.uuid)
    await inventory(db, "kvm2")
    assert (await db.run(vms.get, vm.uuid)).conflict is None
    assert await db.run(vms.host_of, vm.uuid) == HOST


async def test_a_vm_that_is_gone_and_of_which_nothing_is_kept_is_forgotten(db: Database) -> None:
    vm = host_vm()
    await inventory(db, HOST, vm)
    await inventory(db, HOST)
    with pytest.raises(VmNotFound):
        await db.run(vms.get, vm.uuid)


@pytest.mark.parametrize("kept", ["snapshot", "host file", "seed"])
async def test_a_vm_that_is_gone_stays_while_anything_of_it_is_kept(db: Database, kept: str) -> None:
    vm = await db.run(add_vm)
    match kept:
        case "snapshot":
            await db.run(add_snapshot, vm)
        case "host file":
            await db.run(host_files.record_sync, vm, HOST, "tpm", held("tpm", b"tpm"), None, T0)
        case "seed":
            await db.run(backup_files.replace, "vm", vm, both())
    await inventory(db, HOST)
    found = await db.run(vms.get, vm)
    assert (found.host, found.state) == (None, "unknown")
    with pytest.raises(VmNowhere):
        await db.run(vms.host_of, vm)


async def test_a_vm_is_found_by_uuid_in_any_spelling_and_by_a_unique_name(db: Database) -> None:
    vm = await db.run(add_vm, name="win 11 'é\"\n")
    for text in (str(vm), str(vm).upper(), vm.hex, "win 11 'é\"\n"):
        assert await db.run(vms.resolve, text) == vm
    for text in ("", "win", str(uuid4()), "*", "win 11 'é\"\n\0"):
        with pytest.raises(VmNotFound):
            await db.run(vms.resolve, text)


async def test_a_vm_whose_name_is_a_uuid_is_found_by_it(db: Database) -> None:
    name = str(uuid4())
    vm = await db.run(add_vm, name=name)
    assert await db.run(vms.resolve, name) == vm


async def test_a_name_that_several_vms_have_is_refused_with_their_uuids(db: Database) -> None:
    one, other = await db.run(add_vm, name="twin"), await db.run(add_vm, name="twin")
    with pytest.raises(VmAmbiguous, match=str(max(one, other))):
        await db.run(vms.resolve, "twin")


async def test_a_vm_that_was_defined_anew_under_its_old_name_goes_before_the_one_that_is_gone(db: Database) -> None:
    gone = await db.run(add_vm, name="win11")
    await db.run(add_snapshot, gone)
    new = host_vm(name="win11")
    await inventory(db, HOST, new)
    assert await db.run(vms.resolve, "win11") == new.uuid


@pytest.mark.case("D9")
async def test_forgetting_a_vm_takes_all_that_is_its_own_and_nothing_else(db: Database) -> None:
    vm, other, outside = await db.run(add_vm), await db.run(add_vm), uuid4()
    for one in (vm, other):
        first = await db.run(add_snapshot, one, host_files=both(one.bytes))
        await db.run(add_snapshot, one, host_files=both(one.bytes + b"2"))
        await db.run(host_files.record_sync, one, HOST, "tpm", held("tpm", b"synced" + one.bytes), None, T0)
        await db.run(backup_files.replace, "vm", one, both(b"seed" + one.bytes))
        assert first.parent is None
    await db.run(backup_files.replace, "external", outside, both(vm.bytes))
    await db.run(vms.forget, vm)
    with pytest.raises(VmNotFound):
        await db.run(vms.get, vm)
    left = await db.run(lambda: {row.owner_uuid for row in BackupFile.select()})
    kept = {snapshot.uuid for snapshot in await db.run(snapshots.tree, other)}
    assert left == {other, outside} | kept
    assert await db.run(lambda: VolumeSnapshot.select().count()) == 2
    assert await db.run(lambda: Content.select().count()) == 7 + 2
    assert (await event_types(db))[-1] == "vm.forgotten"


async def test_a_vm_with_work_under_way_is_not_forgotten_but_by_that_work(db: Database) -> None:
    vm = await db.run(add_vm)
    work = await db.run(operations.enqueue, "vm-forget", vm, HOST, {})
    with pytest.raises(VmBusy):
        await db.run(vms.forget, vm)
    await db.run(vms.forget, vm, but=work.uuid)
    assert await db.run(lambda: Vm.select().count()) == 0


async def test_pages_are_by_name_and_filtered_by_field(db: Database) -> None:
    names = ["b", "a", "c", "a"]
    made: list[UUID] = [await db.run(add_vm, name=name) for name in names]
    await db.run(add_vm, "kvm2", name="d", state="running")
    first = await db.run(vms.page, 3)
    rest = await db.run(vms.page, 3, first.next)
    assert [vm.name for vm in first.items + rest.items] == ["a", "a", "b", "c", "d"]
    assert rest.next is None
    assert [vm.uuid for vm in (await db.run(vms.page, 9, name="b")).items] == [made[0]]
    assert [vm.name for vm in (await db.run(vms.page, 9, host="kvm2", state="running")).items] == ["d"]


async def test_the_snapshot_that_a_vm_stands_on_is_shown(db: Database) -> None:
    vm = await db.run(add_vm)
    snapshot = await db.run(add_snapshot, vm)
    assert (await db.run(vms.get, vm)).current_snapshot == snapshot.uuid
    await db.run(vms.record_one, HOST, host_vm(uuid=vm, name="renamed"), at(1))
    assert (await db.run(snapshots.get, snapshot.uuid)).vm_name == "renamed"
