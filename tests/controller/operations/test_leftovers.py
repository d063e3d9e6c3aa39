"""What an operation left open is settled by the next one, however that came about."""

import asyncio
from uuid import uuid4

import pytest

from agent.wire.base import utc_now
from agent.wire.problem import Problem
from controller.models import Operation
from controller.operations import snapshot_delete
from controller.store import operations
from tests.controller.databases import Databases
from tests.controller.strike import staged
from tests.controller.world import HOST, World

PUT, COMMIT = "PUT /v1/transactions/{id}", "POST /v1/transactions/{id}/commit"
ABORT = "POST /v1/transactions/{id}/abort"


@pytest.mark.case("F2")
async def test_the_host_is_asked_however_many_operations_have_failed_since(one: World) -> None:
    """Automation that asks every five minutes makes a thousand in four days."""
    first = await one.snapshot(name="first")
    await one.snapshot(name="second")
    one.agent.refuse[COMMIT] = one.agent.refuse[ABORT] = "storage-failed"
    ended = await one.revert(first, undo_point=False)
    assert ended.error is not None
    assert ended.error.code == "outcome-unknown"
    one.agent.refuse.clear()
    late = list(one.agent.transactions)[-1]
    await one.hosts.client(HOST).commit(late)
    await one.db.run(_have_failed, one, 2001)
    await one.snapshot(name="third")
    tree = {item.name: item for item in await one.tree()}
    assert {item.state for item in tree.values()} == {"ready"}
    assert tree["third"].parent == first


def _have_failed(one: World, count: int) -> None:
    ended = {"state": "failed", "error": Problem.example(), "ended_at": utc_now()}
    same = {"kind": "vm-sync", "vm": one.vm.uuid, "host": HOST, "request": {}, "memo": {}, "body_hash": "", **ended}
    for at in range(0, count, 500):
        Operation.insert_many([{"uuid": uuid4(), **same} for _ in range(min(500, count - at))]).execute()


@pytest.mark.case("D2")
async def test_a_deletion_that_waits_for_its_vm_leaves_nothing_begun_though_taking_it_back_failed(
    databases: Databases,
) -> None:
    async with staged(databases, lambda one: one.snapshot(name="first")) as stage, stage.world() as one:
        stage.striker.begin("before database operations.ending.undone #1", "fail")
        one.agent.refuse[PUT] = "domain-running"  # it was started just now
        asked = await one.submit("snapshot-delete", snapshot_delete.Wanted(snapshot=await one.named("first")))
        while not (await one.db.run(operations.get, asked.uuid)).is_parked:
            await asyncio.sleep(0.001)
        assert stage.striker.struck
        await one.engine.cancel(asked.uuid)
        assert (await one.ended(asked.uuid)).state == "cancelled"
        assert [item.state for item in await one.tree()] == ["ready"]
