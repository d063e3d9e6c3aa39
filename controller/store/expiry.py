"""Applying retention: verdicts on a VM's snapshots as the records are now, and asking for deletions.

A deletion asked for here is an operation like any other, except that it asks ``is_due`` once more before it begins:
a policy may have been changed, or a newer snapshot deleted, while it waited for its VM to stop.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import count
from uuid import UUID

from agent.wire.base import utc_now
from agent.wire.operation import Operation as WireOperation
from agent.wire.retention import RetentionPolicy, RetentionVerdict
from agent.wire.snapshot import Snapshot
from controller.db import read, write
from controller.errors import SnapshotNotFound, VmConflict, VmNotFound, VmNowhere
from controller.models import Operation, VolumeSnapshot
from controller.retention import Verdict, covers, plan
from controller.store import audit, deletions, events, operations, retention, snapshots, survey, vms

#: Who asks for these deletions, as the audit log has it.
IDENTITY = "retention"
#: After a failure the next try comes after an hour, then twice as late each time, up to a day: a full disk is seen to
#: by then, and an operation a day is no flood.
_RETRY, _RETRY_MAX = timedelta(hours=1), timedelta(days=1)
_ALL = 1_000_000  # a page without an end


@dataclass(frozen=True)
class Failing:
    """A snapshot that should be gone, and whose deletion failed so far."""

    snapshot: Snapshot
    tries: int
    reason: str
    next_at: datetime


def concerned() -> list[UUID]:
    """Return the VMs with snapshots that a policy in force may be about."""
    policies = retention.enabled()
    named = {policy.vm for policy in policies}
    return [vm for vm, _ in survey.with_snapshots() if None in named or vm in named]


def expire(vm: UUID, *, only: str | None = None, now: datetime | None = None) -> list[WireOperation]:
    """Ask for the deletion of what a VM's policies do not keep; event ``snapshot.expired``, a line in the audit log.

    Returns the deletions that are under way afterwards, older ones too. With ``only`` those that this policy covers,
    and at once; else what has failed before is tried again later each time. Raises VmNowhere, VmConflict, VmNotFound.
    """
    with write():
        due = [one for one in _verdicts(vm, retention.enabled()) if not one.keep and _about(one, only)]
        if not due:
            return []
        host, asked = vms.host_of(vm), deletions.under_way(vm)
        found = []
        for one in due:
            known = asked.get(one.snapshot.uuid)
            if known is not None:
                found.append(operations.get(known.uuid))
            elif only is not None or _may_be_tried(one.snapshot.uuid, now or utc_now()):
                found.append(_ask(one, host))
        return found


def expire_quietly(vm: UUID) -> list[UUID]:
    """As ``expire``, for what goes by the way: a VM that no host can work on is left for later."""
    try:
        return [one.uuid for one in expire(vm)]
    except (VmNowhere, VmConflict, VmNotFound):
        return []


def is_due(snapshot: UUID) -> bool:
    """Return whether a snapshot would still go, by the policies and records as they are now."""
    with read():
        try:
            vm = snapshots.get(snapshot).vm
        except SnapshotNotFound:
            return True  # the deletion itself says that it is gone
        return any(one.snapshot.uuid == snapshot and not one.keep for one in _verdicts(vm, retention.enabled()))


def preview(name: str) -> list[RetentionVerdict]:
    """Return what would become of each snapshot that a policy covers, by all policies in force and this one.

    By VM, newest first. Raises RetentionPolicyNotFound.
    """
    with read():
        policy = retention.get(name)
        policies = [policy, *(one for one in retention.enabled() if one.name != name)]
        found: list[RetentionVerdict] = []
        for vm, _ in survey.with_snapshots():
            asked = deletions.under_way(vm)
            found += [
                _told(one, asked.get(one.snapshot.uuid))
                for one in _verdicts(vm, policies)
                if covers(policy, one.snapshot)
            ]
    return found


def failing() -> list[Failing]:
    """Return the snapshots that should be gone and whose deletion failed last time."""
    with read():
        return [one for vm in concerned() for one in _failing(vm)]


def _failing(vm: UUID) -> Iterator[Failing]:
    asked = deletions.under_way(vm)
    for one in _verdicts(vm, retention.enabled()):
        tries = [] if one.keep or one.snapshot.uuid in asked else _tries(one.snapshot.uuid)
        if tries and tries[-1].state == "failed" and tries[-1].error is not None:
            yield Failing(one.snapshot, len(tries), tries[-1].error.detail, _next(tries))


def _verdicts(vm: UUID, policies: Sequence[RetentionPolicy]) -> list[Verdict]:
    begun = VolumeSnapshot.select(VolumeSnapshot.snapshot).where(
        VolumeSnapshot.vm == vm, VolumeSnapshot.merged | VolumeSnapshot.altered
    )
    going = {row.snapshot_id for row in begun if row.snapshot_id is not None}
    going |= {uuid for uuid, row in deletions.under_way(vm).items() if not deletions.by_retention(row)}
    return plan(snapshots.page(_ALL, vm=vm).items, policies, going, now=utc_now())


def _about(one: Verdict, only: str | None) -> bool:
    return only is None or only in one.policies


def _ask(one: Verdict, host: str) -> WireOperation:
    uuid, vm = one.snapshot.uuid, one.snapshot.vm
    key = _key(uuid, len(_tries(uuid)) + 1)
    operation = deletions.ask(uuid, vm, host, "retention", key)
    line = audit.begin(
        actor=IDENTITY, role="operator", remote="controller", method="DELETE", path=f"/v1/snapshots/{uuid}"
    )
    audit.finish(line, 202, operation.uuid)
    told = {"snapshot": uuid, "name": one.snapshot.name, "operation": operation.uuid, "reason": one.reason}
    events.append("snapshot.expired", host=host, vm=vm, data=told)
    return operation


def _key(snapshot: UUID, number: int) -> str:
    return f"{IDENTITY} {snapshot} {number}"


def _tries(snapshot: UUID) -> list[WireOperation]:
    """Return our own deletions of a snapshot so far, oldest first."""
    found: list[WireOperation] = []
    for number in count(1):
        one = operations.by_key(_key(snapshot, number))
        if one is None:
            break
        found.append(one)
    return found


def _next(tries: Sequence[WireOperation]) -> datetime:
    """Return when to try again: ever later. What somebody cancelled comes back as late as what failed."""
    last, pause = tries[-1], _RETRY * float(2 ** min(len(tries) - 1, 10))
    return (last.ended_at or last.created_at) + min(pause, _RETRY_MAX)


def _may_be_tried(snapshot: UUID, now: datetime) -> bool:
    tries = _tries(snapshot)
    return not tries or not timedelta(0) < _next(tries) - now <= _RETRY_MAX  # later than that by a clock set back


def _told(one: Verdict, asked: Operation | None) -> RetentionVerdict:
    return RetentionVerdict(
        snapshot=one.snapshot.uuid,
        name=one.snapshot.name,
        vm=one.snapshot.vm,
        vm_name=one.snapshot.vm_name,
        created_at=one.snapshot.created_at,
        keep=one.keep,
        reason=one.reason,
        operation=None if asked is None else asked.uuid,
    )
