"""Delete a snapshot, wherever it stands in the tree: its frozen files are merged away, then its records go.

A file on which several others stand, or another VM on whichever host, is kept as a hidden base; bases that are left
with one child by it are merged away in the same operation. A disk that cannot be merged keeps the snapshot, with its
backup files and the other disks' outcome, so that the call can be repeated. While the VM runs the deletion waits for
it to stop.
"""

from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID

import msgspec

from agent.client import AgentProblem
from agent.wire.base import Request
from agent.wire.plan import Plan, Would, planned
from agent.wire.transaction import DeleteRequest, DoomedVolume, Transaction, VolumeOutcome
from controller.errors import DisksNotDeleted, FrozenFileHeld, OperationCancelled, SnapshotProtected
from controller.operations import bases, elsewhere, ending, leftovers, sync, transaction
from controller.operations.ending import Ending
from controller.operations.job import CONCLUDED, Job, Parked
from controller.store import bases as store
from controller.store import deletions, expiry, groups, snapshots
from controller.store.deletions import Because
from controller.store.snapshots import Group, GroupVolume


class Wanted(Request, kw_only=True, frozen=True):
    """The snapshot to delete. ``because``: only if that is still a reason when its turn comes; None: by request."""

    snapshot: UUID
    because: Because | None = None


class Fate(Request, kw_only=True, frozen=True):
    """What becomes of the files of a snapshot: these are merged away, those targets stay as hidden bases."""

    doomed: list[DoomedVolume]
    kept: list[str]


#: Whether a deletion that nobody has asked for by hand is still to be.
_REASONS: Mapping[Because, Callable[[UUID], bool]] = {
    "retention": expiry.is_due,
    "superseded": deletions.is_superseded,
}
#: States in which a host may be asked; what it answers while the VM is not at rest.
_AT_REST = frozenset({"shut-off", "unknown"})
_NOT_AT_REST = frozenset({"domain-running", "domain-paused", "domain-starting"})


async def run(job: Job) -> dict[str, Any]:
    """Delete it. Raises SnapshotNotFound where another call did so before, Parked, and what ``merge`` raises."""
    wanted = job.wanted(Wanted)
    result = job.recalled(CONCLUDED, dict[str, Any])
    if result is None:
        await leftovers.settle(job)
        result = await _delete(job, wanted)
    remarks = await sync.refreshed(job)
    moved = await bases.merge(job, remarks)
    return {**result, "moved_bytes": result["moved_bytes"] + moved, "remarks": remarks}


async def plan(job: Job) -> Plan:
    """Plan it: what the host would merge, which files stay out of sight, and what goes from the records.

    A VM that is not at rest refuses nothing here: the deletion would wait for it.
    """
    wanted = job.wanted(Wanted)
    await sync.refresh(job)
    group = await job.db.run(snapshots.group, wanted.snapshot)
    await job.db.run(groups.begin, wanted.snapshot, "deleting")
    fate = await fate_of(job, group)
    told = planned(job.row.operation.kind, [], [])
    if fate.doomed:
        request = _request(job, wanted.snapshot, fate.doomed)
        told = await transaction.plan(job, job.id_for("transaction"), request)
    waits = [one for one in told.refusals if one.code in _NOT_AT_REST]
    refusals = [one for one in told.refusals if one.code not in _NOT_AT_REST]
    await job.db.run(groups.remove, wanted.snapshot, fate.kept)
    notes = [f"the frozen file of {target} would stay out of sight: others stand on it" for target in fate.kept]
    notes += ["it would wait until the VM stops"] if waits and not refusals else []
    would: Would = "be-refused" if refusals else "wait" if waits else "succeed"
    return msgspec.structs.replace(told, would=would, refusals=refusals, notes=[*told.notes, *notes])


async def _delete(job: Job, wanted: Wanted) -> dict[str, Any]:
    end = Ending(kind="delete", transaction=job.id_for("transaction"), snapshot=wanted.snapshot)
    await job.step("check")
    group = await job.db.run(snapshots.group, wanted.snapshot)
    if group.snapshot.protected:
        raise SnapshotProtected(snapshot=wanted.snapshot)
    if (
        wanted.because is not None
        and not job.sealed
        and not await job.db.run(_REASONS[wanted.because], wanted.snapshot)
    ):
        raise OperationCancelled(operation=job.uuid)
    if not job.is_sealed(end.transaction) and (await sync.refresh(job)).state not in _AT_REST:
        raise Parked
    job.stoppable = True
    try:
        return await merge(job, end, group, {"snapshot": str(wanted.snapshot)})
    except (AgentProblem, transaction.HostRefused) as err:
        if err.problem().code in _NOT_AT_REST:
            raise Parked from err
        if job.cancelled and err.problem().code == "aborted":
            raise OperationCancelled(operation=job.uuid) from err
        raise
    finally:
        job.stoppable = False


