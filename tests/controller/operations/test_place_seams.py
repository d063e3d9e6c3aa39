"""Where a move meets what else is done with a VM: conflicts, shared directories, queues, and hosts that die next."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from uuid import UUID

import msgspec
import pytest

from agent.client import AgentProblem
from agent.wire.base import utc_now
from agent.wire.fleet import AddHost
from agent.wire.host_file import HostFileType
from agent.wire.transaction import DepartRequest
from agent.wire.vm import VmState
from controller.operations import place, restore_host_files, snapshot_create, snapshot_delete
from controller.operations.job import Job
from controller.store import backup_files, host_files, operations, snapshots, vms, volumes
from tests.controller.databases import Databases
from tests.controller.fake_agent import TOKEN, FakeAgent
from tests.controller.fake_machine import FakeFile
from tests.controller.operations.test_place import Two, code, two
from tests.controller.world import HASTY, HOST, OTHER, served


@pytest.fixture
async def one(databases: Databases) -> AsyncIterator[Two]:
    async with two(databases) as made:
        yield made


async def in_conflict(one: Two) -> None:
    """Place the VM while its host is lost, and let that come back."""
    one.agent.dead = True
    assert (await one.place()).state == "succeeded"
    one.agent.dead = False
    await one.look()


@pytest.mark.case("P8")
@pytest.mark.parametrize("lost", ["undefined", "unreachable"])
async def test_a_conflict_is_not_settled_on_a_host_that_does_not_show_the_vm_now(one: Two, lost: str) -> None:
    await in_conflict(one)
    if lost == "undefined":
        del one.other.vms[one.vm.uuid]  # by hand, and nobody has looked since
    else:
        one.other.dead = True
    refused = await one.place()
    assert code(refused) == {"undefined": "domain-not-found", "unreachable": "host-unreachable"}[lost]
    assert HOST in one.places
    assert set(one.vm.host_files) == {"nvram", "tpm"}


@pytest.mark.case("P8")
@pytest.mark.parametrize("state", ["shut-off", "running"])
async def test_settling_a_conflict_takes_no_host_file_away_that_both_hosts_share(one: Two, state: VmState) -> None:
    await in_conflict(one)
    moved = one.other.vms[one.vm.uuid]
    moved.host_files = one.vm.host_files  # one directory, on shared storage
    moved.state = state
    if state == "running":
        moved.host_files = {**one.vm.host_files, "nvram": b"written between two looks"}
    done = await one.place()
    assert (done.state, one.places) == ("succeeded", [OTHER]), done.error
    asked = [running.request for running in one.agent.transactions.values() if running.view.state == "committed"]
    assert [sorted(request.keep) for request in asked if isinstance(request, DepartRequest)] == [["nvram", "tpm"]]


@pytest.mark.case("P2")
async def test_a_vm_that_came_back_is_not_given_the_copy_from_before_it_left(one: Two) -> None:
    await one.place()
    one.other.vms[one.vm.uuid].host_files = {"nvram": b"newer", "tpm": b"newer too"}

    async def die(_: int, called: str) -> None:
        if "/host-files" in called and "transactions" not in called and one.places == [HOST]:
            one.agent.dead = True  # the host dies before its own copy could be taken

    one.agent.on_call = die
    assert (await one.place(HOST)).state == "succeeded"
    one.agent.dead = True
    assert (await one.place()).state == "succeeded"
    assert one.other.vms[one.vm.uuid].host_files == {"nvram": b"newer", "tpm": b"newer too"}


@pytest.mark.case("P2")
async def test_a_vm_that_ran_on_a_host_without_a_copy_from_there_has_old_copies_only(one: Two) -> None:
    one.other.vms[one.vm.uuid] = one.agent.vms.pop(one.vm.uuid)  # by hand
    await one.look()
    await one.db.run(host_files.note_started, one.vm.uuid, OTHER, utc_now() + timedelta(seconds=1))
    one.other.dead = True
    assert code(await one.place(HOST)) == "host-files-stale"
    assert one.places == [OTHER]


async def test_what_waited_for_a_vm_that_was_moved_is_done_where_it_is_now(one: Two) -> None:
    snapshot = await one.snapshot()
    one.vm.state = "running"
    await one.look()
    deletion = await one.submit("snapshot-delete", snapshot_delete.Wanted(snapshot=snapshot))
    while not (await one.db.run(operations.get, deletion.uuid)).is_parked:
        await asyncio.sleep(0.001)
    one.vm.state = "shut-off"
    moving = await one.submit_place()
    taking = await one.submit("snapshot-create", snapshot_create.Wanted(name="after"))
    await one.ended(moving)
    assert (await one.ended(taking.uuid)).error is None
    assert (await one.ended(deletion.uuid)).error is None
    assert one.places == [OTHER]


@pytest.mark.case("P8")
async def test_work_that_was_asked_for_before_a_conflict_showed_is_refused_when_its_turn_comes(one: Two) -> None:
    await in_conflict(one)
    before = dict(one.vm.tops)
    taken = await one.create(name="old definition")  # queued for the first host, as before the conflict
    restored = await one.act("vm-restore-host-files", restore_host_files.Wanted(types=["nvram"]))
    assert (code(taken), code(restored)) == ("vm-conflict", "vm-conflict")
    assert one.vm.tops == before


async def test_the_disks_of_a_vm_that_was_once_moved_can_be_removed_with_it(one: Two) -> None:
    await one.snapshot()
    assert (await one.place()).state == "succeeded"
    del one.other.vms[one.vm.uuid]
    await one.look()
    assert set(await one.db.run(volumes.disks_of, one.vm.uuid)) == {OTHER}
    assert {kept.host for kept in await one.db.run(host_files.of_vm, one.vm.uuid)} == {OTHER}


@pytest.mark.case("F2")
async def test_a_controller_that_dies_when_the_vm_is_there_still_takes_it_away_where_it_was(one: Two) -> None:
    met = asyncio.Event()

    async def meet(_: int, called: str) -> None:
        if called.endswith("/commit"):
            met.set()
            await asyncio.sleep(0.02)

    one.agent.on_call = meet  # it is defined on the other one, and not taken away here
    moving = await one.submit_place()
    await asyncio.wait_for(met.wait(), 5)
    await one.restart()
    done = await one.ended(moving)
    assert (done.state, done.result["left_on"], one.places) == ("succeeded", [], [OTHER])
    assert UUID(done.result["vm"]) == one.vm.uuid
    assert (await one.db.run(vms.get, one.vm.uuid)).conflict is None


@pytest.mark.case("P8")
async def test_a_host_that_undid_the_departure_shows_as_a_conflict_at_once_and_placing_again_takes_it_away(
    one: Two,
) -> None:
    async def restart(_: int, called: str) -> None:
        if called.endswith("/commit"):  # as an agent that was killed before its journal had the commit
            one.agent.on_call = None
            one.agent.expire_leases()

    one.agent.on_call = restart
    done = await one.place()
    assert (done.state, done.result["left_on"], one.places) == ("succeeded", [HOST], [HOST, OTHER])
    shown = await one.db.run(vms.get, one.vm.uuid)
    assert (shown.host, shown.conflict) == (OTHER, f"{HOST}, {OTHER}")
    again = await one.place()
    assert (again.state, again.result["from"], one.places) == ("succeeded", HOST, [OTHER])
    assert (await one.db.run(vms.get, one.vm.uuid)).conflict is None


@pytest.mark.case("P8")
async def test_placing_again_finds_the_definition_of_a_host_that_came_back_unseen(one: Two) -> None:
    one.agent.dead = True
    assert (await one.place()).result["left_on"] == [HOST]
    one.agent.dead = False  # and nobody has looked at it yet
    again = await one.place()
    assert (again.state, again.result["from"], one.places) == ("succeeded", HOST, [OTHER])


async def test_the_snapshots_of_a_vm_that_was_moved_by_hand_can_be_deleted_and_exported_where_it_is(one: Two) -> None:
    snapshot = await one.snapshot()
    one.other.vms[one.vm.uuid] = one.agent.vms.pop(one.vm.uuid)
    await one.look()
    shown = await one.db.run(snapshots.get, snapshot)
    assert {volume.host for volume in shown.volumes} == {OTHER}
    assert (await one.delete(snapshot)).error is None
    assert len(one.vm.tops) == len(one.agent.files)


async def test_a_vm_of_the_same_paths_on_other_disks_takes_no_frozen_files_along(one: Two) -> None:
    snapshot = await one.snapshot()
    copy = one.other.vms[one.vm.uuid] = one.agent.vms.pop(one.vm.uuid)
    one.other.files = {path: FakeFile(backing=None) for path in copy.tops.values()}
    await one.look()
    assert {volume.host for volume in (await one.db.run(snapshots.get, snapshot)).volumes} == {HOST}


@pytest.mark.parametrize("lost", [False, True])
async def test_a_clone_that_never_started_moves_with_its_seed(one: Two, lost: bool) -> None:
    made = await one.clone(await one.snapshot(), "fresh")
    uuid = UUID(made.result["clones"][0]["vm"])
    one.agent.dead = lost
    if not lost:
        one.agent.vms[uuid].host_files.clear()
    wanted = place.Wanted(host=OTHER)
    queued = await one.engine.submit("vm-place", wanted, lambda: (uuid, OTHER), None)
    done = await one.ended(queued.uuid)
    assert done.state == "succeeded", done.error
    assert one.other.vms[uuid].host_files == {"nvram": b"nvram of win11"}


@pytest.mark.case("P3")
async def test_a_vm_without_host_files_is_placed_when_its_host_is_lost(one: Two) -> None:
    one.vm.expected, one.vm.host_files = [], {}
    await one.look()
    one.agent.dead = True
    done = await one.place()
    assert (done.state, done.result["host_files_as_of"], one.places) == ("succeeded", None, [HOST, OTHER]), done.error


@pytest.mark.case("P8")
async def test_a_dry_run_of_settling_a_conflict_says_what_stays_and_where_the_vm_is_gone(one: Two) -> None:
    await in_conflict(one)
    await one.lie_down()
    request = msgspec.to_builtins(place.Wanted(host=OTHER))
    queued = await one.db.run(operations.enqueue, "vm-place", one.vm.uuid, OTHER, request)
    job = Job(await one.db.run(operations.job, queued.uuid), one.db, one.hosts, HASTY)
    assert (await place.plan(job)).would == "succeed"
    assert job.recalled(f"take away from {HOST}", list[str]) == ["nvram", "tpm"]
    del one.other.vms[one.vm.uuid]
    with pytest.raises(AgentProblem, match="domain-not-found"):
        await place.plan(Job(await one.db.run(operations.job, queued.uuid), one.db, one.hosts, HASTY))


@pytest.mark.case("P8")
@pytest.mark.case("F2")
async def test_what_several_hosts_had_is_kept_apart_by_a_controller_that_dies_between_them(one: Two) -> None:
    third = FakeAgent()
    third.files = one.agent.files
    async with served(third) as url:
        await one.hosts.add(AddHost(name="kvm3", url=url, agent_token=TOKEN))
        files: dict[str, dict[HostFileType, bytes]] = {}
        for name, agent in ((HOST, one.agent), (OTHER, one.other), ("kvm3", third)):
            files[name] = {"nvram": f"nvram of {name}".encode(), "tpm": f"tpm of {name}".encode()}
            agent.vms[one.vm.uuid] = replace(one.vm, host_files=files[name])
        await one.look()
        met = asyncio.Event()

        async def meet(_: int, called: str) -> None:
            if called.startswith("PUT"):
                met.set()
                await asyncio.sleep(0.02)

        third.on_call = meet
        settling = await one.submit_place()
        await asyncio.wait_for(met.wait(), 5)
        await one.kill()
        assert one.places == [OTHER]
        third.on_call = None
        third.expire_leases()
        await one.look()  # as its follower does: it is gone from the first host
        one.engine = await one.new_engine().__aenter__()
        done = await one.ended(settling)
        assert (done.state, done.result["from"], done.result["kept_as"]) == (
            "succeeded",
            f"{HOST}, kvm3",
            str(settling),
        )
        owners = [settling, UUID(done.result["remarks"][0].split()[-1])]
        kept = [await one.db.run(backup_files.of_owner, owner) for owner in owners]
        held = [[await one.db.run(backup_files.data, item.uuid) for item in items] for items in kept]
        assert held == [list(files[HOST].values()), list(files["kvm3"].values())]
