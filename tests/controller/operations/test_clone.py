"""Making clones of a snapshot, and of a VM as it stands."""

from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import pytest

from agent.wire.base import utc_now
from agent.wire.operation import Operation
from controller.errors import DisksNotRemoved, VmDefined
from controller.forgetting import remove_disks
from controller.models import Clone
from controller.operations import snapshot_create, snapshot_delete
from controller.operations.clone import Target, Wanted, WantedOfVm
from controller.store import backup_files, bases, clones, events, groups, host_files, hosts, snapshots, vms
from tests.controller.world import HOST, World


def made_of(operation: Operation) -> dict[str, UUID]:
    """Return the UUID of each clone by its name."""
    assert operation.state == "succeeded", operation.error
    return {row["name"]: UUID(row["vm"]) for row in operation.result["clones"]}


async def seed(one: World, vm: UUID) -> dict[str, bytes]:
    found = await one.db.run(backup_files.of_owner, vm)
    assert {file.owner_kind for file in found} <= {"vm"}
    return {file.type: await one.db.run(backup_files.data, file.uuid) for file in found}


async def take_of(one: World, vm: UUID, **wanted: Any) -> Operation:
    return await one.act("snapshot-create", snapshot_create.Wanted(**wanted), vm=vm)


@pytest.mark.case("C1")
@pytest.mark.parametrize("mode", ["linked", "full"])
async def test_several_clones_are_made_each_with_its_own_files(one: World, mode: str) -> None:
    snapshot = await one.snapshot()
    frozen = {volume.target: volume.path for volume in (await one.db.run(snapshots.group, snapshot)).volumes}
    ended = await one.clone(snapshot, "a", "b", mode=mode)
    made = made_of(ended)
    assert list(made) == ["a", "b"]
    for name, vm in made.items():
        fake = one.agent.vms[vm]
        assert fake.name == name
        backings = {target: one.agent.files[top].backing for target, top in fake.tops.items()}
        assert backings == (frozen if mode == "linked" else dict.fromkeys(frozen))
        assert fake.host_files == {"nvram": one.vm.host_files["nvram"]}
        assert (await one.db.run(vms.get, vm)).host == HOST
    standing = await one.db.run(lambda: bases.standing(HOST)[frozen["vda"]])
    assert {child.vm for child in standing} == {one.vm.uuid, *(made.values() if mode == "linked" else [])}


@pytest.mark.case("C2")
@pytest.mark.parametrize("tpm", ["reset", "copy"])
async def test_the_choice_of_tpm_is_carried_out_and_recorded(one: World, tpm: str) -> None:
    snapshot = await one.snapshot()
    (vm,) = made_of(await one.clone(snapshot, "a", tpm=tpm)).values()
    assert ("tpm" in one.agent.vms[vm].host_files) == (tpm == "copy")
    origin = (await one.db.run(vms.get, vm)).clone
    assert origin is not None
    assert (origin.vm, origin.snapshot, origin.mode, origin.tpm) == (one.vm.uuid, snapshot, "linked", tpm)
    told = [event for event in await one.db.run(events.read, 0, 1000) if event.type == "clone.ready"]
    assert [(event.vm, event.data["tpm"]) for event in told] == [(vm, tpm)]


@pytest.mark.case("C3")
@pytest.mark.parametrize("tpm", ["reset", "copy"])
async def test_a_clone_that_never_started_is_snapshotted_and_cloned_from_its_seed(one: World, tpm: str) -> None:
    snapshot = await one.snapshot()
    (vm,) = made_of(await one.clone(snapshot, "a", tpm=tpm)).values()
    types = ["nvram"] if tpm == "reset" else ["nvram", "tpm"]
    given = {kind: data for kind, data in one.vm.host_files.items() if kind in types}
    assert await seed(one, vm) == given
    one.agent.vms[vm].host_files.clear()  # lost on the host before the first start
    ended = await take_of(one, vm)
    assert ended.state == "succeeded", ended.error
    group = await one.db.run(snapshots.group, UUID(ended.result["snapshot"]))
    assert (group.snapshot.host_files.state, group.snapshot.host_files.expected) == ("complete", types)
    assert {file.type: await one.db.run(backup_files.data, file.uuid) for file in group.backups} == given
    (second,) = made_of(await one.act("snapshot-clone", wanted(group.snapshot.uuid, "b"), vm=vm)).values()
    assert one.agent.vms[second].host_files == {"nvram": given["nvram"]}


@pytest.mark.case("C3")
async def test_a_clone_that_has_started_is_no_longer_filled_from_its_seed(one: World) -> None:
    snapshot = await one.snapshot()
    (vm,) = made_of(await one.clone(snapshot, "a", tpm="copy")).values()
    await one.db.run(host_files.note_started, vm, HOST, utc_now())
    del one.agent.vms[vm].host_files["tpm"]
    ended = await take_of(one, vm)
    assert ended.error is not None
    assert ended.error.code == "host-file-missing"


