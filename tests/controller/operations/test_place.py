"""Moving a VM between two hosts, each of them played, with everything that can come between."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import pytest
from aiohttp.test_utils import TestServer

from agent.wire.base import utc_now
from agent.wire.fleet import AddHost
from agent.wire.operation import Operation
from controller.events import Follower, Pace
from controller.operations import place
from controller.store import backup_files, events, host_files, operations, snapshots, vms
from tests.controller.databases import Databases
from tests.controller.fake_agent import TOKEN, FakeAgent, Fault
from tests.controller.world import HOST, OTHER, World, world


class Two(World):
    """A world with a second host on the same storage."""

    async def place(self, host: str = OTHER, **wanted: Any) -> Operation:
        """Move the VM."""
        asked = place.Wanted(host=host, **wanted)
        operation = await self.engine.submit("vm-place", asked, lambda: (self.vm.uuid, host), None)
        return await self.ended(operation.uuid)

    async def submit_place(self) -> UUID:
        """Queue the move."""
        asked = place.Wanted(host=OTHER)
        return (await self.engine.submit("vm-place", asked, lambda: (self.vm.uuid, OTHER), None)).uuid

    async def healed(self) -> None:
        """End all faults; what was prepared and left alone runs out of its lease."""
        for agent in (self.agent, self.other):
            agent.dead = False
            agent.faults.clear()
            agent.expire_leases()
        await self.look()

    @property
    def places(self) -> list[str]:
        """Name the hosts that define the VM now."""
        agents = {HOST: self.agent, OTHER: self.other}
        return [name for name, agent in agents.items() if self.vm.uuid in agent.vms]


@asynccontextmanager
async def two(databases: Databases) -> AsyncIterator[Two]:
    async with world(databases) as one:
        one.__class__ = Two
        assert isinstance(one, Two)
        one.other = FakeAgent()
        one.other.files = one.agent.files
        server = TestServer(one.other.app())
        await server.start_server()
        await one.hosts.add(AddHost(name=OTHER, url=str(server.make_url("")).rstrip("/"), agent_token=TOKEN))
        await one.sync()
        one.agent.calls.clear()
        one.other.calls.clear()
        yield one
        await server.close()


@pytest.fixture
async def one(databases: Databases) -> AsyncIterator[Two]:
    async with two(databases) as made:
        yield made


def code(operation: Operation) -> str:
    assert operation.error is not None
    return operation.error.code


@pytest.mark.case("P1")
async def test_a_vm_moves_with_what_its_host_has_now_and_its_snapshots_follow(one: Two) -> None:
    snapshot = await one.snapshot()
    one.vm.host_files = {"nvram": b"newest nvram", "tpm": b"newest tpm"}
    done = await one.place()
    assert (done.state, done.result["left_on"], done.result["remarks"]) == ("succeeded", [], [])
    assert one.places == [OTHER]
    assert one.other.vms[one.vm.uuid].host_files == {"nvram": b"newest nvram", "tpm": b"newest tpm"}
    found = await one.db.run(vms.get, one.vm.uuid)
    assert (found.host, found.conflict) == (OTHER, None)
    assert {volume.host for volume in (await one.db.run(snapshots.get, snapshot)).volumes} == {OTHER}
    assert (await one.place()).result["from"] is None
    await one.look()
    assert (await one.db.run(vms.get, one.vm.uuid)).conflict is None


@pytest.mark.case("P2")
@pytest.mark.case("P3")
async def test_of_an_unreachable_host_a_clean_copy_is_used_and_a_dirty_one_by_force_alone(one: Two) -> None:
    await one.db.run(host_files.note_started, one.vm.uuid, HOST, utc_now())
    one.agent.dead = True
    refused = await one.place()
    assert code(refused) == "host-files-stale"
    assert refused.error is not None
    assert "ago" in refused.error.detail
    assert one.places == [HOST]
    done = await one.place(force=True)
    assert (done.result["left_on"], one.places) == ([HOST], [HOST, OTHER])
    assert one.other.vms[one.vm.uuid].host_files == one.vm.host_files
    assert (await one.db.run(vms.get, one.vm.uuid)).conflict is None


async def test_a_vm_that_ran_when_its_host_was_lost_is_not_placed_unless_forced(one: Two) -> None:
    one.vm.state, one.vm.expected, one.vm.host_files = "running", [], {}
    await one.look()
    one.agent.dead = True
    assert code(await one.place()) == "vm-may-run"
    assert one.places == [HOST]


@pytest.mark.case("P8")
async def test_a_conflict_is_settled_on_one_of_its_hosts_and_the_others_files_are_kept(one: Two) -> None:
    one.agent.dead = True
    assert (await one.place()).state == "succeeded"
    one.agent.dead = False
    one.vm.host_files = {"nvram": b"since", "tpm": b"since too"}
    await one.look()
    assert (await one.db.run(vms.get, one.vm.uuid)).conflict == f"{HOST}, {OTHER}"
    done = await one.place()
    assert (done.state, one.places) == ("succeeded", [OTHER])
    assert (await one.db.run(vms.get, one.vm.uuid)).conflict is None
    kept = await one.db.run(backup_files.of_owner, done.uuid)
    assert [await one.db.run(backup_files.data, item.uuid) for item in kept] == [b"since", b"since too"]


async def test_nothing_is_moved_that_is_not_whole_or_does_not_fit(one: Two) -> None:
    del one.vm.host_files["tpm"]
    assert code(await one.place()) == "host-files-missing"
    one.vm.state = "running"
    assert code(await one.place()) == "domain-running"
    one.vm.state = "shut-off"
    assert code(await one.place("nowhere")) == "host-not-found"
    one.other.dead = True
    assert code(await one.place(force=True)) == "host-unreachable"
    one.other.dead = False
    assert one.places == [HOST]
    done = await one.place(force=True)
    assert (done.state, one.places) == ("succeeded", [OTHER])
    assert one.other.vms[one.vm.uuid].host_files["tpm"] == b"tpm of win11"  # the older copy


@pytest.mark.parametrize("dirty", [False, True])
async def test_a_vm_that_was_moved_by_hand_gets_clean_copies_and_is_told_of_old_ones(one: Two, dirty: bool) -> None:
    before = dict(one.vm.host_files)
    if dirty:
        await one.db.run(host_files.note_started, one.vm.uuid, HOST, utc_now())
    one.other.vms[one.vm.uuid] = one.agent.vms.pop(one.vm.uuid)
    one.vm.host_files = {}
    follower = Follower(OTHER, one.db, one.hosts, one.engine.nudge, Pace())
    await Follower(HOST, one.db, one.hosts, one.engine.nudge, Pace()).look()
    for _ in range(2):
        await follower.look()
        (queued,) = (await one.db.run(operations.page, 9, kind="vm-restore-host-files")).items
        assert (await one.ended(queued.uuid)).state == "succeeded"
    assert one.vm.host_files == ({} if dirty else before)
    shown = (await one.db.run(vms.get, one.vm.uuid)).host_files
    told = [event.type for event in await one.db.run(events.read, 0, 999)]
    assert told.count("vm.host-files-stale") == int(dirty)
    assert all(item.sha256 for item in shown)


@pytest.mark.case("P1")
@pytest.mark.parametrize("fault", ["refuse", "drop-after", "crash"])
async def test_a_move_broken_at_any_message_leaves_one_definition_or_two_and_can_be_repeated(
    databases: Databases, fault: Fault
) -> None:
    async with two(databases) as one:
        assert (await one.place()).state == "succeeded"
        calls = [("source", number) for number in range(len(one.agent.calls))]
        calls += [("target", number) for number in range(len(one.other.calls))]
    for where, number in calls:
        async with two(databases) as one:
            before = dict(one.vm.host_files)
            (one.agent if where == "source" else one.other).faults[number] = fault
            await one.place()
            await one.healed()
            assert one.places, (where, number)
            done = await one.place()
            assert (done.state, one.places) == ("succeeded", [OTHER]), (where, number, done.error)
            assert one.other.vms[one.vm.uuid].host_files == before
            assert await one.db.run(operations.open_count) == 0
