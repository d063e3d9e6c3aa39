"""Restore host files: put a VM's NVRAM or TPM state back where it was lost, or replace what is there on request.

Without a choice only what the host lacks is put back, from the newest copy. Whatever is replaced is kept: as backup
files whose owner is the operation itself.
"""

from functools import partial
from typing import Any
from uuid import UUID

from agent.web.errors import InvalidRequest
from agent.wire.base import Request
from agent.wire.host_file import FORMATS, HostFileType
from agent.wire.plan import Plan, planned
from agent.wire.transaction import HostFileRef, RestoreRequest, Transaction
from controller.errors import HostFileNotHeld
from controller.operations import leftovers, sync, transaction
from controller.operations.job import CONCLUDED, Job
from controller.store import backup_files, contents, host_files, operations, snapshots, vms

_CHOSEN = "chosen"
_KEPT = "kept"


class Wanted(Request, kw_only=True, frozen=True):
    """Which types (by default those that are lost), and whose bytes (by default the VM's newest copies)."""

    types: list[HostFileType] | None = None
    snapshot: UUID | None = None
    backup_file: UUID | None = None
    #: The VM came to its host by hand: of copies that may be older than it, it is only told.
    arrived: bool = False


async def run(job: Job) -> dict[str, Any]:
    """Choose, upload, commit; the result names what was restored, how old it is, and what keeps the replaced."""
    result = job.recalled(CONCLUDED, dict[str, Any])
    if result is None:
        await leftovers.settle(job)
        result = await _restore(job, job.wanted(Wanted))
    return {**result, "remarks": await sync.looked(job)}


async def plan(job: Job) -> Plan:
    """Plan it: choose, and ask the host what it would put where."""
    chosen = await _chosen(job, job.wanted(Wanted))
    if not chosen:
        return planned(job.row.operation.kind, [], [], notes=["the VM has all its host files"])
    request = _request(job, await job.db.run(_bytes_of, chosen), chosen)
    return await transaction.plan(job, job.id_for("transaction"), request)


async def _restore(job: Job, wanted: Wanted) -> dict[str, Any]:
    job.on_failure(job.id_for("transaction"), partial(job.owned, backup_files.remove_owner, "external", job.uuid))
    await job.step("check")
    chosen = job.recalled(_CHOSEN, dict[HostFileType, str])
    if chosen is None:
        chosen = await _chosen(job, wanted)
    result: dict[str, Any] = {"vm": str(job.vm), "restored": sorted(chosen), "sha256": chosen, "kept_as": None}
    if not chosen:
        return result
    data = await job.db.run(_bytes_of, chosen)
    await job.step("prepare", {_CHOSEN: chosen})
    view = await _prepare(job, data, chosen)
    async with transaction.leased(job, view.id):
        if view.state == "prepared":
            await job.step("upload host files")
            for kind, content in data.items():
                call = partial(job.client.upload, view.id, kind, content, chosen[kind])
                await transaction.reach(job, call)
            await _keep(job, view)
        view = await transaction.commit(job, view)
    result["kept_as"] = job.recalled(_KEPT, str)
    await job.db.run(operations.progress, job.uuid, memo={CONCLUDED: result})
    job.recorded(view.id, result)
    return result


async def _chosen(job: Job, wanted: Wanted) -> dict[HostFileType, str]:
    """Look at the host; return the hash of what is to be put in place for each type."""
    facts = await sync.refresh(job)
    present = await transaction.reach(job, partial(job.client.host_files, job.vm))
    lost = [one.type for one in present.missing]
    types = lost if wanted.types is None else wanted.types
    if unknown := [one for one in types if one not in sync.expected_of(facts)]:
        raise InvalidRequest(where="body.types", reason=f"the VM has no {' and no '.join(unknown)}")
    return await job.db.run(_of_arrival if wanted.arrived else _choose, job.vm, wanted, types)


def _bytes_of(chosen: dict[HostFileType, str]) -> dict[HostFileType, bytes]:
    return {kind: contents.get(sha256) for kind, sha256 in chosen.items()}


def _request(job: Job, data: dict[HostFileType, bytes], chosen: dict[HostFileType, str]) -> RestoreRequest:
    refs = [
        HostFileRef(type=kind, format=FORMATS[kind], size_bytes=len(content), sha256=chosen[kind])
        for kind, content in sorted(data.items())
    ]
    return RestoreRequest(vm=job.vm, host_files=refs, lease_s=job.patience.lease_s)


async def _prepare(job: Job, data: dict[HostFileType, bytes], chosen: dict[HostFileType, str]) -> Transaction:
    return await transaction.prepare(job, job.id_for("transaction"), _request(job, data, chosen))


async def _keep(job: Job, view: Transaction) -> None:
    """Keep what will be replaced, as backup files of this operation, before it is."""
    held = await transaction.fetch(job, view)
    if not held:
        return
    await job.db.run(backup_files.replace, "external", job.uuid, held)
    await job.step("commit", {_KEPT: str(job.uuid)})


def _of_arrival(vm: UUID, wanted: Wanted, types: list[HostFileType]) -> dict[HostFileType, str]:
    """Return what ``_choose`` does, unless one of the copies may be older than the VM: then say so, and nothing."""
    host = vms.host_of(vm)
    if any(one.type in types and one.dirty_since is not None for one in host_files.best(vm, host)):
        host_files.stale(vm, host, types)
        return {}
    return _choose(vm, wanted, types)


def _choose(vm: UUID, wanted: Wanted, types: list[HostFileType]) -> dict[HostFileType, str]:
    """Return the hash of what is to be put in place for each type. Raises HostFileNotHeld, BackupFileNotFound."""
    if wanted.backup_file is not None:
        one = backup_files.get(wanted.backup_file)
        return {one.type: one.sha256}
    if wanted.snapshot is not None:
        group = snapshots.group(wanted.snapshot)
        held = {one.type: one.sha256 for one in group.backups}
    else:
        held = {one.type: one.sha256 for one in backup_files.of_owner(vm)}  # of a clone that never started
        held |= {kept.type: kept.sha256 for kept in host_files.best(vm, vms.host_of(vm)) if kept.sha256 is not None}
    for kind in types:
        if kind not in held:
            raise HostFileNotHeld(type=kind, vm=vm)
    return {kind: held[kind] for kind in types}
