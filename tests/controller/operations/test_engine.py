"""The engine: queues, ends, cancels, leases."""

import asyncio
import threading
from functools import partial
from uuid import UUID

import pytest

from agent.wire.operation import Operation
from controller import owners
from controller.errors import IdempotencyConflict, OperationNotCancellable
from controller.models import Operation as Row
from controller.operations import snapshot_create, sync
from controller.store import operations
from tests.controller.world import HOST, World, define

PUT, COMMIT = "PUT /v1/transactions/{id}", "POST /v1/transactions/{id}/commit"
ABORT = "POST /v1/transactions/{id}/abort"
GET, CAPTURED = "GET /v1/transactions/{id}", "GET /v1/transactions/{id}/host-files/{type}"


class Gate:
    """Holds back the first call of a kind until it is opened."""

    def __init__(self, one: World, call: str) -> None:
        self.reached, self.opened = asyncio.Event(), asyncio.Event()
        self.call = call
        one.agent.on_call = self.hold

    async def hold(self, _: int, call: str) -> None:
        if call == self.call and not self.reached.is_set():
            self.reached.set()
            await self.opened.wait()


async def held(one: World, uuid: UUID) -> tuple[str | None, int]:
    row = await one.db.run(operations.job, uuid)
    return row.owner, row.beat


@pytest.mark.case("S14")
async def test_a_second_request_for_a_vm_waits_its_turn_and_other_vms_are_not_held_up(one: World) -> None:
    other = await define(one, "other")
    gate = Gate(one, PUT)
    first = await one.submit("snapshot-create", snapshot_create.Wanted(name="1"))
    await gate.reached.wait()
    second = await one.submit("snapshot-create", snapshot_create.Wanted(name="2"))
    elsewhere = await one.act("snapshot-create", snapshot_create.Wanted(), other.uuid)
    assert elsewhere.state == "succeeded"
    assert (await one.db.run(operations.get, second.uuid)).state == "queued"
    gate.opened.set()
    await one.ended(second.uuid)
    assert (await one.ended(first.uuid)).state == "succeeded"
    assert [item.name for item in await one.tree()] == ["1", "2"]


async def test_a_host_runs_no_more_operations_at_once_than_allowed(one: World) -> None:
    await one.kill()
    one.engine = await one.new_engine(per_host=1).__aenter__()
    other = await define(one, "other")
    gate = Gate(one, PUT)
    first = await one.submit("snapshot-create", snapshot_create.Wanted())
    await gate.reached.wait()
    elsewhere = await one.submit("snapshot-create", snapshot_create.Wanted(), other.uuid)
    assert (await one.engine.wait(elsewhere.uuid, 0.05)).state == "queued"
    gate.opened.set()
    assert [(await one.ended(uuid)).state for uuid in (first.uuid, elsewhere.uuid)] == ["succeeded", "succeeded"]


@pytest.mark.case("S15")
async def test_the_same_key_twice_makes_one_snapshot_and_gives_the_same_answer(one: World) -> None:
    wanted = snapshot_create.Wanted(name="once")
    first = await one.submit("snapshot-create", wanted, key="k")
    ended = await one.ended(first.uuid)
    assert await one.submit("snapshot-create", wanted, key="k") == ended
    assert len(await one.tree()) == 1
    with pytest.raises(IdempotencyConflict):
        await one.submit("snapshot-create", snapshot_create.Wanted(name="other"), key="k")


async def test_a_queued_operation_is_cancelled_at_once(one: World) -> None:
    gate = Gate(one, PUT)
    first = await one.submit("snapshot-create", snapshot_create.Wanted(name="1"))
    await gate.reached.wait()
    second = await one.submit("snapshot-create", snapshot_create.Wanted(name="2"))
    assert (await one.engine.cancel(second.uuid)).state == "cancelled"
    gate.opened.set()
    assert (await one.ended(first.uuid)).state == "succeeded"
    assert [item.name for item in await one.tree()] == ["1"]


async def test_a_running_operation_is_cancelled_before_commit_and_undone(one: World) -> None:
    gate = Gate(one, PUT)
    first = await one.submit("snapshot-create", snapshot_create.Wanted())
    await gate.reached.wait()
    await one.engine.cancel(first.uuid)
    gate.opened.set()
    ended = await one.ended(first.uuid)
    assert ended.error is not None
    assert (ended.state, ended.error.code) == ("cancelled", "operation-cancelled")
    assert await one.tree() == []


