from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from agent.wire.problem import Problem
from controller.db import Database
from controller.errors import IdempotencyConflict, OperationNotCancellable, OperationNotFound
from controller.models import Operation, Vm, database
from controller.store import events, operations
from controller.store.operations import Job
from tests.controller.factories import add_vm


async def enqueue(db: Database, vm: UUID | None = None, host: str | None = "kvm1", kind: str = "vm-sync") -> UUID:
    return (await db.run(operations.enqueue, kind, vm, host, {"a": 1})).uuid


async def claim(db: Database, owner: str = "me", limit: int = 9) -> Job | None:
    return await db.run(operations.claim_next, owner, limit)


async def claimed(db: Database, limit: int = 9) -> list[UUID]:
    """Claim until nothing may run."""
    found = []
    while (job := await claim(db, limit=limit)) is not None:
        found.append(job.operation.uuid)
    return found


@pytest.mark.case("S15")
async def test_the_same_key_and_request_give_the_same_operation_even_after_it_ended(db: Database) -> None:
    vm = uuid4()
    first = await db.run(operations.enqueue, "snapshot-create", vm, "kvm1", {"a": 1, "b": 2}, key="k")
    await db.run(operations.finish, first.uuid, "succeeded", result={"snapshot": "x"})
    again = await db.run(operations.enqueue, "snapshot-create", vm, "kvm2", {"b": 2, "a": 1}, key="k")
    assert (again.uuid, again.result) == (first.uuid, {"snapshot": "x"})


@pytest.mark.parametrize("other", ["kind", "vm", "request"])
async def test_the_same_key_with_another_request_is_a_conflict(db: Database, other: str) -> None:
    vm = uuid4()
    await db.run(operations.enqueue, "snapshot-create", vm, "kvm1", {"a": 1}, key="k")
    kind = "vm-sync" if other == "kind" else "snapshot-create"
    body = {"a": 2} if other == "request" else {"a": 1}
    with pytest.raises(IdempotencyConflict):
        await db.run(operations.enqueue, kind, uuid4() if other == "vm" else vm, "kvm1", body, key="k")
    assert await db.run(lambda: Operation.select().count()) == 1


async def test_without_a_key_each_request_is_an_operation(db: Database) -> None:
    vm = uuid4()
    assert await enqueue(db, vm) != await enqueue(db, vm)


async def test_what_waits_for_its_vm_to_stop_is_not_queued_twice(db: Database) -> None:
    vm, snapshot = uuid4(), uuid4()

    async def asked(key: str | None = None) -> UUID:
        body = {"snapshot": str(snapshot)}
        return (await db.run(operations.enqueue, "snapshot-delete", vm, "kvm1", body, key=key)).uuid

    first = await asked()
    await claim(db)
    assert (await db.run(operations.park, first, 60)).snapshot == snapshot
    assert await asked() == first
    assert await asked(key="another") != first
    await db.run(operations.cancel, first)
    assert await asked() != first


@pytest.mark.case("S14")
async def test_a_vms_operations_run_one_after_the_other_and_other_vms_are_not_held_up(db: Database) -> None:
    vm, other = uuid4(), uuid4()
    first, second, third = await enqueue(db, vm), await enqueue(db, vm), await enqueue(db, other)
    assert await claimed(db) == [first, third]
    waiting = await db.run(operations.next_for_vm, vm)
    assert waiting is not None
    assert waiting.operation.uuid == first
    await db.run(operations.finish, first, "failed", error=Problem.example())
    assert await claimed(db) == [second]


async def test_a_host_runs_as_many_as_it_may_and_the_queue_goes_on_elsewhere(db: Database) -> None:
    here = [await enqueue(db, uuid4()) for _ in range(3)]
    there = await enqueue(db, uuid4(), "kvm2")
    assert await claimed(db, limit=2) == [here[0], here[1], there]


