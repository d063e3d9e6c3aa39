"""Editing and protecting snapshots, forgetting VMs, and a VM's volumes."""

from typing import Any
from uuid import UUID

import msgspec
import pytest
from peewee import Model

from agent.wire.vm import Disk, Image
from controller.db import Database
from controller.models import BackupFile, Content, HostFile, Snapshot, VolumeSnapshot
from controller.store import backup_files, events, groups, host_files, operations, snapshots, vms
from tests.controller.api.conftest import Api
from tests.controller.factories import HOST, T0, add_snapshot, add_vm, at, both, frozen, held, host_vm


def count(*models: type[Model]) -> list[int]:
    return [model.select().count() for model in models]


async def edit(api: Api, uuid: UUID, body: Any, **headers: str) -> Any:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    answer = await api.call("PATCH", f"/v1/snapshots/{uuid}", "operator", json=body, headers=named)
    assert answer.status == 200, await answer.text()
    return await answer.json()


async def test_an_edit_changes_what_it_names_and_tells_it(db: Database, api: Api) -> None:
    vm = await db.run(add_vm)
    uuid = (await db.run(add_snapshot, vm, labels={"a": "1"}, description="old")).uuid
    after = await edit(api, uuid, {"name": "new name", "labels": {"b": "2"}})
    assert (after["name"], after["labels"], after["description"]) == ("new name", {"b": "2"}, "old")
    assert await api.json(f"/v1/snapshots/{uuid}") == after
    last = (await db.run(events.read, 0, 1000))[-1]
    assert (last.type, last.data["changed"]) == ("snapshot.changed", ["labels", "name"])
    await edit(api, uuid, {"name": "new name"})
    assert (await db.run(events.read, 0, 1000))[-1] == last


async def test_an_edit_needs_the_version_that_was_seen(db: Database, api: Api) -> None:
    uuid = (await db.run(add_snapshot, await db.run(add_vm))).uuid
    seen = (await api.get(f"/v1/snapshots/{uuid}")).headers["ETag"]
    await edit(api, uuid, {"description": "first"}, If_Match=seen)
    stale = await api.code("PATCH", f"/v1/snapshots/{uuid}", json={"name": "late"}, headers={"If-Match": seen})
    assert stale == (412, "precondition-failed")
    assert (await db.run(snapshots.get, uuid)).name == "before-update"


@pytest.mark.parametrize("body", [{}, {"name": ""}, {"name": "a\nb"}, {"labels": {"": "x"}}, {"current": True}])
async def test_an_edit_that_breaks_the_rules_for_names_is_refused(db: Database, api: Api, body: Any) -> None:
    uuid = (await db.run(add_snapshot, await db.run(add_vm))).uuid
    status, _ = await api.code("PATCH", f"/v1/snapshots/{uuid}", json=body)
    assert status in {400, 422}
    assert (await db.run(snapshots.get, uuid)).name == "before-update"


@pytest.mark.case("D10")
async def test_a_protected_snapshot_is_neither_deleted_nor_ungrouped_nor_forgotten(db: Database, api: Api) -> None:
    vm = await db.run(add_vm)
    uuid = (await db.run(add_snapshot, vm)).uuid
    assert (await edit(api, uuid, {"protected": True}))["protected"] is True
    for method, path in (
        ("DELETE", f"/v1/snapshots/{uuid}"),
        ("POST", f"/v1/snapshots/{uuid}/ungroup"),
        ("DELETE", f"/v1/vms/{vm}"),
    ):
        assert await api.code(method, path) == (409, "snapshot-protected")
    assert not await db.run(operations.open_count, vm=vm)
    await edit(api, uuid, {"protected": False})
    assert (await api.call("DELETE", f"/v1/snapshots/{uuid}", "operator")).status == 202


@pytest.mark.case("D10")
async def test_protection_that_comes_after_the_request_still_holds(db: Database, api: Api) -> None:
    uuid = (await db.run(add_snapshot, await db.run(add_vm))).uuid
    assert (await api.call("DELETE", f"/v1/snapshots/{uuid}", "operator")).status == 202
    await edit(api, uuid, {"protected": True})
    with pytest.raises(Exception, match="protected"):
        await db.run(groups.begin, uuid, "deleting")


@pytest.mark.case("D9")
async def test_forgetting_a_vm_takes_its_records_and_nothing_of_others(db: Database, api: Api) -> None:
    vm, other = await db.run(add_vm), await db.run(add_vm, name="other")
    for one in (vm, other):
        for kind, content in both(str(one).encode()).items():
            await db.run(host_files.record_sync, one, HOST, kind, content, None, T0)
        await db.run(backup_files.replace, "vm", one, {"nvram": held("nvram", b"seed" + one.bytes)})
        await db.run(add_snapshot, one, volumes=[frozen(path=f"/images/{one}.qcow2")])
    left = await db.run(vms.get, other)
    answer = await api.call("DELETE", f"/v1/vms/{vm}", "operator")
    assert (answer.status, (await answer.json())["uuid"]) == (200, str(vm))
    assert (await api.get(f"/v1/vms/{vm}")).status == 404
    assert await db.run(count, Snapshot, VolumeSnapshot) == [1, 1]
    # The other VM's: two host files, two backup files of its snapshot, one seed; its seed and both files are contents.
    assert await db.run(count, HostFile, BackupFile, Content) == [2, 3, 5]
    assert await db.run(vms.get, other) == left


@pytest.mark.case("D9")
async def test_a_vm_at_work_is_not_forgotten_and_a_stale_version_neither(db: Database, api: Api) -> None:
    vm = await db.run(add_vm)
    assert await api.code("DELETE", f"/v1/vms/{vm}", headers={"If-Match": f'"{"0" * 64}"'}) == (
        412,
        "precondition-failed",
    )
    work = await db.run(operations.enqueue, "vm-sync", vm, HOST, {})
    assert await api.code("DELETE", f"/v1/vms/{vm}") == (409, "vm-busy")
    await db.run(operations.finish, work.uuid, "succeeded")
    assert (await api.call("DELETE", f"/v1/vms/{vm}", "operator")).status == 200


async def test_volumes_show_depth_sizes_and_whose_each_file_is(db: Database, api: Api) -> None:
    image = msgspec.structs.replace(Image.example(), allocated_bytes=100)
    chain = [msgspec.structs.replace(image, path=f"/images/{name}.qcow2") for name in ("top", "vda", "template")]
    disk = msgspec.structs.replace(Disk.example(), chain=chain, chain_depth=3, path=chain[0].path)
    vm = host_vm(disks=[disk])
    await db.run(add_vm, **msgspec.structs.asdict(vm))
    taken = await db.run(add_snapshot, vm.uuid, created_at=at(1))
    (volume,) = (await api.json(f"/v1/vms/{vm.name}/volumes"))["items"]
    assert (volume["depth"], volume["allocated_bytes"]) == (3, 300)
    assert [file["snapshots"] for file in volume["chain"]] == [[], [str(taken.uuid)], []]