async def test_an_operation_that_is_claimed_while_it_is_cancelled_is_cancelled(one: World) -> None:
    loop, asked = asyncio.get_running_loop(), threading.Event()
    cancelling: list[asyncio.Task[Operation]] = []

    def ask(uuid: UUID) -> None:
        cancelling.append(asyncio.create_task(one.engine.cancel(uuid)))
        loop.call_soon(asked.set)  # by then it waits for the database's thread, behind the claim

    def checkpoint(point: str) -> None:
        if point == "after database store.operations.claim_next" and not asked.is_set():
            for claimed in operations.unfinished():
                loop.call_soon_threadsafe(ask, claimed.operation.uuid)
                assert asked.wait(5)

    assert one.db._real is not None
    one.db._real.checkpoint = checkpoint
    queued = await one.submit("snapshot-create", snapshot_create.Wanted())
    assert (await one.ended(queued.uuid)).state == "cancelled"
    assert [(await asking).state for asking in cancelling] == ["running"]
    assert await one.tree() == []


async def test_after_commit_was_sent_cancelling_is_refused(one: World) -> None:
    gate = Gate(one, COMMIT)
    first = await one.submit("snapshot-create", snapshot_create.Wanted())
    await gate.reached.wait()
    with pytest.raises(OperationNotCancellable):
        await one.engine.cancel(first.uuid)
    gate.opened.set()
    assert (await one.ended(first.uuid)).state == "succeeded"


async def test_waiting_gives_up_after_its_time_and_says_how_it_stands(one: World) -> None:
    gate = Gate(one, PUT)
    first = await one.submit("snapshot-create", snapshot_create.Wanted())
    await gate.reached.wait()
    shown = await one.engine.wait(first.uuid, 0.01)
    assert (shown.state, shown.step) == ("running", "prepare")
    gate.opened.set()
    await one.ended(first.uuid)


async def test_a_second_controller_leaves_running_work_alone_until_its_lease_has_run_out(one: World) -> None:
    gate = Gate(one, PUT)
    first = await one.submit("snapshot-create", snapshot_create.Wanted())
    await gate.reached.wait()
    async with one.new_engine() as other:
        other.nudge()
        # Its own work runs, so its rounds do; ours is still ours.
        elsewhere = await define(one, "elsewhere")
        await other.wait((await other.submit("vm-sync", sync.Wanted(), lambda: (elsewhere.uuid, "kvm1"))).uuid, 20)
        assert (await one.db.run(operations.job, first.uuid)).owner == one.engine.owner
        await one.kill()
        other.nudge()
        gate.opened.set()
        assert (await other.wait(first.uuid, 20)).state == "succeeded"
    one.engine = await one.new_engine().__aenter__()


async def test_an_engine_that_was_not_heard_of_lets_go_of_what_another_has_taken_over(one: World) -> None:
    gate = Gate(one, PUT)
    first = await one.submit("snapshot-create", snapshot_create.Wanted())
    await gate.reached.wait()
    await one.db.run(operations.claim, first.uuid, "another", lost=await held(one, first.uuid))
    one.engine.nudge()
    while one.engine._jobs:
        await asyncio.sleep(0)
    assert (await one.db.run(operations.job, first.uuid)).owner == "another"
    gate.opened.set()
    await one.db.run(operations.release, "another")
    one.engine.nudge()
    assert (await one.ended(first.uuid)).state == "succeeded"


async def test_what_an_engine_elsewhere_ran_is_taken_over_once_that_is_silent_for_a_lease(one: World) -> None:
    """Of a process on another machine only its silence tells; no clock of it or ours is compared."""
    await one.kill()
    queued = await one.submit("vm-sync", sync.Wanted())
    await one.db.run(operations.claim, queued.uuid, "elsewhere")
    async with one.new_engine(owner_lease_s=0.3) as other:
        for _ in range(6):  # it is heard of for longer than a lease
            await asyncio.sleep(0.1)
            assert await one.db.run(operations.renew, "elsewhere") == 1
        assert (await held(one, queued.uuid))[0] == "elsewhere"
        assert (await other.wait(queued.uuid, 20)).state == "succeeded"
    one.engine = await one.new_engine().__aenter__()


async def test_what_a_dead_process_ran_is_resumed_before_its_lease_has_run_out(one: World) -> None:
    gate = Gate(one, PUT)
    first = await one.submit("snapshot-create", snapshot_create.Wanted())
    await gate.reached.wait()
    await one.kill()
    world, pid, _, token = owners.new().rsplit("/", 3)  # a process that had our number before us
    await one.db.run(operations.claim, first.uuid, f"{world}/{pid}/1/{token}")
    gate.opened.set()
    async with one.new_engine() as other:
        assert (await other.wait(first.uuid, 20)).state == "succeeded"
    one.engine = await one.new_engine().__aenter__()


