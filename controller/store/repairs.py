"""Removing what belongs to nothing: rows that no owner's removal will ever reach."""

from typing import Any

from agent.wire.backup_file import OwnerKind
from controller.db import write
from controller.models import BackupFile, Snapshot, Vm
from controller.store import backup_files, contents


def remove_ownerless() -> int:
    """Remove backup files whose snapshot or VM is gone, and contents that nothing refers to; return how many rows."""
    with write():
        count = 0
        owned: tuple[tuple[OwnerKind, Any], ...] = (("snapshot", Snapshot), ("vm", Vm))
        for kind, model in owned:
            owners = BackupFile.select(BackupFile.owner_uuid).where(BackupFile.owner_kind == kind).distinct()
            lost = owners.where(BackupFile.owner_uuid.not_in(model.select(model.uuid)))
            for row in list(lost):
                count += backup_files.remove_owner(kind, row.owner_uuid)
        return count + contents.sweep()