async def test_a_seed_does_not_stand_in_for_a_damaged_file(one: World) -> None:
    snapshot = await one.snapshot()
    (vm,) = made_of(await one.clone(snapshot, "a")).values()
    one.agent.vms[vm].broken["nvram"] = "its header says so"
    ended = await take_of(one, vm)
    assert ended.error is not None
    assert ended.error.code == "host-files-missing"
    assert (await take_of(one, vm, host_files="none")).state == "succeeded"


@pytest.mark.case("C3")
async def test_forgetting_a_clone_removes_its_seed_and_its_record(one: World) -> None:
    snapshot = await one.snapshot()
    (vm,) = made_of(await one.clone(snapshot, "a")).values()
    await one.db.run(vms.forget, vm)
    assert await seed(one, vm) == {}
    assert await one.db.run(clones.seed_of, vm) is None
    del one.agent.vms[vm]
    one.agent.files = {path: file for path, file in one.agent.files.items() if str(vm) not in path}
    for path in [path for path in one.agent.files if path not in _known(one)]:
        del one.agent.files[path]


def _known(one: World) -> set[str]:
    tops = {top for vm in one.agent.vms.values() for top in vm.tops.values()}
    return tops | {str(one.agent.files[top].backing) for top in tops}


@pytest.mark.case("D3")
async def test_a_node_a_clone_stands_on_goes_at_once_and_its_files_when_the_clone_is_gone(one: World) -> None:
    node = await one.snapshot()
    frozen = {volume.target: volume.path for volume in (await one.db.run(snapshots.group, node)).volumes}
    (vm,) = made_of(await one.clone(node, "a")).values()
    other = await one.snapshot()
    deleted = await one.delete(node)
    assert (deleted.state, deleted.result["hidden"]) == ("succeeded", ["vda", "vdb"])
    await one.check()
    assert (await one.delete(other)).result["remarks"] == []
    assert set(await one.hidden()) == set(frozen.values())
    del one.agent.files[one.agent.vms[vm].tops["vda"]], one.agent.files[one.agent.vms.pop(vm).tops["vdb"]]
    await one.db.run(vms.forget, vm)
    last = await one.snapshot()
    assert (await one.delete(last)).result["remarks"] == []
    assert await one.hidden() == {}


@pytest.mark.case("D3")
async def test_a_base_that_only_a_clone_stands_on_is_merged_by_the_clones_own_next_deletion(one: World) -> None:
    root, node = await one.snapshot(), await one.snapshot()
    (vm,) = made_of(await one.clone(node, "a")).values()
    assert (await one.revert(root, undo_point=False)).state == "succeeded"
    assert (await one.delete(node)).result["hidden"] == ["vda", "vdb"]
    await one.check()
    own = UUID((await take_of(one, vm)).result["snapshot"])
    deleted = await one.act("snapshot-delete", snapshot_delete.Wanted(snapshot=own), vm=vm)
    assert (deleted.state, deleted.result["remarks"]) == ("succeeded", [])
    assert await one.hidden() == {}


@pytest.mark.case("D9")
async def test_disks_go_with_a_vm_on_demand_unless_somebody_stands_on_them(one: World) -> None:
    node = await one.snapshot()
    (vm,) = made_of(await one.clone(node, "a")).values()
    source = one.vm.uuid
    with pytest.raises(VmDefined):
        await remove_disks(one.db, one.hosts, source)
    del one.agent.vms[source]
    await look(one)
    before = dict(one.agent.files)
    with pytest.raises(DisksNotRemoved, match="is needed by VM"):
        await remove_disks(one.db, one.hosts, source)
    assert one.agent.files == before
    del one.agent.vms[vm]
    await look(one)
    for gone in (vm, source):
        await remove_disks(one.db, one.hosts, gone)
        await remove_disks(one.db, one.hosts, gone)  # a call that died before the records went is repeated
        await one.db.run(vms.forget, gone)
    assert one.agent.files == {}


async def look(one: World) -> None:
    await one.db.run(vms.record_inventory, HOST, await one.hosts.client(HOST).vms(), utc_now())


async def test_a_clone_follows_its_host_to_another_name(one: World) -> None:
    snapshot = await one.snapshot()
    (vm,) = made_of(await one.clone(snapshot, "a")).values()
    present = await one.db.run(hosts.endpoint, HOST)
    await one.db.run(hosts.change, HOST, replace(present, name="renamed"))
    assert await one.db.run(lambda: Clone.get(Clone.vm == vm).host) == "renamed"


def wanted(snapshot: UUID, *names: str, **more: Any) -> Wanted:
    return Wanted(snapshot=snapshot, targets=[Target(name=name) for name in names], **more)


