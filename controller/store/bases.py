"""Frozen files and what stands on them: told by the records of all snapshots, hidden bases and VMs of one host.

A *hidden base* is a frozen file whose snapshot is gone while several files stand on it, or another VM does. It is no
part of any list or tree, and goes when one child is left.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

import msgspec

from agent.wire.transaction import DoomedVolume, VolumeOutcome
from agent.wire.vm import HostVm
from controller.db import read, write
from controller.models import VmDefinition, VolumeSnapshot
from controller.store import clones


@dataclass(frozen=True, order=True)
class Child:
    """A file that stands directly on a frozen one: another frozen file of a VM, or the present top of one."""

    path: str
    vm: UUID


def children(host: str, path: str) -> list[Child]:
    """Return what stands directly on a file, by the records: as new as the last look at the host.

    A linked clone that the host has not shown yet is told by the record of its making.
    """
    with read():
        found = {Child(made, vm) for vm, made in clones.unseen_on(host, path)}
        standing = (VolumeSnapshot.host == host, VolumeSnapshot.backing == path, ~VolumeSnapshot.merged)
        found |= {Child(row.path, row.vm_id) for row in VolumeSnapshot.select().where(*standing)}
        for row in VmDefinition.select().where(VmDefinition.host == host):
            disks = msgspec.convert(row.facts, HostVm).disks
            tops = (disk.chain[0] for disk in disks if disk.chain)
            found |= {Child(top.path, row.vm_id) for top in tops if top.backing == path}
    return sorted(found)


def is_ripe(standing: list[Child], vm: UUID) -> bool:
    """Tell whether a file can be merged away in the course of work on this VM: nobody else's work depends on it."""
    return len(standing) < 2 and all(child.vm == vm for child in standing)


def hide(snapshot: UUID, targets: list[str]) -> None:
    """Keep these files of a snapshot, which is about to be removed, as hidden bases of its VM. For the store only."""
    own = (VolumeSnapshot.snapshot == snapshot, VolumeSnapshot.target.in_(targets), ~VolumeSnapshot.merged)
    VolumeSnapshot.update(snapshot=None, hidden=True).where(*own).execute()


def hidden(host: str) -> list[VolumeSnapshot]:
    """Return the hidden bases of a host, oldest first. For the store only."""
    found = VolumeSnapshot.select().where(VolumeSnapshot.hidden, VolumeSnapshot.host == host)
    return list(found.order_by(VolumeSnapshot.id))


def ripe(vm: UUID, host: str) -> list[DoomedVolume]:
    """Return hidden bases that can go now: at most one for each target, and none that stands on another of them.

    One that a snapshot holds too stays: the VM was put on it by hand, and frozen there.
    """
    chosen: dict[str, DoomedVolume] = {}
    with read():
        for row in hidden(host):
            standing = children(host, row.path)
            near = {row.path, row.backing, *(child.path for child in standing)}
            touched = _held(host, row.path) or not near.isdisjoint(one.path for one in chosen.values())
            mine = is_ripe(standing, vm) and (row.vm_id == vm or bool(standing))
            if mine and not touched and row.target not in chosen:
                paths = [child.path for child in standing]
                chosen[row.target] = DoomedVolume(target=row.target, path=row.path, children=paths)
    return list(chosen.values())


def _held(host: str, path: str) -> bool:
    own = (VolumeSnapshot.host == host, VolumeSnapshot.path == path, ~VolumeSnapshot.merged, ~VolumeSnapshot.hidden)
    return VolumeSnapshot.select().where(*own).exists()


def record(host: str, path: str, outcome: VolumeOutcome) -> None:
    """Record what became of a hidden base: which children were rewritten, and whether it is gone."""
    with write():
        for row in (one for one in hidden(host) if one.path == path):
            rewritten(row, outcome.fingerprints)
            own = VolumeSnapshot.id == row.id
            if outcome.done:
                VolumeSnapshot.delete().where(own).execute()
                reparent(row, outcome.new_backing or row.backing)
            elif outcome.altered is not None:
                VolumeSnapshot.update(altered=True, fingerprint=outcome.altered).where(own).execute()


def rewritten(row: VolumeSnapshot, fingerprints: Mapping[str, str]) -> None:
    """Record that these files (new fingerprint by path) stand on what a file stands on. For the store only."""
    for path, fingerprint in fingerprints.items():
        left(row.host, path, fingerprint, row.backing)


def left(host: str, path: str, fingerprint: str, backing: str | None) -> None:
    """Record how a frozen file was left by what moved it to another backing file. For the store and for repairs."""
    own = (VolumeSnapshot.host == host, VolumeSnapshot.path == path, ~VolumeSnapshot.merged)
    VolumeSnapshot.update(fingerprint=fingerprint, backing=backing).where(*own).execute()


def reparent(row: VolumeSnapshot, backing: str | None) -> None:
    """Record that what stood on a file that is gone stands on ``backing``. For the store only."""
    standing = (VolumeSnapshot.host == row.host, VolumeSnapshot.backing == row.path)
    VolumeSnapshot.update(backing=backing).where(*standing).execute()
