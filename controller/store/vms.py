"""VMs as the hosts define them. A VM that no host defines any more is kept while anything of it is."""

from collections.abc import Collection, Iterable
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

from agent.wire import fleet as wire
from agent.wire.clone import CloneOrigin
from agent.wire.vm import Disk, HostVm
from controller.db import read, write
from controller.errors import SnapshotProtected, VmAmbiguous, VmBusy, VmConflict, VmKnown, VmNotFound, VmNowhere
from controller.models import BackupFile, Clone, Host, RetentionPolicy, Snapshot, Vm, VmDefinition, VolumeSnapshot
from controller.store import backup_files, contents, events, host_files, operations
from controller.store.paging import Slice, after_position, filtered, page_of

Position = tuple[str, UUID]
#: What tells that a VM is somewhere else by now, or not any more.
_WHEREABOUTS = ("vm.added", "vm.changed", "vm.gone", "vm.placed", "vm.forgotten", "clone.ready")


def record_inventory(
    host: str, found: Iterable[HostVm], at: datetime | None, *, asked_after: int | None = None
) -> set[UUID]:
    """Record all VMs that a host defines: new ones, changes, moves, conflicts, and those that are gone.

    ``asked_after``: the newest event when the host was asked. A VM that was made, moved or forgotten since is left as
    it is recorded, and returned: the host may have answered before that. Events ``vm.added``, ``vm.changed``,
    ``vm.gone``. The host must be enrolled.
    """
    with write():
        listed = {vm.uuid: vm for vm in found}
        known = {row.vm_id for row in VmDefinition.select().where(VmDefinition.host == host)}
        since = set() if asked_after is None else events.about(_WHEREABOUTS, asked_after)
        now, gone = listed.keys() - since, known - listed.keys() - since
        for vm in listed.values():
            if vm.uuid in now:
                _define(host, vm)
        VmDefinition.delete().where(VmDefinition.host == host, VmDefinition.vm.in_(list(gone))).execute()
        for uuid in sorted(now | gone):
            _settle(uuid, at)
        forget_traceless()
        return since & (listed.keys() | known)


def placed(
    uuid: UUID, host: str, facts: HostVm, others: list[str], at: datetime | None, *, stays: Collection[str] = ()
) -> None:
    """Record that a VM is on ``host`` now and no longer on ``others``: its frozen files are reached there.

    ``at``: when ``host`` showed it so; None where these are older facts. Event ``vm.placed``. ``stays`` are those of
    the others that still define it: a conflict, as one that its host's next inventory shows.
    """
    gone = [one for one in others if one not in stays]
    with write():
        VmDefinition.delete().where(VmDefinition.vm == uuid, VmDefinition.host.in_(gone)).execute()
        VolumeSnapshot.update(host=host).where(VolumeSnapshot.vm == uuid).execute()
        Clone.update(host=host).where(Clone.vm == uuid).execute()
        _define(host, facts)
        _settle(uuid, at, host)
        events.append("vm.placed", host=host, vm=uuid, data={"from": others})


def defined_on(uuid: UUID) -> list[str]:
    """Return the hosts that define it, by name."""
    rows = VmDefinition.select(VmDefinition.host).where(VmDefinition.vm == uuid).order_by(VmDefinition.host)
    return [row.host_id for row in rows]


def last_facts(uuid: UUID) -> HostVm:
    """Return what was last seen of a VM, wherever that was. Raises VmNotFound."""
    row = _row(uuid)
    return HostVm(uuid=uuid, persistent=True, **{name: getattr(row, name) for name in _SHOWN}, disks=_disks(row))


def settle_all(host: str) -> None:
    """Decide anew where each VM of a host is: the host has another name."""
    with write():
        for uuid in on_host(host):
            _settle(uuid, None)


def record_one(host: str, vm: HostVm, at: datetime) -> None:
    """Record one VM that a host defines."""
    with write():
        _define(host, vm)
        _settle(vm.uuid, at)


