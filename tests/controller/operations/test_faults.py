"""Every step of every operation, broken in every way: records and host agree, and the work can be done again.

The steps are those of a recorded good run, not a list kept by hand: a step that is added is broken from then on.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from agent.wire.operation import Operation
from agent.wire.snapshot import Snapshot
from controller.errors import DatabaseFailed
from controller.operations import restore_host_files
from controller.operations.clone import Target, WantedOfVm
from controller.store import operations
from tests.controller.fake_agent import Fault
from tests.controller.world import World, world

SECRET = "correct horse battery staple"


async def take(one: World) -> Operation:
    return await one.create(name="second")


async def go_back(one: World) -> Operation:
    first = (await one.tree())[0]
    return await one.revert(first.uuid)


async def take_slowly(one: World) -> Operation:
    one.agent.linger = 2  # libvirt is away for a moment, say: the host has decided and is not done
    return await one.create(name="second")


async def clone(one: World) -> Operation:
    first = (await one.tree())[0]
    return await one.clone(first.uuid, "a", "b", tpm="copy")


async def clone_as_it_stands(one: World) -> Operation:
    return await one.act("vm-clone", WantedOfVm(targets=[Target(name="a")]))


async def remove(one: World) -> Operation:
    first = (await one.tree())[0]
    return await one.delete(first.uuid)


async def remove_sibling(one: World) -> Operation:
    """Leave a hidden base with one child, so that it goes in the same operation."""
    second = next(item for item in await one.tree() if item.name == "second")
    return await one.delete(second.uuid)


async def put_back(one: World) -> Operation:
    first = (await one.tree())[0]
    return await one.act(
        "vm-restore-host-files", restore_host_files.Wanted(types=["nvram", "tpm"], snapshot=first.uuid)
    )


Scenario = Callable[[World], Coroutine[Any, Any, Operation]]
SCENARIOS: dict[str, Scenario] = {
    "create": take,
    "create-slowly": take_slowly,
    "revert": go_back,
    "delete": remove,
    "clone": clone,
    "clone-vm": clone_as_it_stands,
    "delete-hidden": remove_sibling,
    "restore": put_back,
}


@asynccontextmanager
async def prepared(tmp_path: Path, scenario: str) -> AsyncIterator[World]:
    """A VM on a snapshot, its host files changed since; for a revert there is an older undo point too."""
    async with world(tmp_path) as one:
        first = await one.snapshot(name="first")
        if scenario == "revert":
            assert (await one.revert(first)).state == "succeeded"
        if scenario == "delete-hidden":
            await one.snapshot(name="second")
            assert (await one.revert(first, undo_point=False)).state == "succeeded"
            assert (await one.delete(first)).state == "succeeded"
        one.vm.host_files = {"nvram": b"nvram since", "tpm": b"tpm since"}
        one.agent.calls.clear()
        one.db.steps = 0
        yield one


async def recorded(tmp_path: Path, scenario: str) -> tuple[list[str], int]:
    """Return the calls and the number of database steps of a good run."""
    async with prepared(tmp_path, scenario) as one:
        operation = await SCENARIOS[scenario](one)
        assert operation.state == "succeeded", operation.error
        await one.check()
        return list(one.agent.calls), one.db.steps


def shown(tree: list[Snapshot]) -> list[tuple[Any, ...]]:
    """Return what must be as before when an operation failed."""
    return [(one.uuid, one.parent, one.current, one.state, one.volumes, one.backup_files) for one in tree]


async def survives(one: World, scenario: str) -> Operation:
    """Run it under a fault; then all agrees, a failure changed nothing, and trying again succeeds (S6)."""
    before, host_files = shown(await one.tree()), dict(one.vm.host_files)
    tops = dict(one.vm.tops)
    operation = await SCENARIOS[scenario](one)
    await one.mend()
    await one.check()
    if operation.state == "failed":
        assert operation.error is not None
        assert operation.error.detail
    known = operation.error is not None and operation.error.code != "outcome-unknown"
    if operation.state == "failed" and known and scenario != "clone-vm":  # its snapshot is an ordinary one and stays
        assert shown(await one.tree()) == before
        assert (one.vm.host_files, one.vm.tops) == (host_files, tops)
    if shown(await one.tree()) == before:
        again = await SCENARIOS[scenario](one)
        assert again.state == "succeeded", again.error
        await one.check()
    return operation


@pytest.mark.case("B5")
@pytest.mark.case("S4")
@pytest.mark.case("S6")
@pytest.mark.parametrize("fault", ["refuse", "drop-before", "drop-after", "crash"])
@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_any_call_to_the_agent_may_fail(tmp_path: Path, scenario: str, fault: Fault) -> None:
    (tmp_path / "good").mkdir()
    calls, _ = await recorded(tmp_path / "good", scenario)
    for number in range(len(calls)):
        directory = tmp_path / str(number)
        directory.mkdir()
        async with prepared(directory, scenario) as one:
            one.agent.faults[number] = fault
            await survives(one, scenario)


@pytest.mark.case("B5")
@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_any_step_through_the_database_may_fail_and_tells_nothing_secret(tmp_path: Path, scenario: str) -> None:
    (tmp_path / "good").mkdir()
    _, steps = await recorded(tmp_path / "good", scenario)
    for number in range(steps):
        directory = tmp_path / str(number)
        directory.mkdir()
        async with prepared(directory, scenario) as one:
            # By turns an error of ours and one that nobody foresaw.
            breakage = DatabaseFailed(reason="disk full") if number % 2 else RuntimeError(SECRET)
            one.db.break_at, one.db.breakage = number, partial(_same, breakage)
            operation = await survives(one, scenario)
            assert SECRET not in str(operation)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_the_controller_may_die_at_any_step_through_the_database(
    tmp_path: Path, scenario: str, after: bool
) -> None:
    (tmp_path / "good").mkdir()
    _, steps = await recorded(tmp_path / "good", scenario)
    for number in range(steps):
        directory = tmp_path / str(number)
        directory.mkdir()
        async with prepared(directory, scenario) as one:
            one.db.break_at, one.db.after = number, after
            await dies_and_is_resumed(one, scenario, partial(_reached, one, number))


@pytest.mark.parametrize("fault", ["drop-before", "drop-after"])
@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_the_controller_may_die_at_any_call_to_the_agent(tmp_path: Path, scenario: str, fault: Fault) -> None:
    (tmp_path / "good").mkdir()
    calls, _ = await recorded(tmp_path / "good", scenario)
    for number in range(len(calls)):
        directory = tmp_path / str(number)
        directory.mkdir()
        async with prepared(directory, scenario) as one:
            one.agent.faults[number] = fault
            seen = asyncio.Event()

            async def die(call: int, _: str, one: World = one, number: int = number, seen: Any = seen) -> None:
                if call == number:
                    seen.set()
                    for _job, task in one.engine._jobs.values():
                        task.cancel()

            one.agent.on_call = die
            await dies_and_is_resumed(one, scenario, seen.is_set)


async def dies_and_is_resumed(one: World, scenario: str, dead: Callable[[], bool]) -> None:
    """Begin it, wait until the controller has died in it, restart: it ends, whole, since the agent lived on."""
    begun = asyncio.create_task(SCENARIOS[scenario](one))
    while not (dead() and not one.engine._jobs) and not begun.done():
        await asyncio.sleep(0)
    begun.cancel()
    await asyncio.gather(begun, return_exceptions=True)
    one.agent.faults.clear()
    one.agent.on_call, one.db.break_at = None, None
    await one.restart()
    operation = await one.ended(await newest(one))
    assert operation.state == "succeeded", operation.error
    await one.mend()
    await one.check()


def _reached(one: World, number: int) -> bool:
    return one.db.steps > number


def _same(breakage: BaseException) -> BaseException:
    return breakage


async def newest(one: World) -> UUID:
    return (await one.db.run(operations.page, 1)).items[0].uuid
