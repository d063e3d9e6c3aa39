from dataclasses import replace
from uuid import uuid4

import msgspec
import pytest

from agent.wire.host import HostFacts
from controller.db import Database
from controller.errors import HostBusy, HostExists, HostNotFound, HostUrlTaken
from controller.store import events, host_files, hosts, operations, snapshots, vms
from tests.controller.factories import HOST, T0, add_host, add_snapshot, add_vm, held


@pytest.mark.case("X5")
async def test_an_agents_secret_is_in_its_endpoint_alone_and_not_in_what_is_shown(db: Database) -> None:
    await db.run(hosts.add, HOST, "https://kvm1:7701", "hunter2", "ab" * 32)
    found = await db.run(hosts.endpoint, HOST)
    assert (found.url, found.token.reveal(), found.fingerprint) == ("https://kvm1:7701", "hunter2", "ab" * 32)
    listed = (await db.run(hosts.page, 9)).items
    told = await db.run(events.read, 0, 99)
    assert b"hunter2" not in msgspec.json.encode([listed, told])
    assert "hunter2" not in repr(found)


async def test_a_host_is_enrolled_once(db: Database) -> None:
    await db.run(add_host)
    with pytest.raises(HostExists):
        await db.run(hosts.add, HOST, "http://other:7701", "secret")
    assert (await db.run(hosts.get, HOST)).url == "http://kvm1:7701"


async def test_one_agent_is_enrolled_under_one_name(db: Database) -> None:
    await db.run(add_host)
    with pytest.raises(HostUrlTaken, match=HOST):
        await db.run(hosts.add, "again", "http://kvm1:7701", "secret")
    assert await db.run(hosts.names) == [HOST]


async def test_a_host_is_reachable_from_its_first_answer_until_it_fails_and_each_change_is_told_once(
    db: Database,
) -> None:
    await db.run(add_host)
    assert not (await db.run(hosts.get, HOST)).reachable
    for _ in range(2):
        await db.run(hosts.seen, HOST, HostFacts.example(), T0)
    assert (await db.run(hosts.get, HOST)).reachable
    for _ in range(2):
        await db.run(hosts.failed, HOST, "connection refused")
    found = await db.run(hosts.get, HOST)
    assert (found.reachable, found.error, found.last_seen_at) == (False, "connection refused", T0)
    assert found.facts == HostFacts.example()
    told = [event.type for event in await db.run(events.read, 0, 99)]
    assert told == ["host.added", "host.reachable", "host.unreachable"]


async def test_the_cursor_is_kept_with_the_log_it_belongs_to(db: Database) -> None:
    await db.run(add_host)
    assert await db.run(hosts.cursor, HOST) == (None, 0)
    log = uuid4()
    await db.run(hosts.move_cursor, HOST, log, 41)
    assert await db.run(hosts.cursor, HOST) == (log, 41)


async def test_removing_a_host_keeps_what_may_be_the_last_copy_and_forgets_the_rest(db: Database) -> None:
    kept, traceless = await db.run(add_vm), await db.run(add_vm)
    snapshot = await db.run(add_snapshot, kept)
    await db.run(hosts.remove, HOST)
    assert (await db.run(vms.get, kept)).host is None
    assert (await db.run(snapshots.get, snapshot.uuid)).volumes[0].host == HOST
    assert [vm.uuid for vm in (await db.run(vms.page, 9)).items] == [kept]
    assert traceless != kept
    with pytest.raises(HostNotFound):
        await db.run(hosts.remove, HOST)


async def test_a_host_with_work_under_way_is_not_removed(db: Database) -> None:
    vm = await db.run(add_vm)
    await db.run(operations.enqueue, "vm-sync", vm, HOST, {})
    with pytest.raises(HostBusy):
        await db.run(hosts.remove, HOST)
    assert await db.run(vms.host_of, vm) == HOST


async def test_pages_are_by_name_with_the_number_of_vms(db: Database) -> None:
    for name in ("b", "a", "c"):
        await db.run(add_vm, name)
    first = await db.run(hosts.page, 2)
    rest = await db.run(hosts.page, 2, first.next)
    assert [(host.name, host.vms) for host in first.items + rest.items] == [("a", 1), ("b", 1), ("c", 1)]
    assert await db.run(hosts.names) == ["a", "b", "c"]


async def test_a_host_that_is_not_known_is_not_found(db: Database) -> None:
    for work in (hosts.get, hosts.endpoint, hosts.cursor, hosts.remove):
        with pytest.raises(HostNotFound):
            await db.run(work, "nowhere")


async def test_all_that_is_kept_of_a_host_follows_its_new_name(db: Database) -> None:
    vm = await db.run(add_vm)
    snapshot = await db.run(add_snapshot, vm)
    await db.run(host_files.record_sync, vm, HOST, "nvram", held("nvram", b"nvram"), None, T0)
    work = await db.run(operations.enqueue, "vm-sync", vm, HOST, {})
    after = replace(await db.run(hosts.endpoint, HOST), name="new")
    with pytest.raises(HostBusy):
        await db.run(hosts.change, HOST, after)
    await db.run(operations.finish, work.uuid, "succeeded")
    before = await db.run(hosts.get, HOST)
    await db.run(hosts.change, HOST, after)
    assert await db.run(hosts.get, "new") == msgspec.structs.replace(before, name="new")
    assert await db.run(vms.host_of, vm) == "new"
    assert (await db.run(snapshots.get, snapshot.uuid)).volumes[0].host == "new"
    assert {kept.host for kept in await db.run(host_files.of_vm, vm)} == {"new"}
    assert (await db.run(operations.get, work.uuid)).host == "new"
    assert await db.run(hosts.names) == ["new"]


async def test_a_conflict_names_a_host_by_its_new_name(db: Database) -> None:
    vm = await db.run(add_vm)
    await db.run(add_host, "b")
    await db.run(vms.record_one, "b", await db.run(vms.definition, vm, HOST), T0)
    await db.run(hosts.change, HOST, replace(await db.run(hosts.endpoint, HOST), name="new"))
    assert (await db.run(vms.get, vm)).conflict == "b, new"


async def test_a_host_takes_neither_another_ones_name_nor_its_address(db: Database) -> None:
    for name in (HOST, "b"):
        await db.run(add_host, name)
    end = await db.run(hosts.endpoint, HOST)
    with pytest.raises(HostExists):
        await db.run(hosts.change, HOST, replace(end, name="b"))
    with pytest.raises(HostUrlTaken):
        await db.run(hosts.change, HOST, replace(end, url="http://b:7701"))
    found = await db.run(hosts.endpoint, HOST)
    assert (found.name, found.url) == (end.name, end.url)
