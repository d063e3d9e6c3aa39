"""The newest copy of each VM's host files, per host, and whether the VM has run since it was taken.

All times here are this controller's clock: when it learned of a start, when it began to read. Hosts' clocks may
differ from it, and comparing the two could clear a mark that must stay. Our own may have been wrong for a while: which
of several hosts' copies is the newest, and whether the VM has run since, tells the order in which that was recorded.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from peewee import fn

from agent.wire.base import utc_now
from agent.wire.fleet import VmHostFile
from agent.wire.host_file import FORMATS, HostFileType
from controller.db import read, write
from controller.errors import HostFileNotHeld, VmNotFound
from controller.models import Clone, Content, HostFile, Vm
from controller.store import contents, events
from controller.store.contents import Held

#: A time further ahead of now than this was written before our clock was set back; a small step is no such thing.
_SET_BACK = timedelta(minutes=1)


@dataclass(frozen=True)
class Kept:
    """What is held of one host file on one host. ``sha256`` is None where no copy was ever taken."""

    host: str
    type: HostFileType
    sha256: str | None
    size_bytes: int | None
    path: str | None
    synced_at: datetime | None
    dirty_since: datetime | None
    reason: str | None
    #: Where in the order of all records the copy and the mark stand.
    synced_seq: int = 0
    dirty_seq: int = 0


def note_started(vm: UUID, host: str, at: datetime, types: Collection[HostFileType] = ()) -> None:
    """Mark the VM's host files on this host as older than the VM's state. Raises VmNotFound.

    ``types``: those that the VM has; by default what its firmware and TPM say. The mark only moves forward.
    A clone's firmware state is its own from now on.
    """
    with write():
        Clone.update(started=True).where(Clone.vm == vm).execute()
        wanted = set(types) | _types_of(vm) | {row.type for row in _rows(vm, host)}
        for type_ in sorted(wanted):
            row = _ensure(vm, host, type_)
            if row.dirty_since is None or row.dirty_since < at or _of_another_clock(row.dirty_since, at):
                _update(row, dirty_since=at, dirty_seq=_next_seq())


def record_sync(  # noqa: PLR0917 - a copy has these facts, in the order of the record
    vm: UUID,
    host: str,
    type: HostFileType,
    held: Held,
    path: str | None,
    began_at: datetime,
    *,
    clean: bool = True,
) -> bool:
    """Keep a copy whose reading began at ``began_at``; return False where a later one is held already.

    ``dirty_since`` is cleared only where it is older than ``began_at``: a start that came in between stays.
    ``clean=False``: the VM runs, so the copy is dirty from the beginning. Raises VmNotFound, ContentMissing.
    """
    with write():
        row = _ensure(vm, host, type)
        kept_at = row.synced_at
        if kept_at is not None and kept_at > began_at and not _of_another_clock(kept_at, began_at):
            return False
        sha256 = contents.hold(held[0])
        dirty_since, seq = row.dirty_since, _next_seq()
        marks: dict[str, Any] = {}
        if clean and dirty_since is not None and (dirty_since < began_at or _of_another_clock(dirty_since, began_at)):
            marks = {"dirty_since": None}
        elif not clean and dirty_since is None:
            marks = {"dirty_since": began_at, "dirty_seq": seq}
        _update(row, content=sha256, path=path, synced_at=began_at, synced_seq=seq, reason=None, **marks)
        contents.sweep()
    return True


def _of_another_clock(at: datetime, began_at: datetime) -> bool:
    """Tell whether a time was written before our clock was set back, and so before ``began_at`` by a right one."""
    now = utc_now()
    return at > now + _SET_BACK and began_at <= now


def moved(
    vm: UUID, host: str, others: Collection[str], brought: Mapping[HostFileType, str], brought_at: datetime
) -> None:
    """Record what a VM was brought to its new host with, and forget the copies of what was taken away from ``others``.

    A copy stays where none is held of the new host: it is the newest that there is. Raises VmNotFound, ContentMissing.
    """
    with write():
        for type_, sha256 in brought.items():
            record_sync(vm, host, type_, (sha256, FORMATS[type_]), None, brought_at)
        held = [row.type for row in _rows(vm, host) if row.content_id is not None]
        HostFile.delete().where(HostFile.vm == vm, HostFile.host.in_(others), HostFile.type.in_(held)).execute()
        contents.sweep()


def record_failure(vm: UUID, host: str, type: HostFileType, reason: str) -> None:
    """Record why no new copy could be taken; the old copy and its marks stay. Raises VmNotFound."""
    with write():
        _update(_ensure(vm, host, type), reason=reason)


def of_vm(vm: UUID) -> list[Kept]:
    """Return all copies of a VM's host files, on all hosts."""
    return [_kept(row) for row in _rows(vm)]


