"""Clone: make new VMs of a snapshot, one transaction each.

Each is made whole or not at all; one that fails keeps no other from being made, and the answer says which. What was
made before with the same names is found and told again. A clone's host files stay with the controller as its seed:
until its first start they are what a snapshot of it holds.
"""

from functools import partial
from typing import Any
from uuid import UUID

import msgspec

from agent.web.errors import Error
from agent.wire.base import Request, utc_now
from agent.wire.clone import CloneMode, TpmChoice
from agent.wire.host_file import HostFileType
from agent.wire.plan import Plan, PlannedStep, planned
from agent.wire.problem import Problem
from agent.wire.transaction import CloneRequest, FrozenVolume, HostFileRef, Transaction
from agent.wire.vm import HostVm
from controller.errors import ClonesFailed, OperationCancelled, OutcomeUnknown
from controller.operations import leftovers, snapshot_create, sync, transaction
from controller.operations.job import Job
from controller.store import backup_files, clones, snapshots
from controller.store.clones import NewClone
from controller.store.snapshots import Group

_TAKEN = "taken"


class Target(Request, kw_only=True, frozen=True):
    """One VM to make. ``uuid`` defaults to a new one."""

    name: str
    uuid: UUID | None = None


class WantedOfVm(Request, kw_only=True, frozen=True):
    """What is to be made of the operation's VM as it stands."""

    targets: list[Target]
    mode: CloneMode = "linked"
    tpm: TpmChoice = "reset"


class Wanted(Request, kw_only=True, frozen=True):
    """The snapshot, and what is to be made of it."""

    snapshot: UUID
    targets: list[Target]
    mode: CloneMode = "linked"
    tpm: TpmChoice = "reset"


async def run(job: Job) -> dict[str, Any]:
    """Make the clones; raises a single one's own error, ClonesFailed where some of several could not be made."""
    wanted = job.wanted(Wanted)
    await leftovers.settle(job)
    return await make(job, wanted)


async def run_of_vm(job: Job) -> dict[str, Any]:
    """Take an ordinary snapshot of the VM, which stays and is named in the result, and make the clones of it.

    Where all clones were made so before they are told again, and no snapshot is taken.
    """
    wanted = job.wanted(WantedOfVm)
    await leftovers.settle(job)
    taken = job.recalled(_TAKEN, dict[str, Any])
    if taken is None:
        known = await job.db.run(
            clones.made_of_vm, job.vm, [one.name for one in wanted.targets], wanted.mode, wanted.tpm
        )
        if known is not None:
            return _told(Wanted(snapshot=known[0], targets=[], mode=wanted.mode, tpm=wanted.tpm), known[1], [])
        names = ", ".join(one.name for one in wanted.targets)
        description = f"taken to clone {names}"[:1000]
        taken = await snapshot_create.take(job, snapshot_create.Wanted(description=description), memo=_TAKEN)
    else:
        job.recorded(job.id_for("transaction"))
    snapshot = UUID(taken["snapshot"])
    return await make(job, Wanted(snapshot=snapshot, targets=wanted.targets, mode=wanted.mode, tpm=wanted.tpm))


async def plan(job: Job) -> Plan:
    """Plan it: each clone as its host would make it, and those that are there already as notes."""
    wanted = job.wanted(Wanted)
    group = await job.db.run(snapshots.whole, wanted.snapshot)
    steps: list[PlannedStep] = []
    refusals: list[Problem] = []
    notes: list[str] = []
    bytes_to_move = 0
    for target in wanted.targets:
        known = await job.db.run(clones.made_before, wanted.snapshot, target.name, wanted.mode, wanted.tpm, target.uuid)
        if known is not None:
            notes.append(f"{target.name} was made so already and is told again")
            continue
        request = build_request(job, wanted, group, target, target.uuid or job.id_for(f"vm {target.name}"))
        told = await transaction.plan(job, _transaction(job, target), request)
        steps += [*told.steps, *([] if told.refusals else [PlannedStep(action="add", name=f"add VM {target.name}")])]
        refusals += told.refusals
        notes += told.notes
        bytes_to_move += told.bytes_to_move
    return planned(job.row.operation.kind, steps, refusals, notes=notes, bytes_to_move=bytes_to_move)


async def plan_of_vm(job: Job) -> Plan:
    """Plan it: the snapshot that is taken first. Its files are not there yet, so the clones are only named."""
    wanted = job.wanted(WantedOfVm)
    names = [one.name for one in wanted.targets]
    known = await job.db.run(clones.made_of_vm, job.vm, names, wanted.mode, wanted.tpm)
    if known is not None:
        return planned(job.row.operation.kind, [], [], notes=["all were made so already and are told again"])
    told = await snapshot_create.foresee(job, snapshot_create.Wanted())
    made = [PlannedStep(action="clone", name=f"clone {name} of that snapshot") for name in names]
    return msgspec.structs.replace(told, steps=[*told.steps, *made])


async def make(job: Job, wanted: Wanted) -> dict[str, Any]:
    """Make the clones of a job that has settled what was left open."""
    group = await job.db.run(snapshots.whole, wanted.snapshot)
    made: list[dict[str, Any]] = []
    failed: list[tuple[Target, Error]] = []
    remarks: list[str] = []
    for target in wanted.targets:
        try:
            made.append(await _one(job, wanted, group, target, remarks))
        except (OutcomeUnknown, OperationCancelled):
            raise
        except Error as err:
            if job.doubts(_transaction(job, target)):
                raise
            for undo in job.pending_undo():
                await undo()
            failed.append((target, err))
    if failed:
        raise _failure(wanted, made, failed)
    return _told(wanted, made, remarks)


