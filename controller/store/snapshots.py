"""Reading snapshots: one, as a tree, as work on them needs them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import msgspec
from peewee import JOIN, fn

from agent.wire import snapshot as wire
from agent.wire.backup_file import BackupFile as WireBackupFile
from agent.wire.transaction import FirmwareFile
from controller.db import read
from controller.errors import SnapshotBusy, SnapshotNotFound, SnapshotPartlyDeleted
from controller.models import BackupFile, Snapshot, Vm, VolumeSnapshot
from controller.store import backup_files
from controller.store.paging import Slice, after_position, filtered, page_of

Position = tuple[int, UUID]
#: As they were taken: a clock that was wrong then has no say in it.
ORDER = (Snapshot.seq, Snapshot.uuid)


@dataclass(frozen=True)
class GroupVolume:
    """One disk's frozen file as work on it needs it. ``fingerprint`` as in wire.vm.Image; ``merged``: it is gone.

    ``altered``: a deletion has begun to write to it, so it no longer holds what it held. ``snapshot`` is None for a
    hidden base.
    """

    snapshot: UUID | None
    vm: UUID
    target: str
    host: str
    path: str
    format: str
    backing: str | None
    fingerprint: str
    hidden: bool
    merged: bool
    altered: bool


@dataclass(frozen=True)
class Group:
    """A snapshot with all that a revert, clone or deletion needs to know."""

    snapshot: wire.Snapshot
    volumes: list[GroupVolume]
    backups: list[WireBackupFile]
    domain_xml: str
    firmware: list[FirmwareFile]
    tpm_secret: UUID | None
    transaction: UUID | None
    ungrouped: bool

    @property
    def lost(self) -> list[str]:
        """Name the disks that a deletion has merged away or begun to write to: they cannot be had from it any more."""
        return [volume.target for volume in self.volumes if volume.merged or volume.altered]

    def require_whole(self, targets: Iterable[str] | None = None) -> None:
        """Raise SnapshotPartlyDeleted where a disk, or one of these, cannot be had from it any more."""
        if gone := [target for target in self.lost if targets is None or target in set(targets)]:
            raise SnapshotPartlyDeleted(targets=", ".join(gone), snapshot=self.snapshot.uuid)


def get(uuid: UUID) -> wire.Snapshot:
    """Return one. Raises SnapshotNotFound."""
    with read():
        return wires([row_of(uuid)])[0]


def group(uuid: UUID) -> Group:
    """Return one with all that work on it needs. Raises SnapshotNotFound."""
    with read():
        row = row_of(uuid)
        volumes = VolumeSnapshot.select().where(VolumeSnapshot.snapshot == uuid).order_by(VolumeSnapshot.target)
        return Group(
            snapshot=wires([row])[0],
            volumes=[_volume(one) for one in volumes],
            backups=backup_files.of_owner(uuid),
            domain_xml=row.domain_xml,
            firmware=msgspec.convert(row.firmware, list[FirmwareFile]),
            tpm_secret=row.tpm_secret,
            transaction=row.transaction,
            ungrouped=row.ungrouped,
        )


def whole(uuid: UUID) -> Group:
    """Return one that copies can be made of. Raises SnapshotNotFound, SnapshotBusy, SnapshotPartlyDeleted."""
    found = group(uuid)
    if found.snapshot.state != "ready":
        raise SnapshotBusy(snapshot=uuid, state=found.snapshot.state)
    found.require_whole()
    return found


def tree(vm: UUID) -> list[wire.Snapshot]:
    """Return all snapshots of a VM, each after its parent, siblings as they were taken."""
    with read():
        rows = wires(_select().where(Snapshot.vm == vm).order_by(*ORDER))
    children: dict[UUID | None, list[wire.Snapshot]] = {}
    for one in rows:
        children.setdefault(one.parent, []).append(one)
    ordered: list[wire.Snapshot] = []
    waiting = list(reversed(children.get(None, [])))
    while waiting:
        one = waiting.pop()
        ordered.append(one)
        waiting.extend(reversed(children.get(one.uuid, [])))
    return ordered


def current(vm: UUID) -> UUID | None:
    """Return the snapshot that the VM stands on."""
    row = Snapshot.select(Snapshot.uuid).where(Snapshot.vm == vm, Snapshot.current).first()
    return None if row is None else row.uuid


def older_automatic(vm: UUID, than: UUID) -> list[UUID]:
    """Return a VM's automatic snapshots other than ``than``, oldest first: those that may go."""
    query = Snapshot.select(Snapshot.uuid).where(Snapshot.vm == vm, Snapshot.automatic, Snapshot.uuid != than)
    return [row.uuid for row in query.order_by(*ORDER)]


