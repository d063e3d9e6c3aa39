"""What must hold after every transaction. Tests ask after each case; ``doctor`` can ask at any time."""

from collections.abc import Callable, Iterator
from uuid import UUID

from peewee import SqliteDatabase, fn

from controller.db import read
from controller.models import BackupFile, Clone, Content, HostFile, Operation, Snapshot, Vm, VolumeSnapshot, database
from controller.store import bases, operations


def orphans() -> list[str]:
    """Return what belongs to nothing or contradicts itself, one sentence each; empty when all is well."""
    checks: tuple[Callable[[], Iterator[str]], ...] = (
        _contents,
        _backup_files,
        _groups,
        _trees,
        _clones,
        _operations,
        _keys,
    )
    with read():
        return [sentence for check in checks for sentence in check()]


def unsettled() -> list[str]:
    """Return snapshots and clones on which work began and none of their VM's operations is open to end it."""
    with read():
        begun = Snapshot.select().where(Snapshot.state.in_(["creating", "reverting", "deleting"]))
        clones = Clone.select().where(Clone.state == "creating")
        return [
            f"snapshot {row.uuid} is {row.state} and no operation works on it"
            for row in begun
            if not operations.open_count(vm=row.vm_id, parked=False)
        ] + [
            f"clone {row.vm} is creating and no operation works on it"
            for row in clones
            if not operations.open_count(vm=row.source, parked=False)
        ]


def idle_bases() -> list[VolumeSnapshot]:
    """Return the hidden bases on which nothing stands, oldest first: whatever stood there is gone without our doing.

    An operation that removes the last file on a base removes the base; a clone can go behind our back.
    """
    with read():
        found = VolumeSnapshot.select().where(VolumeSnapshot.hidden).order_by(VolumeSnapshot.id)
        occupied = bases.occupied((row.host, row.path) for row in found)
        return [row for row in found if (row.host, row.path) not in occupied]


def _contents() -> Iterator[str]:
    used = {row.content_id for row in HostFile.select(HostFile.content)}
    used |= {row.content_id for row in BackupFile.select(BackupFile.content)}
    held = {row.sha256 for row in Content.select(Content.sha256)}
    yield from (f"content {sha256} belongs to nothing" for sha256 in sorted(held - used))
    yield from (f"content {sha256} is used and not there" for sha256 in used - held - {None})


def _backup_files() -> Iterator[str]:
    vms = {row.uuid for row in Vm.select(Vm.uuid)}
    snapshots = {row.uuid for row in Snapshot.select(Snapshot.uuid)}
    for row in BackupFile.select():
        known = {"snapshot": row.owner_uuid in snapshots, "vm": row.owner_uuid in vms}
        if row.owner_kind == "external":
            if any(known.values()):
                yield f"backup file {row.uuid} calls {row.owner_uuid} external"
        elif not known.get(row.owner_kind, False):
            yield f"backup file {row.uuid} has lost its {row.owner_kind} {row.owner_uuid}"


def _groups() -> Iterator[str]:
    groups = {row.uuid for row in Snapshot.select(Snapshot.uuid)}
    for volume in VolumeSnapshot.select():
        if volume.hidden != (volume.snapshot_id is None):
            yield f"volume {volume.path} is hidden and has a snapshot, or neither"
        elif not volume.hidden and volume.snapshot_id not in groups:
            yield f"volume {volume.path} has lost its snapshot {volume.snapshot_id}"
    for row in Snapshot.select().where(Snapshot.state != "failed"):
        held = {one.type for one in BackupFile.select().where(BackupFile.owner_uuid == row.uuid)}
        wanted = set(row.expected)
        if row.host_files_state == "complete" and held != wanted:
            yield f"snapshot {row.uuid} is called complete, holds {sorted(held)} and should hold {sorted(wanted)}"
        if row.ungrouped and held:
            yield f"snapshot {row.uuid} is ungrouped and still has backup files"


def _trees() -> Iterator[str]:
    rows = {row.uuid: row for row in Snapshot.select()}
    standing = Snapshot.select(Snapshot.vm).where(Snapshot.current).group_by(Snapshot.vm)
    for row in standing.having(fn.COUNT(Snapshot.uuid) > 1):
        yield f"VM {row.vm_id} stands on several snapshots"
    for uuid, row in rows.items():
        if row.parent_id is not None and row.parent_id not in rows:
            yield f"snapshot {uuid} has lost its parent {row.parent_id}"
        elif row.parent_id is not None and rows[row.parent_id].vm_id != row.vm_id:
            yield f"snapshot {uuid} has a parent of another VM"
        if _goes_round(uuid, rows):
            yield f"snapshot {uuid} is its own ancestor"


def _goes_round(uuid: UUID, rows: dict[UUID, Snapshot]) -> bool:
    seen: set[UUID] = set()
    at: UUID | None = uuid
    while at is not None and at in rows and at not in seen:
        seen.add(at)
        at = rows[at].parent_id
    return at in seen


def _clones() -> Iterator[str]:
    known = {row.uuid for row in Vm.select(Vm.uuid)}
    for row in Clone.select().where(Clone.state == "ready"):
        if row.vm not in known:
            yield f"clone {row.vm} is recorded and no such VM is known"


def _operations() -> Iterator[str]:
    for row in Operation.select():
        ended = row.state not in {"queued", "running"}
        if ended != (row.ended_at is not None):
            yield f"operation {row.uuid} is {row.state} and its end is {row.ended_at}"
        if row.state == "failed" and row.error is None:
            yield f"operation {row.uuid} failed without a reason"
        if row.state != "running" and row.owner is not None:  # one that runs may have been left by its owner
            yield f"operation {row.uuid} is {row.state} and its owner is {row.owner}"


def _keys() -> Iterator[str]:
    """Foreign keys as SQLite itself sees them; PostgreSQL never stores a broken one."""
    if isinstance(database.obj, SqliteDatabase):
        for table, rowid, parent, _ in database.execute_sql("PRAGMA foreign_key_check").fetchall():
            yield f"row {rowid} of {table} refers to no row of {parent}"
