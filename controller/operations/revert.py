"""Revert: put a VM back on a snapshot, disks and host files together.

The present state is kept first as an automatic undo point, unless the caller says otherwise; of these only the
newest stays: an older one goes at once where nothing stands on it, else by a deletion that is queued. With ``volumes``
only those disks go back: the host files are left alone, and the VM still stands on the snapshot that it stood on, since
only part of it moved.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any
from uuid import UUID

import msgspec

from agent.web.errors import Error, InvalidRequest
from agent.wire.base import Request
from agent.wire.host_file import HOST_FILE_TYPES, HostFileType
from agent.wire.plan import Plan, PlannedStep
from agent.wire.transaction import FrozenVolume, HostFileRef, RevertRequest, Transaction
from controller.db import write
from controller.errors import OutcomeUnknown
from controller.operations import bases as merging
from controller.operations import elsewhere, ending, leftovers, snapshot_delete, sync, transaction
from controller.operations.ending import Ending
from controller.operations.job import CONCLUDED, Job
from controller.operations.snapshot_create import completeness
from controller.store import backup_files, bases, deletions, groups, snapshots, vms
from controller.store.contents import Held
from controller.store.groups import NewGroup
from controller.store.snapshots import Group

_HELD = "held"


class Wanted(Request, kw_only=True, frozen=True):
    """The snapshot to go back to, and whether the present state is kept. ``volumes``: these disks alone."""

    snapshot: UUID
    undo_point: bool = True
    volumes: list[str] | None = None


async def run(job: Job) -> dict[str, Any]:
    """Revert; the result names the undo point, the host files that were kept, and the undo points that went or go."""
    wanted = job.wanted(Wanted)
    result = job.recalled(CONCLUDED, dict[str, Any])
    if result is None:
        await leftovers.settle(job)
        result = await _go_back(job, wanted)
    remarks = await (sync.refreshed(job) if wanted.volumes is not None else sync.looked(job))
    retired, left = await _retire(job, UUID(result["undo_point"]), remarks) if result["undo_point"] else ([], [])
    moved = await merging.merge(job, remarks)
    asked = await job.db.run(_ask_for, job, left)
    told = {"retired_undo_points": retired, "deletions": [str(one) for one in asked], "moved_bytes": moved}
    return {**result, **told, "remarks": remarks}


async def plan(job: Job) -> Plan:
    """Plan it: what the host would do, and the record of the undo point."""
    wanted = job.wanted(Wanted)
    group = await job.db.run(snapshots.group, wanted.snapshot)
    if wanted.volumes is None:
        await job.db.run(_bytes_of, group)
    end = _ending(job, wanted)
    request = build_request(job, wanted, group, end, await _held(job, wanted))
    await job.db.run(groups.begin, wanted.snapshot, "reverting")
    told = await transaction.plan(job, end.transaction, request)
    if end.undo is None:
        return told
    record = PlannedStep(action="add", name="add an undo point: the state before")
    older = await job.db.run(snapshots.older_automatic, job.vm, end.undo)
    notes = [f"undo point {uuid} would go afterwards" for uuid in older]
    return msgspec.structs.replace(told, steps=[*told.steps, record], notes=[*told.notes, *notes])


async def _go_back(job: Job, wanted: Wanted) -> dict[str, Any]:
    await job.step("check")
    group = await job.db.run(snapshots.group, wanted.snapshot)
    uploads = {} if wanted.volumes is not None else await job.db.run(_bytes_of, group)
    end = _ending(job, wanted)
    request = build_request(job, wanted, group, end, await _held(job, wanted))
    await ending.promise(job, end, {_HELD: request.held})
    await job.db.run(groups.begin, wanted.snapshot, "reverting")
    view = await transaction.prepare(job, end.transaction, request)
    async with transaction.leased(job, view.id):
        if view.state == "prepared":
            await job.step("upload host files")
            await _upload(job, request, uploads)
            await _keep_present(job, wanted, group, end, view)
        view = await transaction.commit(job, view)
    had = sync.expected_of(await job.db.run(vms.definition, job.vm, job.host))
    result = _result(wanted, group, end, view, had)
    await job.db.run(ending.concluded, job.uuid, end, view, result)
    job.recorded(end.transaction, result)
    return result


def _ending(job: Job, wanted: Wanted) -> Ending:
    return Ending(
        kind="revert",
        transaction=job.id_for("transaction"),
        snapshot=wanted.snapshot,
        undo=job.id_for("undo") if wanted.undo_point else None,
        moves_current=wanted.volumes is None,
    )


def _bytes_of(group: Group) -> dict[HostFileType, bytes]:
    """Return the snapshot's host files, each checked against its hash, before anything is begun."""
    return {one.type: backup_files.data(one.uuid) for one in group.backups}


async def _held(job: Job, wanted: Wanted) -> list[str]:
    """Return the files that must stay where the present state does not; the same at every run of the job."""
    if wanted.undo_point:
        return []
    known = job.recalled(_HELD, list[str])
    return await _needed(job) if known is None else known


async def _needed(job: Job) -> list[str]:
    """Return what snapshots hold, and those of the VM's files on which a VM of whichever host stands."""
    standing = await job.db.run(bases.standing, job.host, await elsewhere.shown(job.db, job.hosts, job.host))
    facts = await job.db.run(vms.definition, job.vm, job.host)
    files = {image.path for disk in facts.disks for image in disk.chain}
    return sorted(
        {*await job.db.run(snapshots.held, job.vm), *(path for path in files if _by_others(job, standing, path))}
    )


def _by_others(job: Job, standing: Mapping[str, list[bases.Child]], path: str) -> bool:
    return any((child.vm, child.host) != (job.vm, job.host) for child in standing.get(path, []))


