"""Clones: what a VM was made of, and its seed: the host files that it was given for its first start.

A row is ``creating`` from before the host is told to commit until its end is known, then ``ready``. It names VMs and
snapshots by UUID alone, for it outlives them; it goes when the clone itself is forgotten.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

from agent.wire.clone import CloneMode, TpmChoice
from agent.wire.host_file import HOST_FILE_TYPES, HostFileFormat, HostFileType
from agent.wire.vm import Disk, HostVm
from controller.db import read, write
from controller.errors import VmExists
from controller.models import Clone, Content, Vm
from controller.store import backup_files, events, vms
from controller.store.contents import Held

#: Hash and format of each host file that a clone was given.
Seeds = Mapping[HostFileType, tuple[str, HostFileFormat]]


@dataclass(frozen=True, kw_only=True)
class NewClone:
    """What is written before the host is told to commit. ``result`` is what the operation will say of it."""

    vm: UUID
    name: str
    source: UUID
    snapshot: UUID
    host: str
    mode: CloneMode
    tpm: TpmChoice
    operation: UUID
    transaction: UUID
    seeds: Seeds
    result: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Unfinished:
    """A clone whose end is not known: the operation that was to make it, and its transaction."""

    vm: UUID
    operation: UUID
    transaction: UUID


@dataclass(frozen=True, kw_only=True)
class Made:
    """One disk of a linked clone as it was made: the clone's own file, and the frozen file that it stood on."""

    vm: UUID
    host: str
    path: str
    stands_on: str


class Seed(msgspec.Struct, kw_only=True, frozen=True):
    """What a clone that never started has: ``held`` host files by hash; ``blank`` types come to be at its start."""

    held: dict[HostFileType, tuple[str, HostFileFormat]]
    blank: list[HostFileType]


def begin(new: NewClone) -> None:
    """Write a clone as ``creating``, in place of what was known of an earlier VM of its UUID. Again: no effect."""
    with write():
        row = Clone.get_or_none(Clone.vm == new.vm)
        if row is not None and row.transaction == new.transaction:
            return
        Clone.delete().where(Clone.vm == new.vm).execute()
        values = {field: getattr(new, field) for field in NewClone.__dataclass_fields__}
        Clone.create(**values, state="creating")


def ready(vm: UUID, transaction: UUID, facts: HostVm | None, at: datetime) -> None:
    """Record that the host made it, with its seed; event ``clone.ready``. Again: no effect.

    ``facts`` are what its host says of it, None where that could not be asked: the next inventory brings them.
    """
    with write():
        row = _row(vm, transaction)
        if row is None or row.state == "ready":
            return
        if facts is not None:
            vms.record_one(row.host, facts, at)
        else:
            vms.announce(vm, row.name, row.host)
        backup_files.replace("vm", vm, _held(row), absent=[one for one in HOST_FILE_TYPES if one not in row.seeds])
        Clone.update(state="ready").where(Clone.vm == vm).execute()
        data = {"name": row.name, "source": row.source, "snapshot": row.snapshot, "mode": row.mode, "tpm": row.tpm}
        events.append("clone.ready", host=row.host, vm=vm, data=data)


def undone(vm: UUID, transaction: UUID) -> None:
    """Record that nothing came of it. Again, and for one that is ready: no effect."""
    with write():
        row = _row(vm, transaction)
        if row is not None and row.state == "creating":
            Clone.delete().where(Clone.vm == vm).execute()


def made_by(vm: UUID, transaction: UUID) -> dict[str, Any] | None:
    """Return the result of a clone that this transaction made."""
    row = _row(vm, transaction)
    return None if row is None or row.state != "ready" else dict(row.result)


def made_before(snapshot: UUID, name: str, mode: CloneMode, tpm: TpmChoice, vm: UUID | None) -> dict[str, Any] | None:
    """Return the result of the same clone, where it was made before and a host still defines it.

    Raises VmExists where ``vm`` is given and another VM has it.
    """
    with read():
        if vm is not None:
            taken = Vm.get_or_none(Vm.uuid == vm, Vm.host.is_null(False))
            row = Clone.get_or_none(Clone.vm == vm, Clone.state == "ready")
            same = row is not None and (row.snapshot, row.name, row.mode, row.tpm) == (snapshot, name, mode, tpm)
            if taken is not None and not same:
                raise VmExists(vm=vm, name=taken.name)
            return dict(row.result) if taken is not None and row is not None else None
        wanted = (Clone.snapshot == snapshot, Clone.name == name, Clone.mode == mode, Clone.tpm == tpm)
        rows = Clone.select().where(*wanted, Clone.state == "ready").order_by(Clone.created_at)
        for row in rows:
            if Vm.get_or_none(Vm.uuid == row.vm, Vm.name == name, Vm.host.is_null(False)) is not None:
                return dict(row.result)
    return None