async def test_an_engine_that_slept_past_its_lease_takes_nothing_back_and_tells_no_end(one: World) -> None:
    """It wakes in the middle of a step: what it read before, that no commit was sent, is wrong by now."""
    asleep, over = Gate(one, CAPTURED), Gate(one, GET)

    async def hold(number: int, call: str) -> None:
        for gate in (asleep, over):
            await gate.hold(number, call)

    one.agent.on_call, one.agent.linger = hold, 1
    first = await one.submit("snapshot-create", snapshot_create.Wanted())
    await asleep.reached.wait()
    sleeper = one.engine
    sleeper._drop_lost = partial(asyncio.sleep, 0)  # type: ignore[method-assign]  # it does not learn of it in time
    await one.db.run(operations.release, sleeper.owner)
    async with one.new_engine() as other:
        await over.reached.wait()  # the host has committed, and the other engine does not know it yet
        asleep.opened.set()  # what the sleeper asks for is there no more
        while sleeper._jobs:
            await asyncio.sleep(0.001)
        over.opened.set()
        ended = await other.wait(first.uuid, 20)
    assert (ended.state, [item.state for item in await one.tree()]) == ("succeeded", ["ready"])


async def test_a_commit_that_was_refused_is_taken_back_only_once_the_host_has_aborted(one: World) -> None:
    """A copy of the commit may still be on its way, and finds what it commits until then."""
    one.agent.refuse[COMMIT] = one.agent.refuse[ABORT] = "storage-failed"
    ended = await one.create(name="1")
    assert ended.error is not None
    assert (ended.error.code, [item.state for item in await one.tree()]) == ("outcome-unknown", ["creating"])
    one.agent.refuse.clear()
    (late,) = one.agent.transactions
    await one.hosts.client(HOST).commit(late)
    await one.snapshot(name="2")
    assert [(item.name, item.state) for item in await one.tree()] == [("1", "ready"), ("2", "ready")]


async def test_a_commit_that_was_refused_and_aborted_fails_with_the_hosts_reason(one: World) -> None:
    one.agent.refuse[COMMIT] = "storage-failed"
    ended = await one.create()
    assert ended.error is not None
    assert (ended.error.code, await one.tree()) == ("storage-failed", [])
    assert [view.view.state for view in one.agent.transactions.values()] == ["aborted"]


async def test_a_stopped_engine_hands_its_work_to_the_next_at_once(one: World) -> None:
    gate = Gate(one, PUT)
    first = await one.submit("snapshot-create", snapshot_create.Wanted())
    await gate.reached.wait()
    gate.opened.set()
    await one.engine.__aexit__(None, None, None)
    row = await one.db.run(operations.job, first.uuid)
    assert row.operation.state == "running"
    assert row.owner is None
    one.engine = await one.new_engine().__aenter__()
    assert (await one.ended(first.uuid)).state == "succeeded"


async def test_a_lease_that_ran_out_while_the_controller_was_dead_fails_with_that_reason(one: World) -> None:
    gate = Gate(one, "GET /v1/transactions/{id}/host-files/{type}")
    first = await one.submit("snapshot-create", snapshot_create.Wanted())
    await gate.reached.wait()
    await one.kill()
    gate.opened.set()
    one.agent.expire_leases()
    one.engine = await one.new_engine().__aenter__()
    ended = await one.ended(first.uuid)
    assert ended.error is not None
    assert (ended.state, ended.error.code) == ("failed", "lease-expired")
    assert await one.tree() == []


@pytest.mark.case("F8")
async def test_work_that_an_older_copy_of_the_database_does_not_know_is_let_go_and_holds_nobody_up(one: World) -> None:
    gate = Gate(one, PUT)
    lost = await one.submit("snapshot-create", snapshot_create.Wanted(name="lost"))
    await gate.reached.wait()
    # A standby took over that lacked the last commits.
    await one.db.run(lambda: Row.delete().where(Row.uuid == lost.uuid).execute())
    other = await define(one, "other")
    assert (await one.act("snapshot-create", snapshot_create.Wanted(), other.uuid)).state == "succeeded"
    gate.opened.set()
    async with asyncio.timeout(20):
        while lost.uuid in one.engine._jobs:
            await asyncio.sleep(0.001)


async def test_the_end_of_work_that_the_database_does_not_know_any_more_is_not_told_for_ever(one: World) -> None:
    await one.restart(owner_lease_s=1000)  # nobody looks for lost work meanwhile
    gate = Gate(one, PUT)
    lost = await one.submit("snapshot-create", snapshot_create.Wanted(name="lost"))
    await gate.reached.wait()
    await one.db.run(lambda: Row.delete().where(Row.uuid == lost.uuid).execute())
    gate.opened.set()
    async with asyncio.timeout(20):
        while lost.uuid in one.engine._jobs:
            await asyncio.sleep(0.001)