def newest(vm: UUID) -> dict[HostFileType, Kept]:
    """Return the copy of each type that was taken last, on whichever host."""
    found: dict[HostFileType, Kept] = {}
    for kept in of_vm(vm):
        if kept.sha256 is not None and kept.synced_at is not None:
            other = found.get(kept.type)
            if other is None or other.synced_seq < kept.synced_seq:
                found[kept.type] = kept
    return found


def data(vm: UUID, type: HostFileType) -> tuple[Kept, bytes]:
    """Return the copy that ``shown`` shows, with its bytes. Raises VmNotFound, HostFileNotHeld, ContentCorrupt."""
    with read():
        row = _vm(vm)
        chosen = _choose([kept for kept in of_vm(vm) if kept.type == type and kept.sha256], row.host_id)
        if chosen is None or chosen.sha256 is None:
            raise HostFileNotHeld(type=type, vm=row.name)
        return chosen, contents.get(chosen.sha256)


def shown(vms: Mapping[UUID, str | None]) -> dict[UUID, list[VmHostFile]]:
    """Return, for VMs and the hosts they are on, what is held: the copy of that host, else the newest of any."""
    by_vm: dict[UUID, list[Kept]] = {uuid: [] for uuid in vms}
    for row in _select().where(HostFile.vm.in_(list(vms))):
        by_vm[row.vm_id].append(_kept(row))
    result = {}
    for uuid, all_kept in by_vm.items():
        types = sorted({kept.type for kept in all_kept})
        chosen = (_choose([kept for kept in all_kept if kept.type == type_], vms[uuid]) for type_ in types)
        result[uuid] = [_wire(kept) for kept in chosen if kept is not None]
    return result


def best(vm: UUID, host: str | None) -> list[Kept]:
    """Return the copy of each type that a VM on this host has as its own: that host's, else the newest of any.

    Another host's is dirty too where the VM has run anywhere since it was taken.
    """
    found = of_vm(vm)
    result = []
    for type_ in sorted({kept.type for kept in found}):
        copies = [kept for kept in found if kept.type == type_]
        chosen = _choose(copies, host)
        if chosen is not None:
            result.append(chosen if chosen.host == host else _as_old_as_it_is(chosen, copies))
    return result


def arrivals(host: str) -> list[UUID]:
    """Return the VMs that this host alone defines, and whose host files are known from other hosts only."""
    here = HostFile.select(HostFile.vm).where(HostFile.host == host)
    elsewhere = HostFile.select(HostFile.vm).where(HostFile.host != host, HostFile.content.is_null(False))
    rows = Vm.select(Vm.uuid).where(Vm.host == host, Vm.conflict.is_null(), Vm.uuid.in_(elsewhere), ~Vm.uuid.in_(here))
    return [row.uuid for row in rows.order_by(Vm.uuid)]


def stale(vm: UUID, host: str, types: Iterable[HostFileType]) -> None:
    """Record that a host lacks these, and that the copies from elsewhere may be old; event ``vm.host-files-stale``."""
    with write():
        for type_ in types:
            record_failure(vm, host, type_, "it is not there, and the copy of another host may be older than the VM")
        events.append("vm.host-files-stale", host=host, vm=vm, data={"types": sorted(types)})


