"""The kinds of operation by the name that the API shows: what runs each, and what plans it for a dry run."""

from collections.abc import Awaitable, Callable, Mapping

from agent.wire.plan import Plan
from controller.operations import (
    backup_host_files,
    clone,
    place,
    repair,
    restore_host_files,
    retention_apply,
    revert,
    snapshot_create,
    snapshot_delete,
    snapshot_export,
    snapshot_import,
    sync,
    ungroup,
    verify,
    verify_all,
)
from controller.operations.engine import Run
from controller.operations.job import Job

KINDS: Mapping[str, Run] = {
    "snapshot-create": snapshot_create.run,
    "snapshot-revert": revert.run,
    "snapshot-delete": snapshot_delete.run,
    "snapshot-export": snapshot_export.run,
    "snapshot-import": snapshot_import.run,
    "snapshot-clone": clone.run,
    "snapshot-ungroup": ungroup.run,
    "vm-clone": clone.run_of_vm,
    "snapshot-verify": verify.run,
    "fleet-verify": verify_all.run,
    "fleet-repair": repair.run,
    "retention-apply": retention_apply.run,
    "vm-sync": sync.run,
    "vm-backup-host-files": backup_host_files.run,
    "vm-place": place.run,
    "vm-restore-host-files": restore_host_files.run,
}

#: Each works as far as nothing is changed on a host; what it does to the records is taken back.
PLANS: Mapping[str, Callable[[Job], Awaitable[Plan]]] = {
    "snapshot-create": snapshot_create.plan,
    "snapshot-revert": revert.plan,
    "snapshot-delete": snapshot_delete.plan,
    "snapshot-export": snapshot_export.plan,
    "snapshot-import": snapshot_import.plan,
    "snapshot-clone": clone.plan,
    "snapshot-ungroup": ungroup.plan,
    "vm-clone": clone.plan_of_vm,
    "snapshot-verify": verify.plan,
    "retention-apply": retention_apply.plan,
    "vm-place": place.plan,
    "vm-restore-host-files": restore_host_files.plan,
    "fleet-verify": verify_all.plan,
    "fleet-repair": repair.plan,
    "vm-sync": sync.plan,
    "vm-backup-host-files": backup_host_files.plan,
}
