"""Deletions that the controller itself asks for: by retention, and of undo points that a newer one has replaced.

They are operations like any other, with a reason that is looked at again when their turn comes.
"""

from typing import Literal
from uuid import UUID

from agent.wire.operation import Operation as WireOperation
from controller.db import read
from controller.errors import SnapshotNotFound
from controller.models import Operation, Snapshot
from controller.store import operations, snapshots

Because = Literal["retention", "superseded"]
_KIND = "snapshot-delete"


def under_way(vm: UUID) -> dict[UUID, Operation]:
    """Return the deletions of a VM's snapshots that have not ended, by snapshot; a person's goes before our own."""
    rows = Operation.select().where(
        Operation.vm == vm, Operation.kind == _KIND, Operation.state.in_(["queued", "running"])
    )
    return {UUID(row.request["snapshot"]): row for row in sorted(rows, key=by_retention, reverse=True)}


def by_retention(row: Operation) -> bool:
    """Return whether retention asked for it."""
    return bool(row.request.get("because") == "retention")


def ask(snapshot: UUID, vm: UUID, host: str | None, because: Because, key: str) -> WireOperation:
    """Queue the deletion of a snapshot, once for each key. Call inside ``write()``."""
    return operations.enqueue(_KIND, vm, host, {"snapshot": str(snapshot), "because": because}, key=key)


def retire(vm: UUID, host: str, older: list[UUID], operation: UUID) -> list[UUID]:
    """Queue the deletion of undo points that a revert (``operation``) has replaced; return the deletions.

    One that is being deleted already is not asked for again. Call inside ``write()``.
    """
    known = under_way(vm)
    return [
        known[uuid].uuid if uuid in known else ask(uuid, vm, host, "superseded", f"retire {operation} {uuid}").uuid
        for uuid in older
    ]


def is_superseded(snapshot: UUID) -> bool:
    """Return whether a snapshot is an undo point and its VM has a newer one."""
    with read():
        try:
            row = snapshots.row_of(snapshot)
        except SnapshotNotFound:
            return True  # the deletion itself says that it is gone
        newer = Snapshot.select().where(Snapshot.vm == row.vm_id, Snapshot.automatic, Snapshot.seq > row.seq)
        return row.automatic and newer.exists()