def build_request(job: Job, wanted: Wanted, group: Group, end: Ending, held: list[str]) -> RevertRequest:
    """Say what goes back. Raises InvalidRequest, SnapshotPartlyDeleted."""
    alone = wanted.volumes is not None
    targets = {volume.target for volume in group.volumes} if wanted.volumes is None else set(wanted.volumes)
    volumes = [volume for volume in group.volumes if volume.target in targets]
    if unknown := targets - {volume.target for volume in volumes}:
        raise InvalidRequest(where="body.volumes", reason=f"the snapshot has no disk {', '.join(sorted(unknown))}")
    group.require_whole(targets)
    refs = [
        HostFileRef(type=one.type, format=one.format, size_bytes=one.size_bytes, sha256=one.sha256)
        for one in group.backups
    ]
    return RevertRequest(
        vm=job.vm,
        snapshot=wanted.snapshot,
        volumes=[FrozenVolume(target=one.target, path=one.path, fingerprint=one.fingerprint) for one in volumes],
        host_files=[] if alone else refs,
        remove=[] if alone else _absent(group),
        excluded=group.snapshot.excluded,
        alone=alone,
        undo=end.undo,
        held=held,
        lease_s=job.patience.lease_s,
    )


def _absent(group: Group) -> list[HostFileType]:
    """Return the types that the VM certainly did not have: only a complete snapshot can say so."""
    if group.snapshot.host_files.state != "complete":
        return []
    return [one for one in HOST_FILE_TYPES if one not in group.snapshot.host_files.expected]


async def _upload(job: Job, request: RevertRequest, uploads: dict[HostFileType, bytes]) -> None:
    for ref in request.host_files:
        call = partial(job.client.upload, job.id_for("transaction"), ref.type, uploads[ref.type], ref.sha256)
        await transaction.reach(job, call)


async def _keep_present(job: Job, wanted: Wanted, group: Group, end: Ending, view: Transaction) -> None:
    """Write the undo point as ``creating``: the frozen present disks, and the present host files."""
    if end.undo is None or job.recalled("recorded", bool):
        return
    await job.step("record the undo point")
    held = {} if wanted.volumes is not None else await transaction.fetch(job, view)
    facts = await job.db.run(vms.definition, job.vm, job.host)
    covered = {volume.target for volume in view.volumes}
    others = [disk.target for disk in facts.disks if disk.target not in covered]
    new = _undo_group(job, wanted, view, held, others)
    new = replace(new, description=f"the state before the revert to {group.snapshot.name}")
    await job.db.run(ending.recorded, job.uuid, new)


def _undo_group(
    job: Job, wanted: Wanted, view: Transaction, held: dict[HostFileType, Held], others: list[str]
) -> NewGroup:
    state, reason = completeness(view, "best-effort")
    if wanted.volumes is not None:
        state, reason = "none", f"only {', '.join(wanted.volumes)} was reverted; the host files were left alone"
    return NewGroup(
        uuid=job.id_for("undo"),
        vm=job.vm,
        host=job.host,
        name=f"undo-{job.row.operation.created_at:%Y-%m-%dT%H:%M:%SZ}",
        transaction=view.id,
        volumes=view.volumes,
        host_files_state=state,
        host_files=held,
        expected=[] if wanted.volumes is not None else view.expected,
        missing=[] if wanted.volumes is not None else [one.type for one in view.missing],
        reason=reason,
        automatic=True,
        excluded=sorted({*view.excluded, *others}),
        domain_xml=view.domain_xml,
        firmware=view.firmware,
        tpm_secret=view.tpm_secret,
    )


def _result(wanted: Wanted, group: Group, end: Ending, view: Transaction, had: list[HostFileType]) -> dict[str, Any]:
    alone = wanted.volumes is not None
    return {
        "snapshot": str(wanted.snapshot),
        "undo_point": None if end.undo is None else str(end.undo),
        "volumes": wanted.volumes if alone else [volume.target for volume in group.volumes],
        "host_files": "left-alone" if alone else "restored" if group.backups else "none-held",
        "restored": [] if alone else [one.type for one in group.backups],
        "removed": [] if alone else [one for one in _absent(group) if one in had],
        "kept": view.kept,
        "current": not alone,
    }


async def _retire(job: Job, newest: UUID, remarks: list[str]) -> tuple[list[str], list[UUID]]:
    """Delete the older automatic undo points on which nothing stands; return those that went, and those stood on.

    What fails is a remark and fails nothing. A protected one is left out of both.
    """
    gone: list[str] = []
    left: list[UUID] = []
    for uuid in await job.db.run(snapshots.older_automatic, job.vm, newest):
        try:
            group = await job.db.run(snapshots.group, uuid)
            if group.snapshot.protected:
                continue
            if await _stood_on(job, group):
                left.append(uuid)
                continue
            end = Ending(kind="delete", transaction=job.id_for(f"retire {uuid}"), snapshot=uuid)
            await snapshot_delete.merge(job, end, group, {})
            gone.append(str(uuid))
        except OutcomeUnknown as err:
            remarks.append(f"undo point {uuid}: {err}")
        except Error as err:
            if job.in_doubt:
                raise
            for undo in job.pending_undo():
                await undo()
            remarks.append(f"undo point {uuid} was kept: {sync.reason_of(err)}")
    return gone, left


async def _stood_on(job: Job, group: Group) -> bool:
    """Return whether anything stands on the undo point: its data are moved by an operation of their own."""
    left = [volume for volume in group.volumes if not volume.merged]
    return bool(await job.db.run(bases.occupied, [(volume.host, volume.path) for volume in left]))


def _ask_for(job: Job, left: list[UUID]) -> list[UUID]:
    with write():
        return deletions.retire(job.vm, job.host, left, job.uuid)
