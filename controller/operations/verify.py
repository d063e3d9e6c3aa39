"""Verify: are a VM's snapshots still what the records say? Looks at everything and changes nothing.

It takes its turn in the VM's queue, since ``qemu-img check`` keeps writers away from the file it reads: a merge that
ran beside it would fail. What is wrong is a result, not a failure of the operation.
"""

from typing import Any
from uuid import UUID

from agent.client import AgentProblem, AgentUnreachable
from agent.web.errors import Error
from agent.wire.base import Request
from agent.wire.finding import Finding
from agent.wire.plan import Plan, PlannedStep, planned
from controller.doctor import contents, drift, frozen
from controller.errors import HostNotFound, SnapshotNotFound, VmConflict, VmNowhere
from controller.operations.job import Job
from controller.store import host_files, snapshots, vms
from controller.store.snapshots import Group, GroupVolume

#: A check reads an image's tables, a small part of it; this bounds it as if it read all, slowly.
_LEAST_S, _MOST_S, _BYTES_PER_S = 600.0, 86_400.0, 20 << 20
#: What one result holds: a VM with more findings than this has one cause, and a row stays readable.
FINDINGS_LIMIT = 1000


class Wanted(Request, kw_only=True, frozen=True):
    """One snapshot, or all of the operation's VM. Without ``deep`` images' headers are read and nothing more."""

    snapshot: UUID | None = None
    deep: bool = True


async def run(job: Job) -> dict[str, Any]:
    """Verify; the result counts what was looked at and lists the findings. Raises SnapshotNotFound."""
    wanted = job.wanted(Wanted)
    await job.step("read records")
    groups = await job.db.run(_groups, job.vm, wanted.snapshot)
    total = sum(volume.allocated_bytes for group in groups for volume in group.snapshot.volumes)
    found: list[Finding] = []
    done = volumes = 0
    for group in groups:
        await job.step(f"verify snapshot {group.snapshot.name}")
        found += await job.db.run(contents.check, group)
        sizes = {volume.target: volume.allocated_bytes for volume in group.snapshot.volumes}
        for volume in group.volumes:
            if not volume.merged:
                await job.progress(done, total)
                found += await _volume(job, group, volume, sizes.get(volume.target, 0), deep=wanted.deep)
                volumes += 1
            done += sizes.get(volume.target, 0)
    await job.progress(total, total)
    await job.step("compare host files")
    found += await _drift(job)
    return {"snapshots": len(groups), "volumes": volumes, "findings": found[:FINDINGS_LIMIT], "found": len(found)}


async def plan(job: Job) -> Plan:
    """Plan it: which files would be looked at."""
    groups = await job.db.run(_groups, job.vm, job.wanted(Wanted).snapshot)
    files = [(group, volume) for group in groups for volume in group.volumes if not volume.merged]
    steps = [
        PlannedStep(action="check-image", name=f"check {volume.target} of {group.snapshot.name}", path=volume.path)
        for group, volume in files
    ]
    return planned(job.row.operation.kind, steps, [])


def _groups(vm: UUID, snapshot: UUID | None) -> list[Group]:
    """Return what is to be verified: all that is whole. Raises SnapshotNotFound for the one that was asked for."""
    if snapshot is not None:
        return [snapshots.group(snapshot)]
    found = []
    for one in snapshots.tree(vm):
        if one.state != "failed":
            try:
                found.append(snapshots.group(one.uuid))
            except SnapshotNotFound:
                continue
    return found


async def _volume(job: Job, group: Group, volume: GroupVolume, size_bytes: int, *, deep: bool) -> list[Finding]:
    timeout_s = min(_MOST_S, max(_LEAST_S, size_bytes / _BYTES_PER_S))
    try:
        client = job.hosts.client(volume.host)
        (state,) = await client.check_images([volume.path], deep=deep, timeout_s=timeout_s)
    except (AgentUnreachable, AgentProblem, HostNotFound) as err:
        return [_not_checked(group, volume, err)]
    return frozen.judge(group.snapshot, volume, state)


def _not_checked(group: Group, volume: GroupVolume, err: Error) -> Finding:
    return Finding(
        code="not-checked",
        severity="error",
        what=f"{volume.path}, frozen for snapshot {group.snapshot.name}, could not be checked: {err.problem().detail}",
        repair="Mend what keeps the host from answering and verify again",
        host=volume.host,
        vm=group.snapshot.vm,
        snapshot=group.snapshot.uuid,
        path=volume.path,
    )


async def _drift(job: Job) -> list[Finding]:
    """Compare the host files of a VM that is off; where its host does not say, that is no finding of this kind."""
    try:
        host = await job.db.run(vms.host_of, job.vm)
        client = job.hosts.client(host)
        vm = await client.vm(job.vm)
        if vm.state != "shut-off":
            return []
        now = await client.host_files(job.vm)
    except (VmNowhere, VmConflict, HostNotFound, AgentUnreachable, AgentProblem):
        return []
    kept = {one.type: one for one in await job.db.run(host_files.of_vm, job.vm) if one.host == host}
    return drift.judge(job.vm, vm.name, host, now, kept)
