"""A host that is lost after a commit was sent to it: the VM goes on elsewhere, and its records with it."""

from collections.abc import AsyncIterator
from uuid import UUID

import pytest

from agent.wire.base import Request, utc_now
from agent.wire.operation import Operation
from controller.operations import clone, revert, snapshot_create, snapshot_delete
from controller.store import clones, vms
from tests.controller.databases import Databases
from tests.controller.operations.test_place import Two, code, two
from tests.controller.world import HOST, OTHER

COMMIT = "POST /v1/transactions/{id}/commit"


@pytest.fixture
async def one(databases: Databases) -> AsyncIterator[Two]:
    async with two(databases) as made:
        yield made


async def act(one: Two, kind: str, wanted: Request, host: str) -> Operation:
    queued = await one.engine.submit(kind, wanted, lambda: (one.vm.uuid, host), None)
    return await one.ended(queued.uuid)


async def lost_at_commit(one: Two, kind: str, *, took_effect: bool) -> UUID:
    """Lose the host at the commit of some work; return the snapshot of before. What it did was seen, or nothing."""
    first = await one.snapshot(name="first")
    await one.snapshot(name="second")
    wanted: dict[str, Request] = {
        "snapshot-create": snapshot_create.Wanted(name="third"),
        "snapshot-revert": revert.Wanted(snapshot=first),
        "snapshot-delete": snapshot_delete.Wanted(snapshot=first),
        "snapshot-clone": clone.Wanted(snapshot=first, targets=[clone.Target(name="twin")]),
    }

    async def die(number: int, called: str) -> None:
        if called == COMMIT and not one.agent.dead:
            one.agent.faults[number] = "drop-after" if took_effect else "crash"
            one.agent.on_call = dead

    async def dead(_number: int, _called: str) -> None:
        one.agent.dead = True

    one.agent.on_call = die
    assert code(await act(one, kind, wanted[kind], HOST)) == "outcome-unknown"
    one.agent.on_call = None
    if took_effect:
        one.agent.dead = False
        found = await one.hosts.client(HOST).vms()
        await one.db.run(vms.record_inventory, HOST, found, utc_now())
    one.agent.dead = True
    return first


@pytest.mark.case("P2")
@pytest.mark.parametrize("removed", [False, True], ids=["unreachable", "removed"])
@pytest.mark.parametrize(
    ("kind", "took_effect", "states"),
    [
        ("snapshot-create", False, {"first": "ready", "second": "ready"}),
        ("snapshot-create", True, {"first": "ready", "second": "ready", "third": "ready"}),
        ("snapshot-revert", False, {"first": "ready", "second": "ready"}),
        ("snapshot-revert", True, {"first": "ready", "second": "ready", "undo": "ready"}),
        ("snapshot-delete", False, {"first": "ready", "second": "ready"}),
    ],
)
async def test_work_whose_end_a_lost_host_keeps_is_read_from_the_definition_that_goes_on(
    one: Two, kind: str, took_effect: bool, states: dict[str, str], removed: bool
) -> None:
    first = await lost_at_commit(one, kind, took_effect=took_effect)
    if removed:
        await one.hosts.remove(HOST)
    refused = await one.place()
    assert code(refused) == ("host-not-found" if removed else "outcome-unknown")
    assert (await one.place(force=True)).state == "succeeded"
    found = await one.tree()
    assert {"undo" if item.automatic else item.name: item.state for item in found} == states
    stands_on = next(item for item in found if item.current)
    assert (stands_on.uuid == first) == (kind == "snapshot-revert" and took_effect)
    assert (await act(one, "snapshot-create", snapshot_create.Wanted(name="next"), OTHER)).error is None
    assert (await act(one, "snapshot-revert", revert.Wanted(snapshot=first), OTHER)).error is None


async def test_a_clone_that_a_lost_host_may_have_made_keeps_its_files_and_holds_up_nothing(one: Two) -> None:
    await lost_at_commit(one, "snapshot-clone", took_effect=False)
    assert (await one.place(force=True)).state == "succeeded"
    assert (await act(one, "snapshot-create", snapshot_create.Wanted(name="next"), OTHER)).error is None
    assert len(await one.db.run(clones.unfinished, one.vm.uuid, one.vm.uuid)) == 1
    assert await one.db.run(clones.made_on) != []
    await one.hosts.remove(HOST)
    assert (await act(one, "snapshot-create", snapshot_create.Wanted(name="last"), OTHER)).error is None
    assert await one.db.run(clones.unfinished, one.vm.uuid, one.vm.uuid) == []
