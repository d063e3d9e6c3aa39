"""Retention applied: ordinary deletions, asked for by the controller, checked again when their turn comes."""

from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from agent.wire.base import utc_now
from agent.wire.operation import OPERATION_ENDED, Operation
from agent.wire.retention import RetentionPolicy, SetRetention
from agent.wire.snapshot import EditSnapshot
from controller.doctor import examine
from controller.errors import VmConflict, VmNowhere
from controller.models import AuditEntry, Vm, VmDefinition
from controller.operations import retention_apply, snapshot_delete
from controller.store import events, expiry, operations, retention, snapshot_edit, snapshots, vms
from tests.controller.world import HOST, World


async def policy(one: World, name: str = "p", **asked: Any) -> RetentionPolicy:
    values = asked or {"vm": str(one.vm.uuid), "keep_last": 1}
    return await one.db.run(retention.put, name, SetRetention(**values))


async def applied(one: World) -> Operation:
    wanted = retention_apply.Wanted(policy="p")
    return await one.ended((await one.engine.submit("retention-apply", wanted, lambda: (None, None))).uuid)


async def names(one: World) -> list[str]:
    return [item.name for item in await one.tree()]


async def deletions(one: World) -> list[Operation]:
    found = (await one.db.run(operations.page, 100, kind="snapshot-delete")).items
    return list(reversed(found))


async def settled(one: World) -> list[Operation]:
    """Wait until every deletion has ended or waits for the VM."""
    return [await one.engine.wait(item.uuid, 20) for item in await deletions(one)]


async def taken(one: World, *wanted: str) -> list[UUID]:
    made = [await one.snapshot(name=name) for name in wanted]
    await settled(one)
    return made


async def test_after_each_snapshot_the_oldest_goes_and_protected_ones_stay(one: World) -> None:
    (first,) = await taken(one, "a")
    await one.db.run(snapshot_edit.edit, first, EditSnapshot(protected=True))
    await policy(one, vm="win11", keep_last=2)
    await taken(one, "b", "c", "d", "e")
    assert await names(one) == ["a", "d", "e"]
    assert {item.state for item in await deletions(one)} == {"succeeded"}
    told = [event for event in await one.db.run(events.read, 0, 1000) if event.type == "snapshot.expired"]
    assert [(event.data["name"], event.data["reason"]) for event in told] == [
        ("b", "kept by no rule of policy p"),
        ("c", "kept by no rule of policy p"),
    ]
    lines = await one.db.run(lambda: [(row.method, row.status, row.operation) for row in _audited()])
    assert lines == [("DELETE", 202, item.uuid) for item in await deletions(one)]


def _audited() -> list[AuditEntry]:
    return list(AuditEntry.select().where(AuditEntry.actor == "retention").order_by(AuditEntry.seq))


async def test_asking_twice_asks_once(one: World) -> None:
    await taken(one, "a", "b")
    await policy(one)
    one.vm.state = "running"
    first = await one.db.run(expiry.expire, one.vm.uuid)
    one.engine.nudge()
    await settled(one)
    assert await one.db.run(expiry.expire, one.vm.uuid) == await deletions(one)
    assert [item.uuid for item in first] == [item.uuid for item in await deletions(one)]
    one.vm.state = "shut-off"
    assert (await one.sync()).state == "succeeded"
    (ended,) = [await one.ended(item.uuid) for item in first]
    assert (ended.state, await names(one)) == ("succeeded", ["b"])


@pytest.mark.parametrize("change", ["wider", "removed", "disabled"])
async def test_a_deletion_that_waited_is_withdrawn_where_the_policy_would_keep_by_now(one: World, change: str) -> None:
    await taken(one, "a", "b")
    await policy(one)
    one.vm.state = "running"
    await one.db.run(expiry.expire, one.vm.uuid)
    one.engine.nudge()
    (waiting,) = await settled(one)
    assert waiting.is_parked
    if change == "removed":
        await one.db.run(retention.remove, "p")
    else:
        await policy(one, vm="win11", keep_last=2 if change == "wider" else 1, enabled=change == "wider")
    one.vm.state = "shut-off"
    assert (await one.sync()).state == "succeeded"
    assert (await one.ended(waiting.uuid)).state == "cancelled"
    assert await names(one) == ["a", "b"]


