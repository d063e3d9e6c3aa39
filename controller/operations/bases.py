"""Hidden bases that have become superfluous are merged away in the operation that left them with one child.

It comes after the operation's purpose is fulfilled, so what fails is a remark; the VM's next deletion or revert
tries again.
"""

from itertools import count
from uuid import UUID

from agent.web.errors import Error
from agent.wire.transaction import DeleteRequest, DoomedVolume, VolumeOutcome
from controller.errors import OutcomeUnknown
from controller.operations import elsewhere, ending, sync, transaction
from controller.operations.ending import Ending
from controller.operations.job import Job
from controller.store import bases


async def merge(job: Job, remarks: list[str]) -> int:
    """Merge what can go, round by round, since one that goes may leave another with one child; return the bytes moved.

    The facts of the VM must be fresh. Each round is a transaction of its own.
    """
    moved_bytes = 0
    for number in count():
        try:
            moved = await _round(job, number)
            if moved is None:
                break
            moved_bytes += moved
            remarks += await sync.refreshed(job)
        except OutcomeUnknown as err:
            remarks.append(f"files kept out of sight: {err}")
            break
        except Error as err:
            if job.in_doubt:
                raise
            for undo in job.pending_undo():
                await undo()
            remarks.append(f"files kept out of sight were not merged away: {sync.reason_of(err)}")
            break
    return moved_bytes


async def _round(job: Job, number: int) -> int | None:
    """Merge at most one base of each disk; None where none is ripe. A round that an earlier run did is not repeated."""
    key = f"bases {number}"
    moved = job.recalled(f"{key} done", int)
    if moved is not None:
        return moved
    doomed = job.recalled(key, list[DoomedVolume])
    if doomed is None:
        doomed = await job.db.run(bases.ripe, job.vm, job.host, await elsewhere.shown(job.db, job.hosts, job.host))
    if not doomed:
        return None
    end = Ending(
        kind="merge",
        transaction=job.id_for(key),
        snapshot=_label(job),
        host=job.host,
        bases={volume.target: volume.path for volume in doomed},
    )
    await job.step("merge hidden bases", {**end.promised(), key: doomed})
    request = DeleteRequest(vm=job.vm, snapshot=end.snapshot, volumes=doomed, lease_s=job.patience.lease_s)
    view = await transaction.prepare(job, end.transaction, request)
    async with transaction.leased(job, end.transaction):
        view = await transaction.commit(job, view)
    failed = await job.db.run(ending.committed, end, view)
    job.recorded(end.transaction)
    moved = sum(outcome.moved_bytes for outcome in view.outcomes)
    if failed:
        raise _kept(failed)
    await job.step("merged hidden bases", {f"{key} done": moved})
    return moved


def _label(job: Job) -> UUID:
    """Stand in for the snapshot of a request: the bases' own are gone."""
    return job.id_for("bases")


def _kept(failed: list[VolumeOutcome]) -> Error:
    """Return what the host said of the disks that failed."""
    told = next((one.error for one in failed if one.error is not None), None)
    return Error() if told is None else transaction.HostRefused(told)
