"""The kinds of operation by the name that the API shows."""

from collections.abc import Mapping

from controller.operations import (
    backup_host_files,
    clone,
    place,
    repair,
    restore_host_files,
    revert,
    snapshot_create,
    snapshot_delete,
    sync,
    ungroup,
    verify,
    verify_all,
)
from controller.operations.engine import Run

KINDS: Mapping[str, Run] = {
    "snapshot-create": snapshot_create.run,
    "snapshot-revert": revert.run,
    "snapshot-delete": snapshot_delete.run,
    "snapshot-clone": clone.run,
    "snapshot-ungroup": ungroup.run,
    "vm-clone": clone.run_of_vm,
    "snapshot-verify": verify.run,
    "fleet-verify": verify_all.run,
    "fleet-repair": repair.run,
    "vm-sync": sync.run,
    "vm-backup-host-files": backup_host_files.run,
    "vm-place": place.run,
    "vm-restore-host-files": restore_host_files.run,
}
