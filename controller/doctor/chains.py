"""Where VMs' disks stand, against where the records say. Pure.

An administrator's own overlay (``virsh snapshot-create-as``), a ``blockcommit`` or a disk that was moved is named here
and never touched: his files are his, and the next snapshot takes in what it finds.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from agent.wire.finding import Finding
from agent.wire.vm import Disk, HostVm
from controller.doctor.look import Look
from controller.store.snapshots import GroupVolume
from controller.store.survey import Records


def judge(look: Look, records: Records) -> list[Finding]:
    """Return the disks of one host's VMs that do not stand where the records say. VMs at work are left out."""
    at_work = records.busy | {one.vm for one in look.open_transactions().values()}
    settled = records.volumes_of(look.host)
    # Whatever is recorded on this host: a chain may pass through files of snapshots that other work is about.
    frozen = {one.path: one for one in records.volumes if one.host == look.host and not one.merged}
    found: list[Finding] = []
    for vm in look.vms:
        mine = {one.target for one in settled if one.vm == vm.uuid}
        for disk in vm.disks:
            if vm.uuid not in at_work and disk.chain:
                found += _disk(look, records, vm, disk, frozen, has_snapshots=disk.target in mine)
    return found


def _disk(
    look: Look, records: Records, vm: HostVm, disk: Disk, frozen: Mapping[str, GroupVolume], *, has_snapshots: bool
) -> Iterator[Finding]:
    paths = [image.path for image in disk.chain]
    recorded = [number for number, path in enumerate(paths) if path in frozen]
    about: dict[str, Any] = {"host": look.host, "vm": vm.uuid, "path": paths[0]}
    told = f"disk {disk.target} of VM {vm.name}"
    if 0 in recorded:
        of = frozen[paths[0]].snapshot
        what = f"{told} is {paths[0]} itself, which is frozen for snapshot {of}: a start would write into it"
        repair = f"Do not start the VM; revert to the snapshot, which puts an overlay on it: snapshot revert {of}"
        if of is None:
            what = f"{told} is {paths[0]} itself, which is kept for what stands on it: a start would write into it"
            repair = "Do not start the VM; revert it to one of its snapshots, which puts an overlay there"
        yield Finding(code="frozen-file-in-use", severity="error", what=what, repair=repair, **about)
    elif recorded and recorded[0] > 1:
        between = ", ".join(paths[: recorded[0]])
        what = f"{told} stands on its snapshots through files that are not Coldframe's: {between}"
        repair = "They are left alone, and the next snapshot takes them in; or join them: virsh blockcommit"
        yield Finding(code="foreign-overlay", severity="warning", what=what, repair=repair, **about)
    elif not recorded and has_snapshots:
        what = f"{told} is {paths[0]} and stands on none of the files that are frozen for its snapshots"
        repair = "If it was replaced on purpose take a new snapshot; else point it back with virsh edit, or revert"
        yield Finding(code="disk-elsewhere", severity="warning", what=what, repair=repair, **about)