@pytest.mark.case("C4")
async def test_the_same_names_or_ids_again_give_the_same_clones(one: World) -> None:
    snapshot = await one.snapshot()
    first = await one.clone(snapshot, "a", "b")
    again = await one.clone(snapshot, "a", "b")
    assert (first.uuid != again.uuid, first.result) == (True, again.result)
    uuid = uuid4()
    by_id = Wanted(snapshot=snapshot, targets=[Target(name="c", uuid=uuid)])
    ended = [await one.act("snapshot-clone", by_id) for _ in range(2)]
    assert [made_of(one_of) for one_of in ended] == [{"c": uuid}] * 2
    by_key = [await one.submit("snapshot-clone", wanted(snapshot, "d"), key="k") for _ in range(2)]
    assert by_key[0].uuid == by_key[1].uuid
    await one.ended(by_key[0].uuid)
    assert sorted(vm.name for vm in one.agent.vms.values()) == ["a", "b", "c", "d", "win11"]
    other = Wanted(snapshot=snapshot, targets=[Target(name="e", uuid=uuid)])
    refused = await one.act("snapshot-clone", other)
    assert refused.error is not None
    assert refused.error.code == "vm-exists"


async def test_another_mode_with_the_name_of_a_clone_is_refused_by_the_host(one: World) -> None:
    snapshot = await one.snapshot()
    made_of(await one.clone(snapshot, "a"))
    refused = await one.clone(snapshot, "a", mode="full")
    assert refused.error is not None
    assert refused.error.code == "domain-exists"


@pytest.mark.case("C5")
async def test_one_of_several_that_fails_leaves_nothing_and_is_named(one: World) -> None:
    snapshot = await one.snapshot()
    one.agent.uncloneable = {"b"}
    ended = await one.clone(snapshot, "a", "b", "c")
    assert ended.state == "failed"
    assert ended.error is not None
    assert ended.error.code == "clones-failed"
    assert [row["name"] for row in ended.error.facts["clones"]] == ["a", "c"]
    assert [(row["name"], row["code"]) for row in ended.error.facts["failed"]] == [("b", "no-space")]
    assert sorted(vm.name for vm in one.agent.vms.values()) == ["a", "c", "win11"]
    one.agent.uncloneable = set()
    made = made_of(await one.clone(snapshot, "a", "b", "c"))
    assert sorted(made) == ["a", "b", "c"]
    assert {str(made[row["name"]]) for row in ended.error.facts["clones"]} == {str(made["a"]), str(made["c"])}


@pytest.mark.case("C5")
async def test_a_single_clone_that_fails_says_why_in_the_hosts_own_words(one: World) -> None:
    snapshot = await one.snapshot()
    one.agent.uncloneable = {"a"}
    ended = await one.clone(snapshot, "a")
    assert ended.error is not None
    assert ended.error.code == "no-space"
    assert len(one.agent.vms) == 1


async def test_a_snapshot_without_host_files_makes_no_clone_that_would_start_blank(one: World) -> None:
    snapshot = await one.snapshot()
    await one.db.run(groups.ungroup, snapshot)
    ended = await one.clone(snapshot, "a")
    assert ended.error is not None
    assert ended.error.code == "host-file-missing"


async def test_a_copy_that_takes_long_can_be_cancelled_before_it_is_committed(one: World) -> None:
    snapshot = await one.snapshot()
    one.agent.copying = True
    begun = await one.submit("snapshot-clone", wanted(snapshot, "a", mode="full"))
    while not one.agent.transactions or all(t.view.kind != "clone" for t in one.agent.transactions.values()):
        await one.db.changed(one.db.version)
    await one.engine.cancel(begun.uuid)
    assert (await one.ended(begun.uuid)).state == "cancelled"
    assert [t.view.state for t in one.agent.transactions.values() if t.view.kind == "clone"] == ["aborted"]
    assert len(one.agent.vms) == 1


async def test_a_vm_is_cloned_as_it_stands_by_way_of_an_ordinary_snapshot(one: World) -> None:
    request = WantedOfVm(targets=[Target(name="a"), Target(name="b")], tpm="copy")
    ended = await one.act("vm-clone", request)
    made = made_of(ended)
    (taken,) = await one.tree()
    assert (str(taken.uuid), taken.automatic, taken.current) == (ended.result["snapshot"], False, True)
    assert "a, b" in taken.description
    assert {one.agent.vms[vm].host_files["tpm"] for vm in made.values()} == {one.vm.host_files["tpm"]}
    again = await one.act("vm-clone", request)
    assert again.result == ended.result
    assert len(await one.tree()) == 1


async def test_a_clone_whose_making_nobody_could_confirm_is_settled_before_the_next_work(one: World) -> None:
    snapshot = await one.snapshot()
    commits = [0]

    async def die_at_commit(_: int, name: str) -> None:
        if name.endswith("/commit"):
            commits[0] += 1
            one.agent.faults[len(one.agent.calls) - 1] = "drop-after"
        elif commits[0]:
            one.agent.dead = True

    one.agent.on_call = die_at_commit
    ended = await one.clone(snapshot, "a", "b")
    assert ended.error is not None
    assert ended.error.code == "outcome-unknown"
    one.agent.on_call, one.agent.dead = None, False
    assert (await one.sync()).state == "succeeded"
    known = [vm.name for vm in (await one.db.run(vms.page, 10)).items]
    assert sorted(known) == ["a", "win11"]
    assert sorted(made_of(await one.clone(snapshot, "a", "b"))) == ["a", "b"]