def _told(wanted: Wanted, made: list[dict[str, Any]], remarks: list[str]) -> dict[str, Any]:
    return {
        "snapshot": str(wanted.snapshot),
        "mode": wanted.mode,
        "tpm": wanted.tpm,
        "clones": made,
        "remarks": remarks,
    }


def _failure(wanted: Wanted, made: list[dict[str, Any]], failed: list[tuple[Target, Error]]) -> Error:
    if len(wanted.targets) == 1:
        return failed[0][1]
    told = [(target.name, err.problem()) for target, err in failed]
    return ClonesFailed(
        count=len(failed),
        total=len(wanted.targets),
        reasons="; ".join(f"{name}: {problem.detail}" for name, problem in told),
        clones=made,
        failed=[{"name": name, "code": problem.code, "detail": problem.detail} for name, problem in told],
    )


def _transaction(job: Job, target: Target) -> UUID:
    return job.id_for(f"clone {target.name}")


async def _one(job: Job, wanted: Wanted, group: Group, target: Target, remarks: list[str]) -> dict[str, Any]:
    """Make one, or find it made; return what is told of it."""
    key, vm = _transaction(job, target), target.uuid or job.id_for(f"vm {target.name}")
    known = await job.db.run(clones.made_by, vm, key)
    if known is not None:
        job.recorded(key)
        return known
    if not job.is_sealed(key):
        same = partial(clones.made_before, wanted.snapshot, target.name, wanted.mode, wanted.tpm, target.uuid)
        known = await job.db.run(same)
        if known is not None:
            return known
    job.on_failure(key, partial(job.owned, clones.undone, vm, key))
    await job.step(f"clone {target.name}")
    request = build_request(job, wanted, group, target, vm)
    view = await transaction.prepare(job, key, request)
    result = _result(wanted, target, view)
    async with transaction.leased(job, key):
        if view.state == "prepared":
            await _upload(job, group, request, view)
            await job.db.run(clones.begin, _record(job, wanted, group, request, view, result))
        await transaction.commit(job, view)
    facts = await _look(job, vm, remarks)
    await job.db.run(clones.ready, vm, key, facts, utc_now())
    job.recorded(key)
    return result


def build_request(job: Job, wanted: Wanted, group: Group, target: Target, vm: UUID) -> CloneRequest:
    """Say what is made: the NVRAM always goes along, the TPM where it is to be copied."""
    types: tuple[HostFileType, ...] = ("nvram", "tpm") if wanted.tpm == "copy" else ("nvram",)
    return CloneRequest(
        vm=vm,
        name=target.name,
        source=group.snapshot.vm,
        snapshot=wanted.snapshot,
        mode=wanted.mode,
        tpm=wanted.tpm,
        domain_xml=group.domain_xml,
        volumes=[FrozenVolume(target=one.target, path=one.path, fingerprint=one.fingerprint) for one in group.volumes],
        host_files=[
            HostFileRef(type=one.type, format=one.format, size_bytes=one.size_bytes, sha256=one.sha256)
            for one in group.backups
            if one.type in types
        ],
        lease_s=job.patience.lease_s,
    )


async def _upload(job: Job, group: Group, request: CloneRequest, view: Transaction) -> None:
    """Send the host files that the host said it wants: a domain without TPM has no use for one."""
    held = {one.type: one.uuid for one in group.backups}
    for ref in request.host_files:
        if ref.type in view.expected:
            data = await job.db.run(backup_files.data, held[ref.type])
            await transaction.reach(job, partial(job.client.upload, view.id, ref.type, data, ref.sha256))


def _result(wanted: Wanted, target: Target, view: Transaction) -> dict[str, Any]:
    return {
        "vm": str(view.vm),
        "name": target.name,
        "mode": wanted.mode,
        "tpm": wanted.tpm,
        "host_files": list(view.expected),
        "disks": [
            {
                "target": one.target,
                "path": one.overlay,
                "stands_on": one.path if wanted.mode == "linked" else None,
            }
            for one in view.volumes
        ],
        "left_out": list(view.excluded),
    }


def _record(  # noqa: PLR0917 - what a clone is recorded by
    job: Job, wanted: Wanted, group: Group, request: CloneRequest, view: Transaction, result: dict[str, Any]
) -> NewClone:
    return NewClone(
        vm=request.vm,
        name=request.name,
        source=group.snapshot.vm,
        snapshot=wanted.snapshot,
        host=job.host,
        mode=wanted.mode,
        tpm=wanted.tpm,
        operation=job.uuid,
        transaction=view.id,
        seeds={ref.type: (ref.sha256, ref.format) for ref in request.host_files if ref.type in view.expected},
        result=result,
    )


async def _look(job: Job, vm: UUID, remarks: list[str]) -> HostVm | None:
    """Ask the host for the facts of a clone that stands; what fails is told as a remark and fails nothing."""
    try:
        return await transaction.reach(job, partial(job.client.vm, vm))
    except Error as err:
        remarks.append(f"clone {vm} could not be looked at: {sync.reason_of(err)}")
        return None