async def test_looking_through_a_long_queue_asks_the_database_no_more_than_through_a_short_one(db: Database) -> None:
    def asked() -> int:
        real, statements = database.obj, list[str]()
        execute = real.execute_sql

        def noted(sql: str, params: Any = None) -> Any:
            statements.append(sql)
            return execute(sql, params)

        real.execute_sql = noted
        try:
            assert operations.claim_next("me", 1) is None
        finally:
            del real.execute_sql
        return len(statements)

    counts = []
    for waiting in (2, 20):
        for _ in range(waiting):
            await enqueue(db, await db.run(add_vm))
        parked = await enqueue(db, await db.run(add_vm, state="running"))
        assert await db.run(operations.claim, parked, "me")
        await db.run(operations.park, parked, 60)
        await claimed(db, limit=1)
        counts.append(await db.run(asked))
    assert counts[0] == counts[1]


async def test_a_queued_operation_whose_host_is_full_keeps_its_vms_place(db: Database) -> None:
    vm = uuid4()
    running, waiting, behind = await enqueue(db, uuid4()), await enqueue(db, vm), await enqueue(db, vm, "kvm2")
    assert await claimed(db, limit=1) == [running]
    await db.run(operations.finish, running, "succeeded")
    assert await claimed(db, limit=1) == [waiting]
    await db.run(operations.finish, waiting, "succeeded")
    assert await claimed(db, limit=1) == [behind]


async def test_operations_of_no_vm_do_not_wait_for_each_other(db: Database) -> None:
    both = [await enqueue(db, None, None), await enqueue(db, None, None)]
    assert await claimed(db, limit=1) == both


async def test_a_claim_is_won_once(db: Database) -> None:
    await enqueue(db, uuid4())
    assert await claim(db, "me") is not None
    assert await claim(db, "you") is None


async def test_a_running_operation_is_taken_over_only_from_an_owner_that_was_not_heard_of_since(db: Database) -> None:
    uuid = await enqueue(db, uuid4())
    first = await claim(db, "silent")
    assert first is not None
    assert [(job.operation.uuid, job.owner) for job in await db.run(operations.unfinished)] == [(uuid, "silent")]
    assert not await db.run(operations.claim, uuid, "me")
    await db.run(operations.renew, "silent")
    assert not await db.run(operations.claim, uuid, "me", lost=("silent", first.beat))
    assert await db.run(operations.claim, uuid, "me", lost=("silent", first.beat + 1))
    assert not await db.run(operations.claim, uuid, "you", lost=("silent", first.beat + 1))
    assert await db.run(operations.claim, uuid, "me")
    await db.run(operations.finish, uuid, "succeeded")
    assert not await db.run(operations.claim, uuid, "me")


async def test_what_an_owner_leaves_is_anybodys_and_what_others_run_is_not(db: Database) -> None:
    for _ in range(2):
        await enqueue(db, uuid4())
    mine, yours = await claim(db, "me"), await claim(db, "you")
    assert mine is not None
    assert yours is not None
    assert await db.run(operations.renew, "me") == 1
    assert (await db.run(operations.job, mine.operation.uuid)).beat == mine.beat + 1
    assert (await db.run(operations.job, yours.operation.uuid)).beat == yours.beat
    await db.run(operations.release, "me")
    assert await db.run(operations.claim, mine.operation.uuid, "they")
    assert not await db.run(operations.claim, yours.operation.uuid, "they")


async def test_progress_is_shown_and_the_memo_grows(db: Database) -> None:
    uuid = await enqueue(db, uuid4())
    await claim(db)
    await db.run(operations.progress, uuid, step="prepare", memo={"transaction": "t"})
    await db.run(operations.progress, uuid, done_bytes=50, total_bytes=200, memo={"sent": True})
    job = await db.run(operations.job, uuid)
    assert job.memo == {"transaction": "t", "sent": True}
    assert (job.operation.step, job.operation.progress.percent) == ("prepare", 25)


@pytest.mark.case("B5")
async def test_an_operation_ends_once_and_stays_as_it_ended(db: Database) -> None:
    uuid = await enqueue(db, uuid4())
    await claim(db)
    failed = await db.run(operations.finish, uuid, "failed", error=Problem.example())
    assert (failed.state, failed.error) == ("failed", Problem.example())
    assert failed.ended_at is not None
    assert await db.run(operations.finish, uuid, "succeeded", result={"late": True}) == failed
    await db.run(operations.progress, uuid, step="too late")
    assert await db.run(operations.get, uuid) == failed
    kinds = [event.type for event in await db.run(events.read, 0, 9)]
    assert kinds == ["operation.queued", "operation.ended"]


