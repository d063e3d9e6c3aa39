"""Delete a snapshot: its frozen files are merged away, then its records and backup files go.

A disk that cannot be merged keeps the snapshot, with its backup files and the other disks' outcome, so that the
call can be repeated. This version merges where at most one file stands on each frozen file; a node that carries
more is refused and says so.
"""

from functools import partial
from typing import Any
from uuid import UUID

from agent.wire.base import Request
from agent.wire.transaction import DeleteRequest, DoomedVolume, Transaction, VolumeOutcome
from agent.wire.vm import HostVm
from controller.errors import DisksNotDeleted, FrozenFileHeld, SnapshotHasChildren, SnapshotNotFound
from controller.operations import ending, leftovers, sync, transaction
from controller.operations.ending import Ending
from controller.operations.job import Job
from controller.store import groups, snapshots
from controller.store.snapshots import Group, GroupVolume


class Wanted(Request, kw_only=True, frozen=True):
    """The snapshot to delete."""

    snapshot: UUID


async def run(job: Job) -> dict[str, Any]:
    """Delete it. Raises SnapshotNotFound where another call did so before, and what ``merge`` raises."""
    wanted = job.wanted(Wanted)
    await leftovers.settle(job)
    end = Ending(kind="delete", transaction=job.id_for("transaction"), snapshot=wanted.snapshot)
    await job.step("check")
    try:
        group = await job.db.run(snapshots.group, wanted.snapshot)
    except SnapshotNotFound:
        if not ending.endings(job.memo):
            raise
        # An earlier run of this job committed and removed the records, and died before it could say so.
        return {"snapshot": str(wanted.snapshot), "remarks": []}
    result = {"snapshot": str(wanted.snapshot), "moved_bytes": await merge(job, end, group)}
    job.recorded(end.transaction, result)
    return {**result, "remarks": await sync.refreshed(job)}


async def merge(job: Job, end: Ending, group: Group) -> int:
    """Merge the disks of a group away and remove its records; return the bytes that were moved.

    Raises DisksNotDeleted, SnapshotHasChildren, FrozenFileHeld.
    """
    doomed = job.recalled(f"doomed {end.snapshot}", list[DoomedVolume])
    if doomed is None:
        doomed = await doomed_volumes(job, group)
    job.on_failure(end.transaction, partial(job.db.run, ending.undone, end))
    # The children are remembered: after the merge the host shows others, and the request must stay the same.
    await job.step("prepare", {**end.promised(), f"doomed {end.snapshot}": doomed})
    await job.db.run(groups.begin, end.snapshot, "deleting")
    if not doomed:
        await job.db.run(ending.committed, end, _nothing_left(job, end))
        job.recorded(end.transaction)
        return 0
    request = DeleteRequest(vm=job.vm, snapshot=end.snapshot, volumes=doomed, lease_s=job.patience.lease_s)
    view = await transaction.prepare(job, end.transaction, request)
    async with transaction.leased(job, end.transaction):
        view = await transaction.commit(job, view)
    failed = await job.db.run(ending.committed, end, view)
    job.recorded(end.transaction)
    if failed:
        raise _not_deleted(end.snapshot, failed)
    return sum(one.moved_bytes for one in view.outcomes)


async def doomed_volumes(job: Job, group: Group) -> list[DoomedVolume]:
    """Return what is left to merge, each with the files that stand on it; raises as ``merge``."""
    facts = await sync.refresh(job)
    doomed = []
    for volume in group.volumes:
        if volume.merged:
            continue
        for other in await job.db.run(snapshots.holding, volume.host, volume.path):
            if other.snapshot != volume.snapshot:
                raise FrozenFileHeld(
                    target=volume.target, snapshot=volume.snapshot, path=volume.path, other=other.snapshot
                )
        children = await children_of(job, facts, volume)
        if len(children) > 1:
            raise SnapshotHasChildren(
                target=volume.target,
                snapshot=group.snapshot.uuid,
                count=len(children),
                children=", ".join(children),
            )
        doomed.append(DoomedVolume(target=volume.target, path=volume.path, children=children))
    return doomed


async def children_of(job: Job, facts: HostVm, volume: GroupVolume) -> list[str]:
    """Return the files that stand directly on a frozen file: other frozen ones, and the VM's present top."""
    frozen = await job.db.run(snapshots.files_on, volume.host, volume.path)
    tops = [disk.chain[0] for disk in facts.disks if disk.chain]
    standing = {one.path for one in frozen} | {top.path for top in tops if top.backing == volume.path}
    return sorted(standing)


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
