"""F8: an older copy of the database is put back, and the host has gone on meanwhile."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

import pytest

from agent.wire.base import utc_now
from agent.wire.finding import Finding
from agent.wire.fleet import AddHost
from agent.wire.transaction import SnapshotRequest
from controller.doctor import examine, repair
from controller.doctor.repair import can
from controller.store import vms
from tests.controller.databases import Databases
from tests.controller.fake_agent import TOKEN, FakeAgent
from tests.controller.world import HOST, World, opened, served

Act = Callable[[World], Awaitable[None]]


async def by_name(one: World) -> dict[str, UUID]:
    return {item.name: item.uuid for item in await one.tree()}


async def three_in_a_row(one: World) -> None:
    for name in ("a", "b", "c"):
        await one.snapshot(name=name)


@asynccontextmanager
async def restored(databases: Databases, since: Act) -> AsyncIterator[World]:
    """Run a controller on a copy of before ``since``, of a VM with three snapshots; its host was looked at again."""
    agent, records = FakeAgent(), databases.new()
    vm = agent.add_vm()
    async with served(agent) as url:
        async with opened(databases, url=records) as (db, hosts):
            await hosts.add(AddHost(name=HOST, url=url, agent_token=TOKEN))
            async with World(db, agent, hosts, vm) as one:
                await three_in_a_row(one)
        copy = databases.copy(records)
        async with opened(databases, url=records) as (db, hosts), World(db, agent, hosts, vm) as one:
            await since(one)
        async with opened(databases, url=copy) as (db, hosts), World(db, agent, hosts, vm) as one:
            await db.run(vms.record_inventory, HOST, await hosts.client(HOST).vms(), utc_now())
            yield one


async def look(one: World) -> dict[str, Finding]:
    return {finding.code: finding for finding in await examine.examine(one.db, one.hosts)}


async def mend(one: World) -> None:
    """Do what the doctor calls safe."""
    for finding in await examine.examine(one.db, one.hosts):
        if can(finding):
            assert (await repair.repair(one.db, one.hosts, finding)).done, finding


def deleting(*names: str) -> Act:
    async def since(one: World) -> None:
        for name in names:
            assert (await one.delete((await by_name(one))[name])).state == "succeeded"

    return since


@pytest.mark.case("F8")
@pytest.mark.parametrize("gone", ["a", "b", "c", "ab", "ba", "bc", "cb", "ac"])
async def test_files_that_a_later_deletion_moved_are_recorded_as_it_left_them(databases: Databases, gone: str) -> None:
    async with restored(databases, deleting(*gone)) as one:
        found = await look(one)
        assert set(found) <= {"deleted-on-host", "rewritten-on-host"}
        assert all(finding.safe for finding in found.values())
        await mend(one)
        assert await look(one) == {}
        await one.check()
        kept = await by_name(one)
        assert sorted(kept) == sorted(set("abc") - set(gone))
        for uuid in kept.values():
            assert (await one.revert(uuid)).state == "succeeded"
        await one.check()


@pytest.mark.case("F8")
async def test_a_file_that_somebody_wrote_to_after_a_deletion_moved_it_is_not_recorded(databases: Databases) -> None:
    async def since(one: World) -> None:
        await deleting("a")(one)
        for path in (volume.path for item in await one.tree() if item.name == "b" for volume in item.volumes):
            one.agent.files[path].version += 1

    async with restored(databases, since) as one:
        assert set(await look(one)) == {"deleted-on-host", "frozen-file-altered", "backing-changed"}
        await mend(one)
        assert "frozen-file-altered" in await look(one)


@pytest.mark.case("F8")
async def test_a_transaction_that_only_the_host_knows_is_undone_with_its_lease_and_hinders_nothing(
    databases: Databases,
) -> None:
    async def since(one: World) -> None:
        await one.hosts.client(HOST).put_transaction(uuid4(), SnapshotRequest(vm=one.vm.uuid, snapshot=uuid4()))

    async with restored(databases, since) as one:
        assert await look(one) == {}
        refused = await one.create(name="too early")
        assert refused.error is not None
        assert (refused.state, refused.error.code) == ("failed", "domain-busy")
        one.agent.expire_leases()
        await one.snapshot(name="d")
        await one.check()


@pytest.mark.case("F8")
async def test_a_snapshot_and_a_revert_that_only_the_host_knows_are_named_and_work_goes_on(
    databases: Databases,
) -> None:
    async def since(one: World) -> None:
        await one.snapshot(name="lost")
        assert (await one.revert((await by_name(one))["a"])).state == "succeeded"

    async with restored(databases, since) as one:
        before = dict(one.agent.files)
        # The VM stands on "a" now; what the lost snapshot froze stands in no disk's way, and nothing removes it.
        found = await look(one)
        assert not [finding for finding in found.values() if finding.safe], found
        await one.snapshot(name="d")
        assert (await one.revert((await by_name(one))["c"])).state == "succeeded"
        assert before.keys() <= one.agent.files.keys()
