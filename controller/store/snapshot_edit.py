"""Changing what a person says of a snapshot: name, description, labels, protection. Nothing on a host changes."""

from typing import Any
from uuid import UUID

from agent.wire import snapshot as wire
from controller.db import write
from controller.models import Snapshot
from controller.store import events, snapshots


def edit(uuid: UUID, change: wire.EditSnapshot) -> wire.Snapshot:
    """Take over what the change names; event ``snapshot.changed`` where anything is another. Raises SnapshotNotFound.

    The protection of a snapshot whose deletion has begun comes too late for the disks that are merged; it still
    keeps what is left from being deleted by the next try.
    """
    asked: dict[str, Any] = {
        "name": change.name,
        "description": change.description,
        "labels": change.labels,
        "protected": change.protected,
    }
    with write():
        row = snapshots.row_of(uuid)
        changes = {name: value for name, value in asked.items() if value is not None and value != getattr(row, name)}
        if changes:
            Snapshot.update(**changes).where(Snapshot.uuid == uuid).execute()
            told = {"snapshot": uuid, "name": changes.get("name", row.name), "changed": sorted(changes)}
            events.append("snapshot.changed", vm=row.vm_id, data=told)
        return snapshots.get(uuid)
