"""Frozen files and what stands on them: told by the records of all snapshots, hidden bases and VMs of all hosts.

A *hidden base* is a frozen file whose snapshot is gone while several files stand on it, or another VM does. It is no
part of any list or tree, and goes when one child is left.

Hosts may share their directories, and neither libvirt nor the locks of images tell one host what another one uses. So
the same path on two hosts counts as the same file: where it is not, a file is kept longer than it had to be.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from uuid import UUID

import msgspec

from agent.wire.transaction import DoomedVolume, VolumeOutcome
from agent.wire.vm import HostVm
from controller.db import read, write
from controller.models import VmDefinition, VolumeSnapshot
from controller.store import clones

#: A VM as a host has just shown it, with the name of that host.
Shown = tuple[str, HostVm]


@dataclass(frozen=True, order=True)
class Child:
    """A file that stands on a frozen one: another frozen file of a VM, or the present top of one on this host."""

    path: str
    vm: UUID
    host: str


def standing(host: str, elsewhere: Iterable[Shown] = ()) -> dict[str, list[Child]]:
    """Return what stands on each file, by the records and what ``elsewhere`` other hosts have just shown.

    On ``host`` only what stands directly on it: the rest is that. Of a VM of another host the whole chain counts,
    with its top, since nothing may be written there that it reads. A linked clone that no host has shown, or whose
    disks its host cannot read, is told by the record of its making.
    """
    found: dict[str, set[Child]] = {}
    for path, child in _all(host, elsewhere):
        found.setdefault(path, set()).add(child)
    return {path: sorted(children) for path, children in found.items()}


def occupied(files: Iterable[tuple[str, str]]) -> set[tuple[str, str]]:
    """Return those of the files, each a host and a path, on which anything stands as seen from that host's work."""
    wanted = set(files)
    stands = {host: standing(host) for host in {host for host, _ in wanted}}
    return {(host, path) for host, path in wanted if path in stands[host]}


def _all(host: str, elsewhere: Iterable[Shown]) -> Iterator[tuple[str, Child]]:
    with read():
        for made in clones.made_on():
            yield made.stands_on, Child(made.path, made.vm, made.host)
        for row in VolumeSnapshot.select().where(VolumeSnapshot.backing.is_null(False), ~VolumeSnapshot.merged):
            yield str(row.backing), Child(row.path, row.vm_id, row.host)
        known = [(row.host_id, msgspec.convert(row.facts, HostVm)) for row in VmDefinition.select()]
    for place, vm in [*known, *elsewhere]:
        for disk in vm.disks:
            chain = disk.chain[:1] if place == host else disk.chain
            yield from ((one.backing, Child(one.path, vm.uuid, place)) for one in chain if one.backing is not None)
            if place != host and disk.path is not None:
                yield disk.path, Child(disk.path, vm.uuid, place)


def is_ripe(above: list[Child], vm: UUID) -> bool:
    """Tell whether a file can be merged away in the course of work on this VM: nobody else's work depends on it."""
    return len(above) < 2 and all(child.vm == vm for child in above)


def hide(snapshot: UUID, targets: list[str]) -> None:
    """Keep these files of a snapshot, which is about to be removed, as hidden bases of its VM. For the store only."""
    own = (VolumeSnapshot.snapshot == snapshot, VolumeSnapshot.target.in_(targets), ~VolumeSnapshot.merged)
    VolumeSnapshot.update(snapshot=None, hidden=True).where(*own).execute()


def hidden(host: str) -> list[VolumeSnapshot]:
    """Return the hidden bases of a host, oldest first. For the store only."""
    found = VolumeSnapshot.select().where(VolumeSnapshot.hidden, VolumeSnapshot.host == host)
    return list(found.order_by(VolumeSnapshot.id))


def ripe(vm: UUID, host: str, elsewhere: Iterable[Shown] = ()) -> list[DoomedVolume]:
    """Return hidden bases that can go now: at most one for each target, and none that stands on another of them.

    One that a snapshot holds too stays: the VM was put on it by hand, and frozen there.
    """
    chosen: dict[str, DoomedVolume] = {}
    with read():
        stands = standing(host, elsewhere)
        for row in hidden(host):
            above = stands.get(row.path, [])
            near = {row.path, row.backing, *(child.path for child in above)}
            touched = _held(row) or not near.isdisjoint(one.path for one in chosen.values())
            mine = is_ripe(above, vm) and (row.vm_id == vm or bool(above))
            if mine and not touched and row.target not in chosen:
                paths = [child.path for child in above]
                chosen[row.target] = DoomedVolume(target=row.target, path=row.path, children=paths)
    return list(chosen.values())


def _held(row: VolumeSnapshot) -> bool:
    """Return whether another record holds the same file: a snapshot's, or what another host keeps."""
    others = (VolumeSnapshot.path == row.path, ~VolumeSnapshot.merged, VolumeSnapshot.id != row.id)
    elsewhere = ~VolumeSnapshot.hidden | (VolumeSnapshot.host != row.host)
    return VolumeSnapshot.select().where(*others, elsewhere).exists()


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
