"""Following hosts: reachability, events, resync."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import pytest

from agent.client import AgentUnreachable
from agent.wire.base import utc_now
from agent.wire.fleet import Host
from controller.events import Follower, Pace, work_off
from controller.operations import sync
from controller.store import events, host_files, hosts, operations, vms
from tests.controller.databases import Databases
from tests.controller.world import HOST, World, define, world

BRISK = Pace(poll_s=5, event_wait_s=5, retry_s=0.001, retry_max_s=0.002)


@pytest.fixture
async def one(databases: Databases) -> AsyncIterator[World]:
    async with world(databases) as made:
        yield made
        await made.hosts.stop_following()
        await made.mend()
        await made.check()


def follower(one: World) -> Follower:
    return Follower(HOST, one.db, one.hosts, one.engine.nudge, BRISK)


@asynccontextmanager
async def following(one: World) -> AsyncIterator[None]:
    one.hosts.start_following(lambda name: asyncio.create_task(follower(one).run(), name=f"host {name}"))
    yield
    await one.hosts.stop_following()


async def until(one: World, found: Any) -> None:
    """Wait until the records say so."""
    async with asyncio.timeout(20):
        while not await found():
            await one.db.changed(one.db.version)


async def syncs(one: World) -> list[str]:
    return [item.state for item in (await one.db.run(operations.page, 100, kind="vm-sync")).items]


async def dirty(one: World) -> list[datetime | None]:
    return [item.dirty_since for item in await one.db.run(host_files.of_vm, one.vm.uuid)]


@pytest.mark.case("B8")
async def test_a_vm_that_stops_is_synced(one: World) -> None:
    async with following(one):
        one.agent.happen("vm.starting", one.vm)
        one.agent.happen("vm.stopped", one.vm)

        async def saved() -> bool:
            kept = await one.db.run(host_files.of_vm, one.vm.uuid)
            return len(kept) == 2 and all(item.sha256 and not item.dirty_since for item in kept)

        await until(one, saved)
    assert await syncs(one) == ["succeeded"]


async def test_a_start_marks_the_copies_dirty(one: World) -> None:
    await one.sync()
    one.agent.happen("vm.starting", one.vm)
    await follower(one).read_events(0)
    assert all(await dirty(one))


async def test_an_event_has_its_effect_once_however_often_the_log_is_read(one: World) -> None:
    one.agent.happen("vm.stopped", one.vm)
    await follower(one).read_events(0)
    await follower(one).read_events(0)
    page = await one.hosts.client(HOST).events(0)
    assert await one.db.run(work_off, HOST, page, False, utc_now()) == 0
    assert len(await syncs(one)) == 1


async def test_after_a_new_log_every_vm_may_have_run_and_is_synced(one: World) -> None:
    one.agent.happen("vm.defined", one.vm)
    await follower(one).read_events(0)
    await one.sync()
    one.agent.renew_log()
    one.agent.happen("vm.defined", one.vm)
    assert await follower(one).read_events(0)
    assert await one.db.run(hosts.cursor, HOST) == (one.agent.log, 1)
    assert len(await syncs(one)) == 2


@pytest.mark.case("B8")
async def test_a_log_that_went_back_is_read_on_from_where_it_is_and_every_vm_may_have_run(one: World) -> None:
    for count in (1, 3):
        one.agent.happen("vm.defined", one.vm)
        one.agent.happen("vm.stopped", one.vm)
        assert await follower(one).read_events(0)
        assert len(await syncs(one)) == count
        await follower(one).look()
        del one.agent.events[:]  # an older copy of the host's disk was put back, or its newest lines were damaged
        assert await follower(one).read_events(0)
        assert await one.db.run(hosts.cursor, HOST) == (one.agent.log, 0)
        assert all(await dirty(one))
        assert len(await syncs(one)) == count + 1
        assert not await follower(one).read_events(0)


async def test_a_host_puts_no_events_of_its_own_making_into_the_stream(one: World) -> None:
    for type_ in ("x\ndata: {}\n\nevent: snapshot.deleted", "vm.stopped\n", "", "x" * 65, "VM", "vm.\u2028"):
        one.agent.events.clear()
        one.agent.happen(type_, one.vm)
        with pytest.raises(AgentUnreachable, match="type"):
            await follower(one).read_events(0)


async def test_events_that_were_trimmed_before_we_read_them_count_as_missed(one: World) -> None:
    one.agent.happen("vm.defined", one.vm)
    await follower(one).read_events(0)
    one.agent.oldest, one.agent.events = 50, []
    assert await follower(one).read_events(0)
    assert len(await syncs(one)) == 1
    assert not await follower(one).read_events(0)


async def test_an_event_about_an_unknown_vm_changes_nothing_and_the_vm_is_found(one: World) -> None:
    stranger = one.agent.add_vm("stranger")
    async with following(one):
        one.agent.happen("vm.starting", stranger)

        async def found() -> bool:
            return stranger.uuid in [vm.uuid for vm in (await one.db.run(vms.page, 10)).items]

        await until(one, found)


@pytest.mark.case("P7")
async def test_a_host_that_goes_and_comes_back_is_shown_and_used_again_without_a_restart(one: World) -> None:
    async def shown() -> Host:
        return await one.db.run(hosts.get, HOST)

    async def unreachable() -> bool:
        return not (await shown()).reachable

    async def reachable() -> bool:
        return (await shown()).reachable

    async with following(one):
        one.agent.dead = True
        one.agent.happen("vm.defined", one.vm)
        await until(one, unreachable)
        assert (await shown()).error
        one.agent.dead = False
        await until(one, reachable)
    types = [event.type for event in await one.db.run(events.read, 0, 100)]
    assert types.index("host.unreachable") < len(types) - types[::-1].index("host.reachable")


async def test_host_files_that_could_not_be_copied_are_copied_when_their_host_is_back(one: World) -> None:
    assert (await one.act("vm-sync", sync.Wanted())).state == "succeeded"
    one.agent.dead = True
    assert (await one.act("vm-sync", sync.Wanted())).state == "failed"
    await one.db.run(host_files.note_started, one.vm.uuid, HOST, utc_now())
    await one.db.run(hosts.failed, HOST, "its agent is gone")
    assert any(await dirty(one))
    one.agent.dead = False

    async def saved() -> bool:
        return not any(await dirty(one))

    async with following(one):
        await until(one, saved)


async def test_a_copy_that_failed_while_the_host_was_gone_for_a_moment_is_taken_after_it(one: World) -> None:
    gone = asyncio.Event()

    async def drop(number: int, called: str) -> None:
        if called.endswith("/host-files/{type}") and not gone.is_set():
            one.agent.faults[number] = "drop-before"  # others are answered: nothing else shows that it was gone

    async def saved() -> bool:
        kept = await one.db.run(host_files.of_vm, one.vm.uuid)
        return len(kept) == 2 and not any(item.reason for item in kept)

    one.agent.on_call = drop
    async with following(one):
        first = await one.act("vm-sync", sync.Wanted())
        assert [item["type"] for item in first.result["failed"]] == ["nvram", "tpm"]
        gone.set()
        await until(one, saved)


async def test_a_host_that_answers_all_but_one_call_is_looked_at_ever_more_slowly(one: World) -> None:
    async def drop(number: int, called: str) -> None:
        if called.endswith("/host-files/{type}"):
            one.agent.faults[number] = "drop-before"

    async def count() -> int:
        return len((await one.db.run(operations.page, 1000, kind="vm-sync", state="succeeded")).items)

    async def twice() -> bool:
        return await count() == 2

    await one.restart(look_s=1000.0, look_max_s=1000.0)
    one.agent.on_call = drop
    async with following(one):
        await one.act("vm-sync", sync.Wanted())
        await until(one, twice)  # the second was queued by the look that the first one asked for
        for _ in range(300):
            assert await count() == 2


async def test_a_host_that_comes_back_is_asked_how_what_it_was_told_to_commit_ended(one: World) -> None:
    await one.snapshot(name="first")
    commit = one.agent.calls.index("POST /v1/transactions/{id}/commit")
    one.agent.calls.clear()

    async def die_after_commit(number: int, _: str) -> None:
        one.agent.dead = number > commit

    one.agent.faults[commit] = "drop-after"
    one.agent.on_call = die_after_commit
    assert (await one.create(name="second")).state == "failed"
    one.agent.on_call, one.agent.dead = None, False

    async def settled() -> bool:
        return [item.state for item in await one.tree()] == ["ready", "ready"]

    async with following(one):
        await until(one, settled)


async def test_the_follower_of_a_removed_host_ends(one: World) -> None:
    async with following(one):
        await one.hosts.remove(HOST)
        assert await one.db.run(hosts.names) == []
    await follower(one).run()
    one.agent.vms.clear()
    one.agent.files.clear()


@pytest.mark.case("P8")
async def test_a_vm_on_two_hosts_is_a_conflict_until_one_lets_go(one: World) -> None:
    await define(one, "second")
    facts = await one.hosts.client(HOST).vms()
    await one.db.run(hosts.add, "kvm2", "http://127.0.0.1:1", "x")
    await one.db.run(vms.record_inventory, "kvm2", facts[:1], utc_now())
    assert (await one.db.run(vms.get, facts[0].uuid)).conflict == "kvm1, kvm2"
    await one.db.run(vms.record_inventory, "kvm2", [], utc_now())
    assert (await one.db.run(vms.get, facts[0].uuid)).conflict is None
