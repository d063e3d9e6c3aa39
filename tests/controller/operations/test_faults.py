"""Every point of every operation, with every fault: records and host agree, and the work can be done again.

The points are those that a good run passes, not a list kept by hand: one that is added is struck from then on.
``make test`` kills at each name once in each scenario and takes a part of the rest; ``make test-slow`` takes all.
"""

import asyncio
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest

from agent.web.errors import Error
from agent.wire.operation import OPERATION_ENDED, Operation
from agent.wire.snapshot import Snapshot
from controller.store import invariants, operations
from tests.controller.databases import Databases
from tests.controller.fake_agent import Fault
from tests.controller.scenarios import SCENARIOS, Scenario
from tests.controller.strike import SECRET, Stage, Strike, staged
from tests.controller.world import PATIENT, World
from tests.visits import Struck, Visit

T = TypeVar("T")


@dataclass(frozen=True)
class Share:
    """How much of everything a run takes: one of ``of``, and of the names of points each one or each occurrence."""

    of: int

    def rest(self, all_: Sequence[T], offset: int = 0) -> list[T]:
        """Take every so many of what other faults strike too."""
        return list(all_[offset % self.of :: self.of])

    def deadly(self, points: list[str], name: str) -> list[str]:
        """Take each name once. What the engine commits for any operation is left to one scenario."""
        if self.of == 1:
            return points
        if only := SCENARIOS[name].only:
            return [one for one in points if one.endswith(" #1") and re.search(only, one)]
        return [one for one in points if one.endswith(" #1") and (name == COMMON or not _is_the_engines(one))]


FAULTS: list[Fault] = ["refuse", "crash", "twice"]
#: The scenario that strikes what is the same for all.
COMMON = "create"


def _is_the_engines(point: str) -> bool:
    return point.partition(" database ")[2].startswith(("store.operations.", "operations.engine."))


def each_of(names: Iterable[str]) -> pytest.MarkDecorator:
    """Run for a share of what these scenarios have, and in ``make test-slow`` for all that any has."""
    some = [pytest.param(name, Share(19), id=f"{name}-some") for name in names]
    whole = [pytest.param(name, Share(1), id=f"{name}-all", marks=pytest.mark.slow) for name in SCENARIOS]
    return pytest.mark.parametrize(("name", "share"), [*some, *whole])


each_scenario = each_of(SCENARIOS)
each_broad_scenario = each_of(name for name, scenario in SCENARIOS.items() if scenario.only is None)


async def good_run(stage: Stage, scenario: Scenario) -> tuple[list[str], int]:
    """Return the points and the number of calls of a run that nothing happens to."""
    async with stage.world() as one:
        operation = await scenario.act(one)
        assert operation.state == scenario.ends, operation.error
        points = [one for one in stage.striker.heard if one.endswith(" #1") or not scenario.once]
        calls = len(one.agent.calls)
        await one.check()
        return points, calls


def shown(tree: list[Snapshot]) -> list[tuple[Any, ...]]:
    """Return what must be as before when an operation failed."""
    return [(one.uuid, one.parent, one.current, one.state, one.volumes, one.backup_files) for one in tree]


async def attempt(one: World, scenario: Scenario) -> Operation | None:
    """Ask for it under a fault; None where the caller himself got no answer. All that was begun has ended then."""
    try:
        operation: Operation | None = await scenario.act(one)
    except (Error, RuntimeError, ConnectionResetError):
        operation = None
    one.engine.nudge()
    await all_ended(one)
    return operation


async def all_ended(one: World) -> list[Operation]:
    """Wait until every operation has ended; newest first."""
    async with asyncio.timeout(20):
        while True:
            version = one.db.version
            found = (await one.db.run(operations.page, 1000)).items
            if all(each.state in OPERATION_ENDED for each in found):
                return found
            await one.db.changed(version)


async def survives(one: World, scenario: Scenario) -> None:
    """Run it under a fault; then all agrees, a failure changed nothing, and trying again succeeds (S6)."""
    before, host_files = shown(await one.tree()), dict(one.vm.host_files)
    tops = dict(one.vm.tops)
    operation = await attempt(one, scenario)
    await mended(one, scenario)
    if operation is not None and operation.state == "failed":
        assert operation.error is not None
        assert operation.error.detail
        if operation.error.code != "outcome-unknown" and not scenario.parts_stand:
            assert shown(await one.tree()) == before
            assert (one.vm.host_files, one.vm.tops) == (host_files, tops)
    assert SECRET not in str(await all_ended(one))
    if shown(await one.tree()) == before:
        again = await scenario.act(one)
        assert again.state == scenario.ends, again.error
        await one.check()


async def mended(one: World, scenario: Scenario) -> None:
    """End all faults; records and host agree then."""
    await one.mend()
    if scenario.mends:
        assert (await scenario.act(one)).state == "succeeded"
    await one.check()


async def is_resumed(one: World, scenario: Scenario, stage: Stage) -> Operation | None:
    """Begin it, wait until the controller has died in it, restart; return how it ended, where it was begun."""
    earlier = {each.uuid for each in await all_ended(one)}
    await dies(one, scenario, stage)
    stage.striker.begin()
    await one.restart(patience=PATIENT)
    of_kind = [each for each in await all_ended(one) if each.kind == scenario.kind and each.uuid not in earlier]
    await mended(one, scenario)
    return of_kind[0] if of_kind else None


