"""Changing snapshots. Each function takes a group from one whole state to another in one transaction.

::

    create ─► creating ──ready──► ready ──begin──► reverting ──reverted/settle──► ready
                 │                  └────begin──► deleting ───settle──► ready   (a disk could not be deleted)
                 ├──fail──► failed                    └──remove──► gone
                 └──remove──► gone
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from agent.wire import snapshot as wire
from agent.wire.base import utc_now
from agent.wire.host_file import HostFileType
from agent.wire.transaction import FirmwareFile, FrozenFile
from controller.db import write
from controller.errors import SnapshotBusy, SnapshotExists, SnapshotProtected, VmNotFound
from controller.models import Snapshot, Vm, VolumeSnapshot
from controller.store import backup_files, bases, events, snapshots
from controller.store.contents import Held

_BEGUN: tuple[wire.SnapshotState, ...] = ("creating", "reverting", "deleting")

_FROM: Mapping[str, frozenset[str]] = {
    "reverting": frozenset({"ready", "reverting"}),
    "deleting": frozenset({"ready", "failed", "deleting"}),
}


@dataclass(frozen=True, kw_only=True)
class NewGroup:
    """What is written when a snapshot is created. ``missing`` are expected types that ``host_files`` lacks.

    ``stands_alone``: it has no parent, wherever the VM stood.
    """

    uuid: UUID
    vm: UUID
    host: str
    name: str
    transaction: UUID
    volumes: Sequence[FrozenFile]
    host_files_state: wire.Completeness
    host_files: Mapping[HostFileType, Held] = field(default_factory=dict)
    expected: Sequence[HostFileType] = ()
    missing: Sequence[HostFileType] = ()
    reason: str | None = None
    description: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    automatic: bool = False
    protected: bool = False
    excluded: Sequence[str] = ()
    domain_xml: str = ""
    firmware: Sequence[FirmwareFile] = ()
    tpm_secret: UUID | None = None
    created_at: datetime = field(default_factory=utc_now)
    stands_alone: bool = False


def create(new: NewGroup) -> wire.Snapshot:
    """Write group, volume snapshots and backup files, as ``creating``, under the snapshot's own UUID.

    Its parent is the snapshot that the VM stands on. The same UUID with the same transaction again: what is there.
    Raises VmNotFound, SnapshotExists, OwnerReserved, ContentMissing.
    """
    with write():
        known = Snapshot.get_or_none(Snapshot.uuid == new.uuid)
        if known is not None:
            if known.transaction != new.transaction:
                raise SnapshotExists(snapshot=new.uuid)
            return snapshots.get(new.uuid)
        if Vm.get_or_none(Vm.uuid == new.vm) is None:
            raise VmNotFound(vm=new.vm)
        # Before the group is there, so that an outside owner of the same UUID is seen.
        backup_files.replace("snapshot", new.uuid, new.host_files)
        _insert(new)
        return snapshots.get(new.uuid)


def ready(uuid: UUID, *, current: bool = True) -> wire.Snapshot:
    """Make it whole, and where ``current`` what the VM stands on; event ``snapshot.ready``. Again: no effect.

    Raises SnapshotNotFound, SnapshotBusy.
    """
    with write():
        row = snapshots.row_of(uuid)
        if row.state != "ready":
            if row.state != "creating":
                raise SnapshotBusy(snapshot=uuid, state=row.state)
            _update(uuid, state="ready")
            if current:
                _stand_on(row.vm_id, uuid)
            _tell("snapshot.ready", row)
        return snapshots.get(uuid)


def fail(uuid: UUID, reason: str) -> None:
    """Keep a group that is not whole, as ``failed`` with the reason; event ``snapshot.failed``."""
    with write():
        row = snapshots.row_of(uuid)
        _update(uuid, state="failed", reason=reason)
        _tell("snapshot.failed", row, reason=reason)


def begin(uuid: UUID, state: Literal["reverting", "deleting"]) -> wire.Snapshot:
    """Begin a revert or a deletion; one that was begun may be begun again. Nothing of the snapshot changes by it.

    Raises SnapshotNotFound, SnapshotBusy, SnapshotProtected.
    """
    with write():
        row = snapshots.row_of(uuid)
        if state == "deleting" and row.protected:
            raise SnapshotProtected(snapshot=uuid)
        if row.state not in _FROM[state]:
            raise SnapshotBusy(snapshot=uuid, state=row.state)
        _update(uuid, state=state)
        return snapshots.get(uuid)


def unsettled_vms(host: str) -> list[UUID]:
    """Return the VMs of a host with a snapshot on which work has begun and not ended."""
    begun = Snapshot.select(Snapshot.vm).join(Vm).where(Snapshot.state.in_(_BEGUN), Vm.host == host)
    return sorted({row.vm_id for row in begun})


def settle(uuid: UUID) -> None:
    """End a revert or deletion that did not come through: the snapshot is ``ready`` as before. Again: no effect."""
    with write():
        if snapshots.row_of(uuid).state in {"reverting", "deleting"}:
            _update(uuid, state="ready")


def reverted(uuid: UUID, undo: UUID | None = None, *, moves_current: bool = True) -> wire.Snapshot:
    """End a revert: the undo point is whole, the VM stands on the snapshot; event ``snapshot.reverted``.

    ``moves_current=False`` after single volumes were reverted: the VM still stands where it stood.
    Raises SnapshotNotFound, SnapshotBusy.
    """
    with write():
        row = snapshots.row_of(uuid)
        if undo is not None:
            ready(undo, current=False)
        _update(uuid, state="ready")
        if moves_current:
            _stand_on(row.vm_id, uuid)
        _tell("snapshot.reverted", row, undo_point=undo)
        return snapshots.get(uuid)


def merged(uuid: UUID, target: str, fingerprints: Mapping[str, str], new_backing: str | None) -> None:
    """Record that one disk of a deletion is done. Again: no effect beyond the fingerprints.

    ``new_backing`` is what the files that stood on it stand on now; ``fingerprints`` are those of the files that
    were rewritten, by path. Raises SnapshotNotFound.
    """
    with write():
        snapshots.row_of(uuid)
        own = (VolumeSnapshot.snapshot == uuid, VolumeSnapshot.target == target)
        volume = VolumeSnapshot.get_or_none(*own)
        if volume is None:
            return
        if not volume.merged:
            bases.reparent(volume, new_backing)
            VolumeSnapshot.update(merged=True).where(*own).execute()
        for path, fingerprint in fingerprints.items():
            VolumeSnapshot.update(fingerprint=fingerprint).where(
                VolumeSnapshot.host == volume.host, VolumeSnapshot.path == path, ~VolumeSnapshot.merged
            ).execute()


def rebased(uuid: UUID, target: str, fingerprints: Mapping[str, str]) -> None:
    """Record that these files (new fingerprint by path) no longer stand on one disk of a deletion that goes on.

    They stand on what the disk's frozen file stands on; that file is still there. Raises SnapshotNotFound.
    """
    with write():
        snapshots.row_of(uuid)
        volume = VolumeSnapshot.get_or_none(VolumeSnapshot.snapshot == uuid, VolumeSnapshot.target == target)
        if volume is not None:
            bases.rewritten(volume, fingerprints)


def altered(uuid: UUID, target: str, fingerprint: str) -> None:
    """Record that a deletion has begun to write to the frozen file of one disk, which now has this fingerprint.

    Its child covers what was written; the file itself no longer holds what it held. Raises SnapshotNotFound.
    """
    with write():
        snapshots.row_of(uuid)
        own = (VolumeSnapshot.snapshot == uuid, VolumeSnapshot.target == target, ~VolumeSnapshot.merged)
        VolumeSnapshot.update(altered=True, fingerprint=fingerprint).where(*own).execute()


def remove(uuid: UUID, kept: Sequence[str] = ()) -> None:
    """Remove a group with its volume snapshots, backup files and contents; event ``snapshot.deleted``.

    The files of the targets in ``kept``, on which others stand, become hidden bases. Its children
    go to its parent, and a VM that stands on it then stands on its parent. Raises SnapshotNotFound.
    """
    with write():
        row = snapshots.row_of(uuid)
        _update(uuid, current=False)
        Snapshot.update(parent=row.parent_id).where(Snapshot.parent == uuid).execute()
        if row.current and row.parent_id is not None:
            _stand_on(row.vm_id, row.parent_id)
        backup_files.remove_owner("snapshot", uuid)
        bases.hide(uuid, list(kept))
        Snapshot.delete().where(Snapshot.uuid == uuid).execute()
        _tell("snapshot.deleted", row)


def ungroup(uuid: UUID) -> wire.Snapshot:
    """Remove exactly this snapshot's backup files and mark it; its volumes stay. Event ``snapshot.ungrouped``.

    Again: no effect. Raises SnapshotNotFound, SnapshotBusy, SnapshotProtected.
    """
    with write():
        row = snapshots.row_of(uuid)
        if row.protected:
            raise SnapshotProtected(snapshot=uuid)
        if row.state != "ready":
            raise SnapshotBusy(snapshot=uuid, state=row.state)
        if not row.ungrouped:
            backup_files.remove_owner("snapshot", uuid)
            reason = "it was ungrouped: the volume snapshots stay, the host files are gone"
            _update(uuid, ungrouped=True, host_files_state="none", missing=row.expected, reason=reason)
            _tell("snapshot.ungrouped", row)
        return snapshots.get(uuid)


def _insert(new: NewGroup) -> None:
    Snapshot.create(
        uuid=new.uuid,
        vm=new.vm,
        parent=None if new.stands_alone else snapshots.current(new.vm),
        name=new.name,
        description=new.description,
        labels=dict(new.labels),
        state="creating",
        automatic=new.automatic,
        protected=new.protected,
        host_files_state=new.host_files_state,
        expected=list(new.expected),
        missing=list(new.missing),
        reason=new.reason,
        excluded=list(new.excluded),
        domain_xml=new.domain_xml,
        firmware=list(new.firmware),
        tpm_secret=new.tpm_secret,
        transaction=new.transaction,
        created_at=new.created_at,
        seq=snapshots.next_seq(),
    )
    for volume in new.volumes:
        VolumeSnapshot.create(
            snapshot=new.uuid,
            vm=new.vm,
            target=volume.target,
            host=new.host,
            path=volume.path,
            format=volume.format,
            backing=volume.backing,
            virtual_size_bytes=volume.virtual_size_bytes,
            allocated_bytes=volume.allocated_bytes,
            fingerprint=volume.fingerprint,
        )


def _stand_on(vm: UUID, uuid: UUID) -> None:
    Snapshot.update(current=False).where(Snapshot.vm == vm, Snapshot.current).execute()
    _update(uuid, current=True)


def _update(uuid: UUID, **values: Any) -> None:
    Snapshot.update(**values).where(Snapshot.uuid == uuid).execute()


def _tell(type: str, row: Snapshot, **data: Any) -> None:
    events.append(type, vm=row.vm_id, data={"snapshot": row.uuid, "name": row.name, **data})
