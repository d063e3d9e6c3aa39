"""A VM's volumes as its host last showed them, with the snapshots that own the files of each chain."""

from uuid import UUID

from agent.wire.fleet import ChainFile, VmVolume
from agent.wire.vm import Disk
from controller.db import read
from controller.models import VolumeSnapshot
from controller.store import vms


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
