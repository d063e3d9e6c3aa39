"""F6: an agent that accepts calls and answers none holds up its own host's work, and nobody else's."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from agent.wire.fleet import AddHost
from controller.operations import snapshot_create
from controller.store import hosts, operations
from tests.controller.databases import Databases
from tests.controller.fake_agent import TOKEN, FakeAgent
from tests.controller.world import World, served, world


@pytest.fixture
async def one(databases: Databases) -> AsyncIterator[World]:
    async with world(databases) as made:
        yield made


@pytest.mark.case("F6")
async def test_work_on_other_hosts_goes_on_while_one_agent_hangs_and_its_own_ends_when_it_is_back(one: World) -> None:
    other = FakeAgent()
    elsewhere = other.add_vm("elsewhere")
    async with served(other) as url:
        await one.hosts.add(AddHost(name="kvm2", url=url, agent_token=TOKEN))
        back, hung = asyncio.Event(), asyncio.Event()

        async def hang(number: int, call: str) -> None:
            del number, call
            hung.set()
            await back.wait()

        one.agent.on_call = hang
        held = await one.submit("snapshot-create", snapshot_create.Wanted())
        await hung.wait()
        wanted = snapshot_create.Wanted()
        asked = await one.engine.submit("snapshot-create", wanted, lambda: (elsewhere.uuid, "kvm2"))
        assert (await one.ended(asked.uuid)).state == "succeeded"
        assert (await one.db.run(operations.get, held.uuid)).state == "running"
        assert (await one.db.run(hosts.get, "kvm2")).name == "kvm2"
        one.agent.on_call = None
        back.set()
        assert (await one.ended(held.uuid)).state == "succeeded"


@pytest.mark.case("F6")
async def test_an_agent_that_never_answers_fails_the_operation_by_name_before_anything_was_committed(
    one: World,
) -> None:
    one.agent.on_call = _never
    operation = await one.create()
    assert operation.state == "failed"
    assert operation.error is not None
    assert operation.error.code == "host-unreachable"
    assert "in time" in operation.error.detail
    await one.mend()
    await one.check()


async def _never(number: int, call: str) -> None:
    del number, call
    await asyncio.Event().wait()