def unsaved(host: str) -> list[UUID]:
    """Return the shut-off VMs of a host with a host file that ran or could not be read since its last copy."""
    lost = HostFile.dirty_since.is_null(False) | HostFile.reason.is_null(False)
    rows = (
        HostFile.select(HostFile.vm)
        .join(Vm)
        .where(HostFile.host == host, Vm.host == host, Vm.state == "shut-off", lost)
    )
    return sorted({row.vm_id for row in rows})


def vms_with_copies() -> Any:
    """Return a subquery of the VMs of which a copy is held."""
    return HostFile.select(HostFile.vm).where(HostFile.content.is_null(False))


def forget(vm: UUID) -> int:
    """Remove all copies of one VM's host files; return how many."""
    with write():
        gone = int(HostFile.delete().where(HostFile.vm == vm).execute())
        contents.sweep()
    return gone


def _as_old_as_it_is(chosen: Kept, copies: Iterable[Kept]) -> Kept:
    ran = {one.dirty_since: one.dirty_seq for one in copies if one.dirty_since is not None}
    since = [at for at, seq in ran.items() if seq >= chosen.synced_seq or _came_in_between(at, chosen)]
    return replace(chosen, dirty_since=min(since)) if since else chosen


def _came_in_between(at: datetime, kept: Kept) -> bool:
    """Tell whether a start came after the reading of a copy began that was recorded after it."""
    began_at = kept.synced_at
    return began_at is not None and at >= began_at and not _of_another_clock(at, began_at)


def _choose(kept: Iterable[Kept], host: str | None) -> Kept | None:
    def worth(one: Kept) -> tuple[bool, bool, int]:
        return one.host == host and one.sha256 is not None, one.sha256 is not None, one.synced_seq

    return max(kept, key=worth, default=None)


def _vm(uuid: UUID) -> Vm:
    row = Vm.get_or_none(Vm.uuid == uuid)
    if row is None:
        raise VmNotFound(vm=uuid)
    return row


def _types_of(vm: UUID) -> set[HostFileType]:
    row = _vm(vm)
    types: set[HostFileType] = {"nvram"} if row.firmware == "uefi" else set()
    return types | ({"tpm"} if row.tpm is not None else set())


def _ensure(vm: UUID, host: str, type_: HostFileType) -> HostFile:
    _vm(vm)
    HostFile.insert(vm=vm, host=host, type=type_).on_conflict_ignore().execute()
    return HostFile.get(HostFile.vm == vm, HostFile.host == host, HostFile.type == type_)


def _next_seq() -> int:
    """Return the next place in the order of records."""
    last = HostFile.select(fn.MAX(HostFile.synced_seq), fn.MAX(HostFile.dirty_seq)).scalar(as_tuple=True)
    return 1 + max(0, *(one or 0 for one in last))


def _update(row: HostFile, **values: Any) -> None:
    HostFile.update(**values).where(HostFile.id == row.id).execute()


def _select() -> Any:
    query = HostFile.select(HostFile, Content.sha256, Content.size_bytes).join(Content, "LEFT OUTER JOIN")
    return query.order_by(HostFile.host, HostFile.type)


def _rows(vm: UUID, host: str | None = None) -> list[HostFile]:
    query = _select().where(HostFile.vm == vm)
    return list(query if host is None else query.where(HostFile.host == host))


def _kept(row: HostFile) -> Kept:
    return Kept(
        host=row.host,
        type=row.type,
        sha256=row.content_id,
        size_bytes=None if row.content is None else row.content.size_bytes,
        path=row.path,
        synced_at=row.synced_at,
        dirty_since=row.dirty_since,
        reason=row.reason,
        synced_seq=row.synced_seq,
        dirty_seq=row.dirty_seq,
    )


def _wire(kept: Kept) -> VmHostFile:
    return VmHostFile(
        type=kept.type,
        path=kept.path,
        size_bytes=kept.size_bytes,
        sha256=kept.sha256,
        synced_at=kept.synced_at,
        dirty_since=kept.dirty_since,
        reason=kept.reason,
    )