def announce(uuid: UUID, name: str, host: str) -> None:
    """Record a VM that this host has just made, before it has shown it; one that is known stays as it is."""
    with write():
        if Vm.get_or_none(Vm.uuid == uuid) is None:
            there = Host.get_or_none(Host.name == host)
            Vm.create(uuid=uuid, name=name, host=there, state="unknown", firmware="bios", disks=[])


def retract(uuid: UUID) -> None:
    """Take back that a VM was announced, where no host has shown it. Again: no effect."""
    with write():
        if Vm.get_or_none(Vm.uuid == uuid) is not None:
            _settle(uuid, None)


def require_unknown(uuid: UUID, name: str) -> None:
    """Raise VmKnown where a host defines a VM of this UUID or of this name."""
    row = Vm.get_or_none(((Vm.uuid == uuid) | (Vm.name == name)) & Vm.host.is_null(False))
    if row is not None:
        raise VmKnown(vm=row.uuid, name=row.name, host=row.host_id)


def get(uuid: UUID) -> wire.Vm:
    """Return one. Raises VmNotFound."""
    with read():
        return _wires([_row(uuid)])[0]


def resolve(text: str) -> UUID:
    """Return the VM that a UUID or a name stands for. Raises VmNotFound, VmAmbiguous.

    Among VMs of one name, one that a host defines goes before those that are gone.
    """
    try:
        uuid = UUID(text)
    except ValueError:
        uuid = None
    if uuid is not None and Vm.get_or_none(Vm.uuid == uuid) is not None:
        return uuid
    rows: list[Vm] = list(filtered(Vm.select(), [(Vm.name, text)]).order_by(Vm.uuid))
    candidates = [row for row in rows if row.host_id is not None] or rows
    if not candidates:
        raise VmNotFound(vm=text)
    if len(candidates) > 1:
        raise VmAmbiguous(name=text, uuids=", ".join(str(row.uuid) for row in candidates))
    return candidates[0].uuid


def host_of(uuid: UUID) -> str:
    """Return the one host that defines it. Raises VmNotFound, VmNowhere, VmConflict."""
    row = _row(uuid)
    if row.conflict is not None:
        raise VmConflict(vm=row.name, hosts=row.conflict)
    if row.host_id is None:
        raise VmNowhere(vm=row.name)
    return row.host_id


def on_host(host: str) -> list[UUID]:
    """Return the VMs that this host defines."""
    rows = VmDefinition.select(VmDefinition.vm).where(VmDefinition.host == host).order_by(VmDefinition.vm)
    return [row.vm_id for row in rows]


def require_no_conflict(uuid: UUID) -> None:
    """Raise VmConflict where several hosts define it."""
    row = Vm.get_or_none(Vm.uuid == uuid)
    if row is not None and row.conflict is not None:
        raise VmConflict(vm=row.name, hosts=row.conflict)


def definition(uuid: UUID, host: str) -> HostVm:
    """Return the VM as this host last showed it. Raises VmNowhere."""
    row = VmDefinition.get_or_none(VmDefinition.vm == uuid, VmDefinition.host == host)
    if row is None:
        raise VmNowhere(vm=uuid)
    return msgspec.convert(row.facts, HostVm)


def page(
    limit: int,
    after: Position | None = None,
    *,
    host: str | None = None,
    state: str | None = None,
    name: str | None = None,
) -> Slice[wire.Vm, Position]:
    """Return one page by name."""
    query = Vm.select()
    query = filtered(query, ((Vm.host, host), (Vm.state, state), (Vm.name, name)))
    with read():
        rows = list(after_position(query, (Vm.name, Vm.uuid), after).limit(limit + 1))
        return page_of(_wires(rows), limit, lambda vm: (vm.name, vm.uuid))


def forget(uuid: UUID, but: UUID | None = None, *, disks_gone: bool = False) -> wire.Vm:
    """Remove all records of a VM: host files, seeds, snapshots, their backup files and contents. Disks are left.

    ``but`` is the operation that asks; ``disks_gone``: its hosts have removed its files. Event ``vm.forgotten``,
    with the frozen files that nobody looks after any more: hidden bases too, since what is left of the VM's disks may
    stand on them, and nothing would tell. A VM that a host still defines comes back with that host's next inventory,
    without its history. Raises VmNotFound, VmBusy, SnapshotProtected.
    """
    with write():
        vm = require_forgettable(uuid, but)
        left = [] if disks_gone else _frozen(uuid)
        _remove(uuid)
        events.append("vm.forgotten", host=vm.host, vm=uuid, data={"name": vm.name, "files": left})
    return vm


