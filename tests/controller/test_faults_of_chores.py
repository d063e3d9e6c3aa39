"""Faults at every commit and message beside the operations: all of it happened or nothing, and it can be done again."""

import asyncio
import re

import pytest
from aiohttp import ClientError

from agent.web.errors import Error
from controller.db import Database
from controller.models import MODELS
from controller.store import invariants
from tests.controller.chores import CHORES, Chore, Interrupted
from tests.controller.databases import Databases
from tests.controller.strike import SECRET, Death, Stage, Strike, staged
from tests.controller.world import PATIENT, World
from tests.visits import Visit

#: What grows with each attempt, or is made with the tables.
OF_ATTEMPTS = {"audit_entry", "event", "operation", "token", "identity"}


async def ready(one: World, chore: Chore) -> None:
    await one.snapshot(name="first")
    await chore.prepare(one)


def counts() -> dict[str, int]:
    """Return how many rows each table has."""
    found = {model._meta.table_name: model.select().count() for model in MODELS}
    return {name: count for name, count in found.items() if name not in OF_ATTEMPTS}


async def good_run(stage: Stage, chore: Chore) -> tuple[list[str], dict[str, int]]:
    """Return the points of a run that nothing happens to, and what it leaves."""
    async with stage.world() as one:
        await chore.act(one)
        points = [point for point in stage.striker.heard if point.endswith(" #1") and re.search(chore.only, point[:-3])]
        return points, await one.db.run(counts)


async def attempt(one: World, chore: Chore) -> BaseException | None:
    """Do it under a fault; return what came of it."""
    doing = asyncio.ensure_future(chore.act(one))
    (came,) = await asyncio.gather(doing, return_exceptions=True)
    expected = (
        *(Error, ClientError, Interrupted, TimeoutError),
        *(asyncio.CancelledError, RuntimeError, ConnectionResetError),
    )
    assert came is None or isinstance(came, expected), repr(came)
    return came


@pytest.mark.case("F2")
@pytest.mark.parametrize("how", ["kill", "fail"])
@pytest.mark.parametrize("name", CHORES)
async def test_any_commit_beside_operations_happens_whole_or_not_at_all(
    databases: Databases, name: str, how: Strike, visit: Visit
) -> None:
    chore = CHORES[name]
    async with staged(databases, lambda one: ready(one, chore)) as stage:
        points, after = await good_run(stage, chore)
        assert points
        for point in points:
            async with stage.world() as one:
                stage.striker.begin(point, how)
                came = await attempt(one, chore)
                assert SECRET not in str(came)
                stage.striker.begin()
                if how == "kill":
                    await one.lie_down()
                    await one.restart(patience=PATIENT)
                one.agent.dead = False
                assert await one.db.run(invariants.orphans) == []
                await chore.act(one)
                assert await one.db.run(counts) == after, point
                assert await one.db.run(invariants.orphans) == []
            visit(point.rpartition(" #")[0])


@pytest.mark.case("F2")
@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_controller_that_dies_in_its_migrations_begins_with_them_again(
    databases: Databases, when: str, visit: Visit
) -> None:
    point = f"{when} database db.migrate"

    def die(name: str) -> None:
        if name == point:
            raise Death

    address = databases.new()
    with pytest.raises(Death):
        await Database(address, die).open()
    async with Database(address) as db:
        assert await db.run(invariants.orphans) == []
        assert set((await db.run(counts)).values()) == {0}
    visit(point)