async def test_what_a_person_is_deleting_is_not_counted_on_and_not_asked_for_again(one: World) -> None:
    first, second, third = await taken(one, "a", "b", "c")
    await policy(one)
    one.vm.state = "running"
    mine = await one.submit("snapshot-delete", snapshot_delete.Wanted(snapshot=third))
    assert (await one.engine.wait(mine.uuid, 20)).is_parked
    await one.db.run(expiry.expire, one.vm.uuid)
    one.engine.nudge()
    assert {item.uuid for item in await one.db.run(expiry.expire, one.vm.uuid)} >= {mine.uuid}
    asked = {
        operation.request["snapshot"]
        for operation in [await one.db.run(operations.job, item.uuid) for item in await deletions(one)]
    }
    assert asked == {str(first), str(third)}
    one.vm.state = "shut-off"
    assert (await one.sync()).state == "succeeded"
    for item in await deletions(one):
        assert (await one.ended(item.uuid)).state == "succeeded"
    assert [item.uuid for item in await one.tree()] == [second]


async def test_a_deletion_that_fails_is_tried_again_ever_later_and_named_by_the_doctor(one: World) -> None:
    (first, _) = await taken(one, "a", "b")
    one.agent.undeletable = {volume.path for volume in (await one.db.run(snapshots.group, first)).volumes}
    await policy(one)
    for _ in range(3):
        await one.db.run(expiry.expire, one.vm.uuid)
        one.engine.nudge()
        assert [item.state for item in await settled(one)] == ["failed"]
    findings = await examine.examine(one.db, one.hosts)
    assert [(item.code, item.snapshot) for item in findings] == [("retention-failing", first)]
    in_an_hour = utc_now() + timedelta(hours=1)
    await one.db.run(lambda: expiry.expire(one.vm.uuid, now=in_an_hour))
    one.engine.nudge()
    assert [item.state for item in await settled(one)] == ["failed", "failed"]
    await one.db.run(lambda: expiry.expire(one.vm.uuid, now=in_an_hour))
    assert len(await deletions(one)) == 2
    one.agent.undeletable = set()
    await applied(one)
    assert await names(one) == ["b"]
    assert await examine.examine(one.db, one.hosts) == []


async def test_apply_says_what_went_what_waits_and_what_failed(one: World) -> None:
    first, second, _ = await taken(one, "a", "b", "c")
    one.agent.undeletable = {volume.path for volume in (await one.db.run(snapshots.group, first)).volumes}
    await policy(one)
    ended = await applied(one)
    assert ended.state == "succeeded", ended.error
    assert (ended.result["deleted"], [item["snapshot"] for item in ended.result["failed"]]) == (
        [str(second)],
        [str(first)],
    )
    one.agent.undeletable, one.vm.state = set(), "running"
    waiting = await applied(one)
    assert [item["snapshot"] for item in waiting.result["waiting"]] == [str(first)]
    one.vm.state = "shut-off"
    assert (await one.sync()).state == "succeeded"
    assert {item.state for item in [await one.ended(item.uuid) for item in await deletions(one)]} <= OPERATION_ENDED
    assert await names(one) == ["c"]


async def test_a_label_policy_deletes_only_what_carries_the_label(one: World) -> None:
    await one.snapshot(name="a", labels={"by": "cron"})
    await one.snapshot(name="by hand")
    await one.snapshot(name="b", labels={"by": "cron"})
    await policy(one, labels={"by": "cron"}, keep_last=1)
    await applied(one)
    assert await names(one) == ["by hand", "b"]


async def test_a_vm_in_conflict_or_nowhere_is_left_for_later(one: World) -> None:
    await taken(one, "a", "b")
    await policy(one)
    await one.db.run(lambda: Vm.update(conflict="kvm1, kvm2").execute())
    with pytest.raises(VmConflict):
        await one.db.run(expiry.expire, one.vm.uuid)
    await one.db.run(lambda: Vm.update(conflict=None, host=None).execute())
    with pytest.raises(VmNowhere):
        await one.db.run(expiry.expire, one.vm.uuid)
    await one.db.run(expiry.expire_quietly, one.vm.uuid)
    ended = await applied(one)
    assert [item["vm"] for item in ended.result["skipped"]] == [str(one.vm.uuid)]
    assert await deletions(one) == []
    await one.db.run(lambda: Vm.update(host=HOST).execute())


async def test_a_policy_outlives_a_vm_that_is_gone_for_a_moment_and_goes_with_one_that_is_forgotten(
    one: World,
) -> None:
    await policy(one)
    facts = await one.db.run(vms.definition, one.vm.uuid, HOST)
    await one.db.run(vms.record_inventory, HOST, [], utc_now())
    assert (await one.db.run(retention.get, "p")).vm == one.vm.uuid
    await one.db.run(vms.record_inventory, HOST, [facts], utc_now())
    await one.db.run(vms.forget, one.vm.uuid)
    assert await one.db.run(retention.find, "p") is None
    assert await one.db.run(lambda: VmDefinition.select().count()) == 0
    await one.db.run(vms.record_inventory, HOST, [facts], utc_now())