def require_forgettable(uuid: UUID, but: UUID | None = None) -> wire.Vm:
    """Return a VM that may be forgotten now. Raises VmNotFound, VmBusy, SnapshotProtected."""
    with read():
        vm = get(uuid)
        count = operations.open_count(vm=uuid, but=but)
        if count:
            raise VmBusy(vm=vm.name, count=count)
        protected = Snapshot.get_or_none(Snapshot.vm == uuid, Snapshot.protected)
        if protected is not None:
            raise SnapshotProtected(snapshot=protected.uuid)
    return vm


def forget_traceless() -> None:
    """Remove VMs that no host defines and of which nothing is kept."""
    with write():
        kept = [
            ~Vm.uuid.in_(Snapshot.select(Snapshot.vm)),
            ~Vm.uuid.in_(VolumeSnapshot.select(VolumeSnapshot.vm)),  # hidden bases, for what stands on them
            ~Vm.uuid.in_(host_files.vms_with_copies()),
            ~Vm.uuid.in_(RetentionPolicy.select(RetentionPolicy.vm).where(RetentionPolicy.vm.is_null(False))),
            ~Vm.uuid.in_(BackupFile.select(BackupFile.owner_uuid).where(BackupFile.owner_kind == "vm")),
        ]
        for row in list(Vm.select().where(Vm.host.is_null(), *kept)):
            if not operations.open_count(vm=row.uuid):
                _remove(row.uuid)


def _frozen(uuid: UUID) -> list[dict[str, str]]:
    own = (VolumeSnapshot.vm == uuid, ~VolumeSnapshot.merged)
    rows = VolumeSnapshot.select().where(*own).order_by(VolumeSnapshot.host, VolumeSnapshot.path)
    return [{"host": row.host, "path": row.path} for row in rows]


def _remove(uuid: UUID) -> None:
    snapshots = [row.uuid for row in Snapshot.select(Snapshot.uuid).where(Snapshot.vm == uuid)]
    for snapshot in snapshots:
        backup_files.remove_owner("snapshot", snapshot)
    Snapshot.update(parent=None).where(Snapshot.vm == uuid).execute()
    Snapshot.delete().where(Snapshot.vm == uuid).execute()
    VolumeSnapshot.delete().where(VolumeSnapshot.vm == uuid).execute()  # hidden bases: their files stay, as disks do
    backup_files.remove_owner("vm", uuid)
    Clone.delete().where(Clone.vm == uuid).execute()
    # A clone of it whose end nobody learned: no operation will ask any more, and its host shows whether it was made.
    Clone.delete().where(Clone.source == uuid, Clone.state == "creating").execute()
    host_files.forget(uuid)
    Vm.delete().where(Vm.uuid == uuid).execute()
    contents.sweep()


def _row(uuid: UUID) -> Vm:
    row = Vm.get_or_none(Vm.uuid == uuid)
    if row is None:
        raise VmNotFound(vm=uuid)
    return row


def _define(host: str, vm: HostVm) -> None:
    before = VmDefinition.get_or_none(VmDefinition.vm == vm.uuid, VmDefinition.host == host)
    if before is not None:
        vm = msgspec.structs.replace(vm, disks=_with_last_chains(vm.disks, msgspec.convert(before.facts, HostVm).disks))
    if Vm.get_or_none(Vm.uuid == vm.uuid) is None:
        Vm.create(uuid=vm.uuid, **_columns(vm))
        events.append("vm.added", host=host, vm=vm.uuid, data={"name": vm.name})
    VmDefinition.insert(vm=vm.uuid, host=host, facts=vm).on_conflict(
        conflict_target=[VmDefinition.vm, VmDefinition.host], update={"facts": vm}
    ).execute()