async def merge(job: Job, end: Ending, group: Group, result: dict[str, Any]) -> dict[str, Any]:
    """Merge the disks of a group away and remove its records; return the result with the bytes that were moved.

    A result that is not empty is the operation's own and is remembered with the end. Raises DisksNotDeleted,
    FrozenFileHeld.
    """
    key = f"fate {end.transaction}"
    fate = job.recalled(key, Fate) or await fate_of(job, group)
    end = msgspec.structs.replace(end, kept=fate.kept)
    # It is remembered: after the merge the host shows other children, and the request must stay the same.
    await ending.promise(job, end, {key: fate})
    await job.db.run(groups.begin, end.snapshot, "deleting")
    view = await _carried_out(job, end, fate.doomed) if fate.doomed else _nothing_left(job, end)
    told = {**result, "hidden": fate.kept, "moved_bytes": sum(one.moved_bytes for one in view.outcomes)}
    if result:
        failed = await job.db.run(ending.deleted, job.uuid, end, view, told)
    else:
        failed = await job.db.run(ending.committed, end, view)
    job.recorded(end.transaction, told if result and not failed else None)
    if failed:
        raise _not_deleted(end.snapshot, failed)
    return told


def _request(job: Job, snapshot: UUID, doomed: list[DoomedVolume]) -> DeleteRequest:
    return DeleteRequest(vm=job.vm, snapshot=snapshot, volumes=doomed, lease_s=job.patience.lease_s)


async def _carried_out(job: Job, end: Ending, doomed: list[DoomedVolume]) -> Transaction:
    """Let the host merge. One that was stopped has moved children, which is recorded before its end is raised."""
    request = _request(job, end.snapshot, doomed)
    try:
        view = await transaction.prepare(job, end.transaction, request)
        async with transaction.leased(job, end.transaction):
            return await transaction.commit(job, view)
    except transaction.HostRefused as err:
        if err.view is not None and err.view.outcomes:
            await job.db.run(ending.undone, end, err.view)
        raise


async def fate_of(job: Job, group: Group) -> Fate:
    """Say what becomes of each file that is left, by what stands on it. The VM's facts must be fresh.

    Raises FrozenFileHeld where another snapshot holds one of them. A hidden base that is the same file keeps it.
    """
    doomed, kept = [], []
    stands = await job.db.run(store.standing, job.host, await elsewhere.shown(job.db, job.hosts, job.host))
    for volume in group.volumes:
        if volume.merged:
            continue
        others = await _other_holders(job, volume)
        above = stands.get(volume.path, [])
        if not others and store.is_ripe(above, job.vm):
            paths = [child.path for child in above]
            doomed.append(DoomedVolume(target=volume.target, path=volume.path, children=paths))
        else:
            kept.append(volume.target)
    return Fate(doomed=doomed, kept=kept)


async def _other_holders(job: Job, volume: GroupVolume) -> list[GroupVolume]:
    """Return the records by which this file has to stay: hidden bases, and whatever is recorded of another host.

    Raises FrozenFileHeld where it is another snapshot's.
    """
    holding = await job.db.run(snapshots.holding, volume.path)
    others = [one for one in holding if one.snapshot != volume.snapshot]
    for other in others:
        if other.snapshot is not None and other.host == volume.host:
            facts = {"target": volume.target, "snapshot": volume.snapshot, "path": volume.path}
            raise FrozenFileHeld(**facts, other=other.snapshot)
    return others


def _nothing_left(job: Job, end: Ending) -> Transaction:
    """Stand in for the transaction of a snapshot whose every disk an earlier call has merged."""
    return Transaction(
        id=end.transaction,
        kind="delete",
        vm=job.vm,
        state="committed",
        started_at=job.row.operation.created_at,
    )


def _not_deleted(snapshot: UUID, failed: list[VolumeOutcome]) -> DisksNotDeleted:
    """Name the disks that failed; the others wait for them, since no frozen file goes before all can."""
    blamed = [one for one in failed if one.error is not None] or failed
    reasons = [f"{one.target}: {one.error.detail if one.error else 'the host did not say why'}" for one in blamed]
    return DisksNotDeleted(
        snapshot=snapshot, targets=", ".join(one.target for one in blamed), reason="; ".join(reasons)
    )