def holding(path: str) -> list[GroupVolume]:
    """Return the volume snapshots of all hosts that hold this file: several where a VM was put back on it."""
    conditions = (VolumeSnapshot.path == path, ~VolumeSnapshot.merged)
    return [_volume(row) for row in VolumeSnapshot.select().where(*conditions).order_by(VolumeSnapshot.id)]


def held(vm: UUID) -> list[str]:
    """Return the files that a VM's snapshots hold, and its hidden bases, under whichever host they are recorded."""
    conditions = (VolumeSnapshot.vm == vm, ~VolumeSnapshot.merged)
    return sorted({row.path for row in VolumeSnapshot.select(VolumeSnapshot.path).where(*conditions)})


def all_volumes() -> list[GroupVolume]:
    """Return the frozen files of all snapshots of all VMs, and the hidden bases."""
    return [_volume(row) for row in VolumeSnapshot.select().order_by(VolumeSnapshot.id)]


def page(
    limit: int,
    after: Position | None = None,
    *,
    vm: UUID | None = None,
    name: str | None = None,
    state: str | None = None,
    automatic: bool | None = None,
) -> Slice[wire.Snapshot, Position]:
    """Return one page, in the order in which they were taken, whatever their dates say."""
    query = _select()
    filters = (
        (Snapshot.vm, vm),
        (Snapshot.name, name),
        (Snapshot.state, state),
        (Snapshot.automatic, automatic),
    )
    query = filtered(query, filters)
    with read():
        rows = list(after_position(query, ORDER, after).limit(limit + 1))
        seqs = {row.uuid: row.seq for row in rows}
        return page_of(wires(rows), limit, lambda one: (seqs[one.uuid], one.uuid))


def next_seq() -> int:
    """Return the next place in the order of taking. For the store only."""
    last: int | None = Snapshot.select(fn.MAX(Snapshot.seq)).scalar()
    return 1 + (last or 0)


def row_of(uuid: UUID) -> Snapshot:
    """Return the row with its VM's name. For the store only. Raises SnapshotNotFound."""
    row: Snapshot | None = _select().where(Snapshot.uuid == uuid).first()
    if row is None:
        raise SnapshotNotFound(snapshot=uuid)
    return row


def wires(found: Iterable[Snapshot]) -> list[wire.Snapshot]:
    """Turn rows into wire types. For the store only."""
    rows = list(found)
    uuids = [row.uuid for row in rows]
    volumes: dict[UUID, list[wire.Volume]] = {uuid: [] for uuid in uuids}
    for volume in VolumeSnapshot.select().where(VolumeSnapshot.snapshot.in_(uuids)).order_by(VolumeSnapshot.target):
        if volume.snapshot_id is not None:
            volumes[volume.snapshot_id].append(_wire_volume(volume))
    backups: dict[UUID, list[UUID]] = {uuid: [] for uuid in uuids}
    for backup in BackupFile.select().where(BackupFile.owner_uuid.in_(uuids)).order_by(BackupFile.type):
        backups[backup.owner_uuid].append(backup.uuid)
    return [_wire(row, volumes[row.uuid], backups[row.uuid]) for row in rows]


def _select() -> Any:
    return Snapshot.select(Snapshot, Vm.uuid, Vm.name).join(Vm, JOIN.INNER)


def _volume(row: VolumeSnapshot) -> GroupVolume:
    return GroupVolume(
        snapshot=row.snapshot_id,
        vm=row.vm_id,
        target=row.target,
        host=row.host,
        path=row.path,
        format=row.format,
        backing=row.backing,
        fingerprint=row.fingerprint,
        hidden=row.hidden,
        merged=row.merged,
        altered=row.altered,
    )


def _wire_volume(row: VolumeSnapshot) -> wire.Volume:
    return wire.Volume(
        target=row.target,
        host=row.host,
        path=row.path,
        backing=row.backing,
        virtual_size_bytes=row.virtual_size_bytes,
        allocated_bytes=row.allocated_bytes,
        hidden=row.hidden,
    )


def _wire(row: Snapshot, volumes: list[wire.Volume], backups: list[UUID]) -> wire.Snapshot:
    return wire.Snapshot(
        uuid=row.uuid,
        vm=row.vm_id,
        vm_name=row.vm.name,
        name=row.name,
        description=row.description,
        labels=row.labels,
        created_at=row.created_at,
        parent=row.parent_id,
        current=row.current,
        state=row.state,
        automatic=row.automatic,
        protected=row.protected,
        host_files=wire.SnapshotHostFiles(
            state=row.host_files_state, expected=row.expected, missing=row.missing, reason=row.reason
        ),
        volumes=volumes,
        backup_files=backups,
        excluded=row.excluded,
    )
