"""Take a snapshot: all disks and host files of one VM at one moment.

The host freezes the disks and captures the host files; the controller fetches these and writes the whole group,
with its backup files, under the snapshot's own UUID as ``creating``; then the host commits, and the group becomes
``ready`` and what the VM stands on. A failure at any line before commit leaves the VM and the records as before.
"""

from functools import partial
from typing import Any
from uuid import UUID

from agent.wire.base import Request
from agent.wire.host_file import HostFileType
from agent.wire.snapshot import Completeness
from agent.wire.transaction import HostFilesPolicy, SnapshotRequest, Transaction
from controller.db import write
from controller.operations import ending, leftovers, sync, transaction
from controller.operations.ending import Ending
from controller.operations.job import CONCLUDED, Job
from controller.store import host_files
from controller.store.contents import Held
from controller.store.groups import NewGroup


class Wanted(Request, kw_only=True, frozen=True):
    """What the caller asked for. ``uuid`` and ``name`` default to the operation's."""

    name: str | None = None
    description: str = ""
    labels: dict[str, str] = {}
    host_files: HostFilesPolicy = "required"
    exclude: list[str] = []
    uuid: UUID | None = None


async def run(job: Job) -> dict[str, Any]:
    """Take it; the result names the snapshot and says whether its host files are complete."""
    result = job.recalled(CONCLUDED, dict[str, Any])
    if result is None:
        await leftovers.settle(job)
        result = await _take(job, job.wanted(Wanted))
    return {**result, "remarks": await sync.refreshed(job)}


async def _take(job: Job, wanted: Wanted) -> dict[str, Any]:
    snapshot = wanted.uuid or job.id_for("snapshot")
    end = Ending(kind="snapshot", transaction=job.id_for("transaction"), snapshot=snapshot)
    job.on_failure(end.transaction, partial(job.owned, ending.undone, end))
    await job.step("prepare", end.promised())
    view = await transaction.prepare(job, end.transaction, _request(job, wanted, end))
    async with transaction.leased(job, view.id):
        if not job.recalled("recorded", bool):
            held = await transaction.fetch(job, view)
            await job.db.run(ending.recorded, job.uuid, _group(job, wanted, end, view, held))
        view = await transaction.commit(job, view)
    state, reason = completeness(view, wanted.host_files)
    result = {"snapshot": str(snapshot), "host_files": state, "reason": reason, "excluded": view.excluded}
    await job.db.run(_conclude, job, end, view, result)
    job.recorded(end.transaction, result)
    return result


def _request(job: Job, wanted: Wanted, end: Ending) -> SnapshotRequest:
    return SnapshotRequest(
        vm=job.vm,
        snapshot=end.snapshot,
        host_files=wanted.host_files,
        exclude=wanted.exclude,
        lease_s=job.patience.lease_s,
    )


def _group(job: Job, wanted: Wanted, end: Ending, view: Transaction, held: dict[HostFileType, Held]) -> NewGroup:
    state, reason = completeness(view, wanted.host_files)
    return NewGroup(
        uuid=end.snapshot,
        vm=job.vm,
        host=job.host,
        name=wanted.name or f"{job.row.operation.created_at:%Y-%m-%dT%H:%M:%SZ}",
        transaction=end.transaction,
        volumes=view.volumes,
        host_files_state=state,
        host_files=held,
        expected=view.expected,
        missing=[one.type for one in view.missing],
        reason=reason,
        description=wanted.description,
        labels=wanted.labels,
        excluded=view.excluded,
        domain_xml=view.domain_xml,
        firmware=view.firmware,
        tpm_secret=view.tpm_secret,
    )


def completeness(view: Transaction, policy: HostFilesPolicy) -> tuple[Completeness, str | None]:
    """Say whether what was captured is what the VM has: nothing to capture is complete, nothing wanted is none."""
    if policy == "none":
        return "none", "host files were not asked for"
    if not view.missing:
        return "complete", None
    return "partial", "; ".join(f"{one.type}: {one.reason}" for one in view.missing)


def _conclude(job: Job, end: Ending, view: Transaction, result: dict[str, Any]) -> None:
    """Make the group whole, and note that its host files are also the newest copies of the VM's.

    They were read after the operation was asked for, so a start that was noted later keeps its mark.
    """
    with write():
        ending.concluded(job.uuid, end, view, result)
        for file in view.host_files:
            held: Held = (file.sha256, file.format)
            began_at = job.row.operation.created_at
            host_files.record_sync(view.vm, job.host, file.type, held, file.path, began_at)