@pytest.mark.case("B5")
async def test_an_error_whose_facts_json_does_not_know_still_ends_the_operation(db: Database) -> None:
    uuid = await enqueue(db, uuid4())
    error = Problem(title="t", status=500, code="c", detail="d", facts={"path": Path("/images"), "of": {1, 2}})
    ended = await db.run(operations.finish, uuid, "failed", error=error)
    assert ended.error is not None
    assert ended.error.facts["path"] == "/images"


async def test_cancelling_ends_a_queued_operation_and_asks_a_running_one(db: Database) -> None:
    queued, running = await enqueue(db, vm := uuid4()), await enqueue(db, vm)
    assert (await db.run(operations.cancel, queued)).state == "cancelled"
    await claim(db)
    for _ in range(2):
        assert (await db.run(operations.cancel, running)).state == "running"
    assert (await db.run(operations.job, running)).cancel_requested
    await db.run(operations.finish, running, "cancelled")
    with pytest.raises(OperationNotCancellable, match="cancelled"):
        await db.run(operations.cancel, running)


async def test_counting_what_is_open_leaves_out_what_asks(db: Database) -> None:
    vm = uuid4()
    first, second = await enqueue(db, vm), await enqueue(db, vm)
    assert await db.run(operations.open_count, vm) == 2
    assert await db.run(operations.open_count, vm, but=first) == 1
    await db.run(operations.finish, second, "succeeded")
    assert await db.run(operations.open_count, host="kvm1") == 1
    assert await db.run(operations.open_count, host="kvm2") == 0


async def test_pages_are_newest_first_and_filtered(db: Database) -> None:
    vm = uuid4()
    made = [await enqueue(db, vm) for _ in range(5)]
    await enqueue(db, uuid4(), "kvm2", kind="other")
    cut = await db.run(operations.page, 3, vm=vm)
    rest = await db.run(operations.page, 3, cut.next, vm=vm)
    assert [one.uuid for one in cut.items + rest.items] == made[::-1]
    assert len((await db.run(operations.page, 9, host="kvm2", state="queued", kind="other")).items) == 1


async def test_an_operation_that_is_not_known_is_not_found(db: Database) -> None:
    for work in (operations.get, operations.job, operations.cancel):
        with pytest.raises(OperationNotFound):
            await db.run(work, uuid4())


async def test_a_parked_operation_comes_after_all_others_and_only_once_its_vm_is_off(db: Database) -> None:
    vm = await db.run(add_vm, state="running")
    first = await enqueue(db, vm)
    assert await claimed(db) == [first]
    await db.run(operations.progress, first, memo={"begun": True})
    assert (await db.run(operations.park, first, 0)).is_parked
    assert (await db.run(operations.job, first)).memo == {operations.TRIES: 1}
    second = await enqueue(db, vm, kind="snapshot-create")
    assert await claimed(db) == [second]
    assert await db.run(operations.open_count, vm, parked=False) == 1
    await db.run(lambda: Vm.update(state="shut-off").where(Vm.uuid == vm).execute())
    assert await claimed(db) == []
    await db.run(operations.finish, second, "succeeded")
    assert await claimed(db) == [first]


async def test_a_parked_operation_is_left_alone_for_a_moment_and_can_be_cancelled(db: Database) -> None:
    vm = await db.run(add_vm, state="shut-off")
    one = await enqueue(db, vm)
    assert await claimed(db) == [one]
    await db.run(operations.park, one, 60)
    assert await claimed(db) == []
    assert (await db.run(operations.cancel, one)).state == "cancelled"


@pytest.mark.case("F5")
async def test_a_parked_operation_is_tried_after_the_clock_was_set_back_by_days(db: Database) -> None:
    vm = await db.run(add_vm, state="shut-off")
    one = await enqueue(db, vm)
    assert await claimed(db) == [one]
    await db.run(operations.park, one, 3 * 86_400)
    assert await claimed(db) == [one]


async def test_an_operation_that_was_cancelled_before_it_was_parked_ends(db: Database) -> None:
    one = await enqueue(db, await db.run(add_vm))
    assert await claimed(db) == [one]
    await db.run(operations.cancel, one)
    assert (await db.run(operations.park, one, 0)).state == "cancelled"