def made_of_vm(
    source: UUID, names: list[str], mode: CloneMode, tpm: TpmChoice
) -> tuple[UUID, list[dict[str, Any]]] | None:
    """Return the results of clones of one VM with these names that a host defines, and their snapshot; or None."""
    wanted = (Clone.source == source, Clone.mode == mode, Clone.tpm == tpm, Clone.state == "ready")
    with read():
        rows = {row.name: row for row in Clone.select().where(*wanted, Clone.name.in_(names))}
        there = {row.uuid for row in Vm.select().where(Vm.name.in_(names), Vm.host.is_null(False))}
    found = [rows[name] for name in names if name in rows and rows[name].vm in there]
    if not names or len(found) < len(names):
        return None
    return found[0].snapshot, [dict(row.result) for row in found]


def unfinished(source: UUID, but: UUID) -> list[Unfinished]:
    """Return the clones of a VM's snapshots whose end is not known, leaving out those of the operation ``but``."""
    rows = Clone.select().where(Clone.source == source, Clone.state == "creating", Clone.operation != but)
    return [Unfinished(vm=row.vm, operation=row.operation, transaction=row.transaction) for row in rows]


def unsettled_vms(host: str) -> list[UUID]:
    """Return the VMs of a host with a clone of theirs whose end is not known."""
    rows = Clone.select(Clone.source).join(Vm, on=(Clone.source == Vm.uuid))
    return sorted({row.source for row in rows.where(Clone.state == "creating", Vm.host == host)})


def seed_of(vm: UUID) -> Seed | None:
    """Return what a VM that is a clone, and was never started, was given; None for any other VM."""
    with read():
        row = Clone.get_or_none(Clone.vm == vm, Clone.state == "ready", ~Clone.started)
        if row is None:
            return None
        held = {one.type: (one.sha256, one.format) for one in backup_files.of_owner(vm) if one.owner_kind == "vm"}
        return Seed(held=held, blank=["tpm"] if row.tpm == "reset" else [])


def seed_for(vm: UUID) -> Seed:
    """Return what a clone that never started is to have where it has nothing yet; nothing for any other VM."""
    return seed_of(vm) or Seed(held={}, blank=[])


def made_on() -> list[Made]:
    """Return the files of linked clones, as they were made, that no look at a host has shown or can show now.

    One that was looked at stands where its facts say: it may have been snapshotted, merged or removed since. Where
    a host defines it and cannot read one of its disks (a file system is not mounted) they say nothing.
    """
    seen = {row.uuid: row.host_id is not None and _is_unreadable(row) for row in _looked_at()}
    rows = Clone.select().where(Clone.mode == "linked").order_by(Clone.created_at)
    return [
        Made(vm=row.vm, host=row.host, path=disk["path"], stands_on=disk["stands_on"])
        for row in rows
        if seen.get(row.vm, True)
        for disk in row.result.get("disks", [])
        if disk["stands_on"] is not None
    ]


def _looked_at() -> Iterable[Vm]:
    rows: Iterable[Vm] = Vm.select(Vm.uuid, Vm.host, Vm.disks).where(Vm.seen_at.is_null(False))
    return rows


def _is_unreadable(row: Vm) -> bool:
    disks = msgspec.convert(row.disks, list[Disk])
    return any(disk.path is not None and disk.excluded_because is None and not disk.chain for disk in disks)


def _row(vm: UUID, transaction: UUID) -> Clone | None:
    row: Clone | None = Clone.get_or_none(Clone.vm == vm, Clone.transaction == transaction)
    return row


def _held(row: Clone) -> dict[HostFileType, Held]:
    """Return the seed as far as its bytes are still there: the snapshot may have been forgotten meanwhile."""
    seeds = msgspec.convert(row.seeds, dict[HostFileType, tuple[str, HostFileFormat]])
    there = {
        one.sha256 for one in Content.select(Content.sha256).where(Content.sha256.in_([s for s, _ in seeds.values()]))
    }
    return {type_: (sha256, format_) for type_, (sha256, format_) in seeds.items() if sha256 in there}
