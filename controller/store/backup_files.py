"""Backup files: frozen copies of host files, one per owner and type."""

from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

from agent.wire import backup_file as wire
from agent.wire.base import utc_now
from agent.wire.host_file import HostFileType
from controller.db import read, write
from controller.errors import BackupFileNotFound, BackupFileOwned, OwnerReserved
from controller.models import BackupFile, Content, Snapshot, Vm
from controller.store import contents, events
from controller.store.contents import Held
from controller.store.paging import Slice, after_position, filtered, page_of

Position = tuple[datetime, UUID]


def replace(
    owner_kind: wire.OwnerKind,
    owner_uuid: UUID,
    copies: Mapping[HostFileType, Held],
    absent: Collection[HostFileType] = (),
) -> list[wire.BackupFile]:
    """Give one owner these copies in place of those it had of the same types; see replace_many."""
    return replace_many(owner_kind, [owner_uuid], copies, absent)[owner_uuid]


def replace_many(
    owner_kind: wire.OwnerKind,
    owners: Iterable[UUID],
    copies: Mapping[HostFileType, Held],
    absent: Collection[HostFileType] = (),
) -> dict[UUID, list[wire.BackupFile]]:
    """Give each owner these copies, all in one transaction: until it ends the old ones are what a reader finds.

    A copy keeps its UUID when its bytes are replaced. Types in ``absent`` are those that the VM does not have:
    an old copy of them goes. An old copy of a type that is in neither stays, since it may be the last good one.
    Raises OwnerReserved where an owner is a resource of another kind, ContentMissing.
    """
    with write():
        wanted = list(dict.fromkeys(owners))
        for owner in wanted:
            _check_owner(owner_kind, owner)
        held = {type_: (contents.hold(content), format_) for type_, (content, format_) in copies.items()}
        for owner in wanted:
            for type_, (sha256, format_) in held.items():
                _upsert(owner_kind, owner, type_, sha256, format_)
            _remove(BackupFile.owner_uuid == owner, BackupFile.type.in_(list(absent)))
        contents.sweep()
        return {owner: of_owner(owner) for owner in wanted}


def _upsert(owner_kind: str, owner: UUID, type_: str, sha256: str, format_: str) -> None:
    row = {"content": sha256, "format": format_, "created_at": utc_now()}
    BackupFile.insert(uuid=uuid4(), owner_kind=owner_kind, owner_uuid=owner, type=type_, **row).on_conflict(
        conflict_target=[BackupFile.owner_uuid, BackupFile.type], update=row
    ).execute()


def _check_owner(kind: wire.OwnerKind, owner: UUID) -> None:
    """Refuse to touch what belongs to a resource of another kind: a snapshot's files are frozen."""
    found: str | None = None
    if Snapshot.select().where(Snapshot.uuid == owner).exists():
        found = "snapshot"
    elif Vm.select().where(Vm.uuid == owner).exists():
        found = "vm"
    else:
        row = BackupFile.get_or_none(BackupFile.owner_uuid == owner)
        found = None if row is None else row.owner_kind
    if found not in {None, kind}:
        raise OwnerReserved(owner_uuid=owner, owner_kind=found)


def _remove(*where: object) -> int:
    """The one place that deletes backup files; without a condition it deletes none."""
    return int(BackupFile.delete().where(*where).execute()) if where else 0


def remove_owner(owner_kind: wire.OwnerKind, owner_uuid: UUID) -> int:
    """Remove exactly this owner's backup files, and the contents nobody else uses; return how many."""
    with write():
        gone = _remove(BackupFile.owner_kind == owner_kind, BackupFile.owner_uuid == owner_uuid)
        contents.sweep()
    return gone


def remove_external(uuid: UUID) -> wire.BackupFile:
    """Remove one backup file of an outside owner and return it. Raises BackupFileNotFound, BackupFileOwned."""
    with write():
        found = get(uuid)
        if found.owner_kind != "external":
            raise BackupFileOwned(backup_file=uuid, owner_kind=found.owner_kind, owner_uuid=found.owner_uuid)
        _remove(BackupFile.uuid == uuid)
        contents.sweep()
        events.append("backup-file.removed", data={"backup_file": uuid, "owner": found.owner_uuid})
    return found


def get(uuid: UUID) -> wire.BackupFile:
    """Return one. Raises BackupFileNotFound."""
    rows = _select().where(BackupFile.uuid == uuid)
    for row in rows:
        return _wire(row)
    raise BackupFileNotFound(backup_file=uuid)


def data(uuid: UUID) -> bytes:
    """Return its bytes, checked. Raises BackupFileNotFound, ContentMissing, ContentCorrupt."""
    with read():
        return contents.get(get(uuid).sha256)


def of_owner(owner_uuid: UUID) -> list[wire.BackupFile]:
    """Return an owner's backup files by type."""
    return [_wire(row) for row in _select().where(BackupFile.owner_uuid == owner_uuid).order_by(BackupFile.type)]


def page(
    limit: int,
    after: Position | None = None,
    *,
    owner: UUID | None = None,
    owner_kind: str | None = None,
    type: str | None = None,
) -> Slice[wire.BackupFile, Position]:
    """Return one page, oldest first."""
    query = _select()
    query = filtered(
        query, ((BackupFile.owner_uuid, owner), (BackupFile.owner_kind, owner_kind), (BackupFile.type, type))
    )
    query = after_position(query, (BackupFile.created_at, BackupFile.uuid), after)
    return page_of([_wire(row) for row in query.limit(limit + 1)], limit, lambda one: (one.created_at, one.uuid))


def _select() -> Any:
    return BackupFile.select(BackupFile, Content.sha256, Content.size_bytes).join(Content)


def _wire(row: BackupFile) -> wire.BackupFile:
    return wire.BackupFile(
        uuid=row.uuid,
        owner_kind=row.owner_kind,
        owner_uuid=row.owner_uuid,
        type=row.type,
        size_bytes=row.content.size_bytes,
        sha256=row.content_id,
        format=row.format,
        created_at=row.created_at,
    )