async def dies(one: World, scenario: Scenario, stage: Stage) -> None:
    """Begin it, and wait until the controller has died in it."""
    begun = asyncio.ensure_future(scenario.act(one))
    while not stage.striker.dead and not begun.done():
        await asyncio.sleep(0.001)
    begun.cancel()
    await asyncio.gather(begun, return_exceptions=True)
    await one.lie_down()


@pytest.mark.case("F2")
@each_scenario
async def test_the_controller_may_be_killed_at_any_point(
    databases: Databases, name: str, share: Share, visit: Visit
) -> None:
    scenario = SCENARIOS[name]
    async with staged(databases, scenario.begin) as stage:
        for point in share.deadly((await good_run(stage, scenario))[0], name):
            async with stage.world() as one:
                stage.striker.begin(point, "kill")
                operation = await is_resumed(one, scenario, stage)
                # The agent lived on, so that it could be done.
                assert operation is None or scenario.is_end(operation), (point, operation)
            visit(point.rpartition(" #")[0])
    visit(f"operation {scenario.kind}")


@pytest.mark.case("B5")
@pytest.mark.case("S4")
@pytest.mark.case("S6")
@pytest.mark.case("F4")
@each_broad_scenario
async def test_any_point_may_fail_and_tells_nothing_secret(
    databases: Databases, name: str, share: Share, struck: Struck
) -> None:
    """Among these are the requests that are lost, and the answers."""
    struck(await struck_everywhere(databases, name, share, "fail"))


@pytest.mark.case("F4")
@each_broad_scenario
async def test_any_point_may_last_longer_than_the_lease(
    databases: Databases, name: str, share: Share, struck: Struck
) -> None:
    struck(await struck_everywhere(databases, name, share, "sleep"))


async def struck_everywhere(databases: Databases, name: str, share: Share, strike: Strike) -> int:
    """Strike at its share of the points; return how many."""
    scenario = SCENARIOS[name]
    async with staged(databases, scenario.begin) as stage:
        points, _ = await good_run(stage, scenario)
        for point in share.rest(points if strike == "fail" else while_leased(points), offset=len(name)):
            async with stage.world() as one:
                stage.striker.begin(point, strike)
                await survives(one, scenario)
        return stage.runs - 1


def while_leased(points: list[str]) -> list[str]:
    """Return the points at which a lease can run out."""
    begun = [number for number, point in enumerate(points) if "put_transaction" in point]
    ended = [number for number, point in enumerate(points) if "message commit" in point or "message abort" in point]
    return points[begun[0] : ended[-1] + 1] if begun else []


@pytest.mark.case("F4")
@pytest.mark.parametrize("fault", FAULTS)
@each_broad_scenario
async def test_any_call_may_be_refused_or_kill_the_agent_or_arrive_twice(
    databases: Databases, name: str, fault: Fault, share: Share, struck: Struck
) -> None:
    scenario = SCENARIOS[name]
    async with staged(databases, scenario.begin) as stage:
        calls = range((await good_run(stage, scenario))[1])
        for number in share.rest(calls, offset=FAULTS.index(fault)):
            async with stage.world() as one:
                one.agent.faults[number] = fault
                await survives(one, scenario)
        struck(stage.runs - 1)


@pytest.mark.case("F3")
@each_broad_scenario
async def test_controller_and_agent_may_die_at_once_at_any_call(
    databases: Databases, name: str, share: Share, struck: Struck
) -> None:
    scenario = SCENARIOS[name]
    async with staged(databases, scenario.begin) as stage:
        messages = [point for point in (await good_run(stage, scenario))[0] if " message " in point]
        for point in share.rest(messages, offset=len(name)):
            async with stage.world() as one:
                before = shown(await one.tree())
                stage.striker.begin(point, "kill both")
                operation = await is_resumed(one, scenario, stage)
                assert (
                    operation is None
                    or operation.state == "succeeded"
                    or shown(await one.tree()) == before
                    or scenario.parts_stand
                )
        struck(stage.runs - 1)


@pytest.mark.case("F2")
@each_broad_scenario
async def test_what_a_dead_controller_began_is_taken_back_by_one_that_does_not_reach_the_host(
    databases: Databases, name: str, share: Share, struck: Struck
) -> None:
    scenario = SCENARIOS[name]
    async with staged(databases, scenario.begin) as stage:
        points = (await good_run(stage, scenario))[0]
        for point in share.rest([one for one in points if one.startswith("after database")], offset=len(name)):
            async with stage.world() as one:
                earlier = {each.uuid for each in await all_ended(one)}
                stage.striker.begin(point, "kill")
                await dies(one, scenario, stage)
                one.agent.dead = True
                stage.striker.begin()
                await one.restart()
                ended = [each for each in await all_ended(one) if each.uuid not in earlier]
                if "has not said how it ended" not in str(ended):  # only the host could tell
                    assert await one.db.run(invariants.unsettled) == [], (point, ended)
        struck(stage.runs - 1)
