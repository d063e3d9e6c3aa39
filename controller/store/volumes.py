"""A VM's volumes as its host last showed them, with the snapshots that own the files of each chain."""

from collections.abc import Iterable
from uuid import UUID

from agent.wire.fleet import ChainFile, VmVolume
from agent.wire.upkeep import UnwantedImage
from agent.wire.vm import Disk
from controller.db import read
from controller.errors import DisksNotRemoved, VmDefined
from controller.models import Clone, HostFile, VolumeSnapshot
from controller.store import bases, snapshots, vms
from controller.store.bases import Shown


def of_vm(uuid: UUID) -> list[VmVolume]:
    """Return a VM's volumes by target. Raises VmNotFound."""
    with read():
        vm = vms.get(uuid)
        paths = [image.path for disk in vm.disks for image in disk.chain]
        owners: dict[str, list[UUID]] = {}
        rows = VolumeSnapshot.select().where(VolumeSnapshot.path.in_(paths), VolumeSnapshot.host == vm.host)
        for row in rows.where(~VolumeSnapshot.merged).order_by(VolumeSnapshot.id):
            if row.snapshot_id is not None:  # else a hidden base
                owners.setdefault(row.path, []).append(row.snapshot_id)
        return [_volume(disk, owners) for disk in sorted(vm.disks, key=lambda disk: disk.target)]


def disks_of(uuid: UUID) -> dict[str, list[UnwantedImage]]:
    """Return the image files of a VM that no host defines, by the host they are on: what goes with it.

    These are its snapshots' frozen files, its hidden bases and its last top files; templates below its first snapshot
    and disks that no snapshot covers are not its own. Raises VmNotFound, VmDefined, and DisksNotRemoved where
    nobody knows which host its top files are on.
    """
    with read():
        vm = vms.get(uuid)
        if vm.host is not None:
            raise VmDefined(vm=vm.name, host=vm.host)
        found: dict[str, dict[str, str]] = {}
        rows = VolumeSnapshot.select().where(VolumeSnapshot.vm == uuid, ~VolumeSnapshot.merged)
        for row in rows.order_by(VolumeSnapshot.id):
            found.setdefault(row.host, {})[row.path] = row.target
        tops = {disk.path: disk.target for disk in vm.disks if disk.path is not None and not disk.excluded_because}
        places = {*found, *_known_places(uuid)}
        if tops and len(places) != 1:
            known = f"the records name {', '.join(sorted(places))}" if places else "no record names a host"
            raise DisksNotRemoved(vm=vm.name, reason=f"which host they are on is not known: {known}", host_code=None)
        for host in places if tops else ():
            found.setdefault(host, {}).update(tops)
    return {
        host: [UnwantedImage(target=target, path=path) for path, target in files.items()]
        for host, files in found.items()
    }


def needed_by_others(uuid: UUID, host: str, images: Iterable[UnwantedImage], shown: Iterable[Shown]) -> str | None:
    """Say which of a VM's files on a host another VM needs, on whichever host; None where none does.

    ``shown`` are the VMs that the other hosts have just shown.
    """
    with read():
        standing = bases.standing(host, shown)
        for image in images:
            others = [child for child in standing.get(image.path, []) if child.vm != uuid]
            if others:
                child = others[0]
                return f"{image.path} is needed by VM {child.vm} on host {child.host}, for {child.path}"
            held = [one for one in snapshots.holding(image.path) if one.vm != uuid]
            if held:
                return f"{image.path} is held by the snapshots of VM {held[0].vm} on host {held[0].host}"
    return None


def _known_places(uuid: UUID) -> set[str]:
    """Return the hosts that a VM was cloned on, or its host files were copied from."""
    made = {row.host for row in Clone.select(Clone.host).where(Clone.vm == uuid)}
    return made | {row.host for row in HostFile.select(HostFile.host).where(HostFile.vm == uuid)}


def _volume(disk: Disk, owners: dict[str, list[UUID]]) -> VmVolume:
    chain = [
        ChainFile(
            path=image.path,
            format=image.format,
            virtual_size_bytes=image.virtual_size_bytes,
            allocated_bytes=image.allocated_bytes,
            snapshots=owners.get(image.path, []),
        )
        for image in disk.chain
    ]
    return VmVolume(
        target=disk.target,
        path=disk.path,
        format=disk.format,
        virtual_size_bytes=disk.virtual_size_bytes,
        allocated_bytes=sum(one.allocated_bytes for one in chain),
        depth=disk.chain_depth,
        chain=chain,
        excluded_because=disk.excluded_because,
        problem=disk.problem,
    )
