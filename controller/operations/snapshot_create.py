"""Take a snapshot: all disks and host files of one VM at one moment.

The host freezes the disks and captures the host files; the controller fetches these and writes the whole group,
with its backup files, under the snapshot's own UUID as ``creating``; then the host commits, and the group becomes
``ready`` and what the VM stands on. A failure at any line before commit leaves the VM and the records as before.
"""

from typing import Any
from uuid import UUID

import msgspec

from agent.wire.base import Request
from agent.wire.host_file import HostFileType
from agent.wire.plan import Plan, PlannedStep
from agent.wire.snapshot import Completeness
from agent.wire.transaction import HostFilesPolicy, SnapshotRequest, Transaction
from controller.db import write
from controller.errors import HostFilesMissing
from controller.operations import ending, leftovers, sync, transaction
from controller.operations.ending import Ending
from controller.operations.job import CONCLUDED, Job
from controller.store import clones, expiry, host_files
from controller.store.clones import Seed
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
    """Take it; the result names the snapshot, the state of its host files, and what retention deletes."""
    result = job.recalled(CONCLUDED, dict[str, Any])
    if result is None:
        await leftovers.settle(job)
        result = await take(job, job.wanted(Wanted))
    remarks = await sync.refreshed(job)
    deletions = await job.db.run(expiry.expire_quietly, job.vm)
    return {**result, "deletions": [str(one) for one in deletions], "remarks": remarks}


async def plan(job: Job) -> Plan:
    """Plan it: what the host would do, and the record of it."""
    return await foresee(job, job.wanted(Wanted))


async def foresee(job: Job, wanted: Wanted) -> Plan:
    """Plan a snapshot in a job that may be of another kind."""
    end = Ending(kind="snapshot", transaction=job.id_for("transaction"), snapshot=wanted.uuid or job.id_for("snapshot"))
    told = await transaction.plan(job, end.transaction, _request(job, wanted, end, await _seed(job, wanted)))
    name = wanted.name or "of this moment"
    record = PlannedStep(action="add", name=f"add snapshot {name} with the host files that were captured")
    return msgspec.structs.replace(told, steps=[*told.steps, record])


async def take(job: Job, wanted: Wanted, memo: str = CONCLUDED) -> dict[str, Any]:
    """Take a snapshot in a job that has settled what was left open; remembered as ``ending.concluded`` says."""
    snapshot = wanted.uuid or job.id_for("snapshot")
    end = Ending(kind="snapshot", transaction=job.id_for("transaction"), snapshot=snapshot)
    seed = await _seed(job, wanted)
    await ending.promise(job, end, {"seed": seed})
    view = await transaction.prepare(job, end.transaction, _request(job, wanted, end, seed))
    filled, seeded = _fill(job, wanted, seed, view)
    async with transaction.leased(job, view.id):
        if not job.recalled("recorded", bool):
            held = {**await transaction.fetch(job, view), **seeded}
            await job.db.run(ending.recorded, job.uuid, _group(job, wanted, end, filled, held))
        view = await transaction.commit(job, view)
    state, reason = completeness(filled, wanted.host_files)
    result = {"snapshot": str(snapshot), "host_files": state, "reason": reason, "excluded": view.excluded}
    await job.db.run(_conclude, job, end, view, result, memo)
    job.recorded(end.transaction, result if memo == CONCLUDED else None)
    return result


async def _seed(job: Job, wanted: Wanted) -> Seed | None:
    """Return what a clone that never started was given; remembered, so that a later run asks the host the same."""
    if "seed" in job.memo:
        return job.recalled("seed", Seed | None)  # type: ignore[arg-type]  # a union is no class
    return await job.db.run(clones.seed_of, job.vm) if wanted.host_files != "none" else None


def _fill(
    job: Job, wanted: Wanted, seed: Seed | None, view: Transaction
) -> tuple[Transaction, dict[HostFileType, Held]]:
    """Put the seed in for what a clone that never started lacks; what comes to be at its start is not missed.

    Only a file that is not there is filled in: one that is damaged says that something is wrong. Raises
    HostFilesMissing where a required one is still missing.
    """
    if seed is None:
        return view, {}
    absent = [one.type for one in view.missing if one.code == "host-file-missing"]
    seeded: dict[HostFileType, Held] = {one: seed.held[one] for one in absent if one in seed.held}
    blank = [one for one in absent if one not in seeded and one in seed.blank]
    missing = [one for one in view.missing if one.type not in {*seeded, *blank}]
    if missing and wanted.host_files == "required":
        reason = "; ".join(one.reason for one in missing)
        raise HostFilesMissing(vm=job.vm, types=" and ".join(one.type for one in missing), reason=reason)
    expected = [one for one in view.expected if one not in blank]
    return msgspec.structs.replace(view, missing=missing, expected=expected), seeded


def _request(job: Job, wanted: Wanted, end: Ending, seed: Seed | None) -> SnapshotRequest:
    return SnapshotRequest(
        vm=job.vm,
        snapshot=end.snapshot,
        host_files=wanted.host_files if seed is None else "best-effort",
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


def _conclude(job: Job, end: Ending, view: Transaction, result: dict[str, Any], memo: str) -> None:
    """Make the group whole, and note that its host files are also the newest copies of the VM's.

    They were read after the operation was asked for, so a start that was noted later keeps its mark.
    """
    with write():
        ending.concluded(job.uuid, end, view, result, memo)
        for file in view.host_files:
            held: Held = (file.sha256, file.format)
            began_at = job.row.operation.created_at
            host_files.record_sync(view.vm, job.host, file.type, held, file.path, began_at)