def _with_last_chains(disks: list[Disk], before: list[Disk]) -> list[Disk]:
    """Return the disks, each that cannot be read now with the chain that it had: what it stands on is needed still."""
    last = {(disk.target, disk.path): disk.chain for disk in before}
    return [
        msgspec.structs.replace(disk, chain=last.get((disk.target, disk.path), []))
        if disk.problem is not None and not disk.chain
        else disk
        for disk in disks
    ]


def _settle(uuid: UUID, at: datetime | None, wanted: str | None = None) -> None:
    """Decide from all definitions where the VM is, and take over what that host says.

    Of several it is the ``wanted`` one, or else where it was before.
    """
    row = _row(uuid)
    found = {one.host_id: one.facts for one in VmDefinition.select().where(VmDefinition.vm == uuid)}
    if not found:
        changes: dict[str, Any] = {"host": None, "conflict": None, "state": "unknown"}
    else:
        host = next((one for one in (wanted, row.host_id) if one in found), min(found))
        changes = {"host": host, "conflict": ", ".join(sorted(found)) if len(found) > 1 else None}
        changes |= _columns(msgspec.convert(found[host], HostVm))
        if changes["conflict"] is None:
            _bring_frozen_files(uuid, host, msgspec.convert(found[host], HostVm))
    before = {"name": row.name, "host": row.host_id, "state": row.state, "conflict": row.conflict}
    told = {name: changes.get(name, was) for name, was in before.items()}
    if at is not None and found:
        changes["seen_at"] = at
    Vm.update(**changes).where(Vm.uuid == uuid).execute()
    if told != before:
        events.append("vm.changed" if found else "vm.gone", host=told["host"] or row.host_id, vm=uuid, data=told)


def _bring_frozen_files(uuid: UUID, host: str, facts: HostVm) -> None:
    """Reach a VM's frozen files on its one host, where that shows one of them below the VM: it was moved by hand."""
    elsewhere = (VolumeSnapshot.vm == uuid, VolumeSnapshot.host != host, ~VolumeSnapshot.merged)
    rows = {row.path for row in VolumeSnapshot.select(VolumeSnapshot.path).where(*elsewhere)}
    if rows & {image.path for disk in facts.disks for image in disk.chain}:
        VolumeSnapshot.update(host=host).where(VolumeSnapshot.vm == uuid).execute()


_SHOWN = ("name", "state", "firmware", "tpm", "managed_save", "nvram", "domain_xml")


def _disks(row: Vm) -> list[Disk]:
    return msgspec.convert(row.disks, list[Disk])


def _columns(vm: HostVm) -> dict[str, Any]:
    return {
        "name": vm.name,
        "state": vm.state,
        "firmware": vm.firmware,
        "tpm": vm.tpm,
        "managed_save": vm.managed_save,
        "disks": vm.disks,
        "nvram": vm.nvram,
        "domain_xml": vm.domain_xml,
    }


def _wires(rows: list[Vm]) -> list[wire.Vm]:
    uuids = [row.uuid for row in rows]
    current = {
        one.vm_id: one.uuid
        for one in Snapshot.select(Snapshot.uuid, Snapshot.vm).where(Snapshot.vm.in_(uuids), Snapshot.current)
    }
    files = host_files.shown({row.uuid: row.host_id for row in rows})
    origins = {one.vm: _origin(one) for one in Clone.select().where(Clone.vm.in_(uuids), Clone.state == "ready")}
    return [
        wire.Vm(
            uuid=row.uuid,
            name=row.name,
            host=row.host_id,
            state=row.state,
            firmware=row.firmware,
            tpm=row.tpm,
            managed_save=row.managed_save,
            conflict=row.conflict,
            current_snapshot=current.get(row.uuid),
            disks=msgspec.convert(row.disks, list[Disk]),
            host_files=files[row.uuid],
            clone=origins.get(row.uuid),
        )
        for row in rows
    ]


def _origin(row: Clone) -> CloneOrigin:
    return CloneOrigin(
        vm=row.source,
        snapshot=row.snapshot,
        mode=row.mode,
        tpm=row.tpm,
        started=row.started,
        created_at=row.created_at,
    )
