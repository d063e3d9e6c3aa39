"""What the present state forbids."""

from agent.web.errors import Error


class Conflict(Error):
    """The present records forbid the change. Nothing was changed."""

    status, code, message = 409, "conflict", "{reason}; nothing was changed"


class HostUrlTaken(Conflict):
    """A host with this URL is enrolled under another name."""

    code, message = (
        "host-url-taken",
        "The agent at {url} is enrolled already, as {name}; nothing was changed. Twice, each of its VMs would be in "
        "conflict with itself",
    )


class HostIsAnother(Conflict):
    """The agent at a new address is not the one that was enrolled under this name."""

    code, message = (
        "host-is-another",
        "The agent at {url} is not the one that is enrolled as {name}; nothing was changed. Enrol it under a name of "
        "its own; where it has lost its state directory, take {name} out first: its snapshots and copies stay",
    )


class HostKept(Conflict):
    """Another controller works with the host."""

    code, message = (
        "host-kept",
        "Controller {controller} works with the host at {url} since {since}, and this one is {own}; nothing was "
        "changed. Remove the host there; where that controller is gone or gives it up, run on the host: "
        "coldframe-agent forget-controller",
    )


class HostFilesStale(Conflict):
    """The VM may have changed its host files since they were copied, on a host that cannot be asked."""

    code = "host-files-stale"
    message = (
        "The copy of the {types} of VM {vm} is from {synced_at}, {age} ago, and it has run since on host {host}, which "
        "cannot be reached: {reason}; nothing was changed. Bring that host back, or use the old copy with --force"
    )


class VmMayRun(Conflict):
    """The VM ran when its host was last seen, and that host cannot be asked."""

    code = "vm-may-run"
    message = (
        "VM {vm} was {state} on host {host} when that was last seen, and it cannot be reached: {reason}; nothing was "
        "changed. Bring that host back; where you know that the VM is off there, use --force"
    )


class HostExists(Conflict):
    """A host of this name is enrolled already."""

    code, message = (
        "host-exists",
        "A host {name} is enrolled already; nothing was changed. Remove it first or choose another name",
    )


class HostBusy(Conflict):
    """Operations of this host have not ended."""

    code = "host-busy"
    message = (
        "Host {name} has {count} operation(s) that have not ended; nothing was changed. Wait for them or cancel them"
    )


class VmAmbiguous(Conflict):
    """Several VMs have this name."""

    code, message = "vm-ambiguous", "Several VMs are named {name}: {uuids}; nothing was changed. Use the UUID"


class VmConflict(Conflict):
    """Several hosts define this VM, so its disks could be written from two sides."""

    code = "vm-conflict"
    message = (
        "VM {vm} is defined on several hosts: {hosts}; nothing was changed. Choose one with: coldframe vm place; where "
        "these are two names of one host, take one out instead: coldframe host remove"
    )


class VmNowhere(Conflict):
    """No enrolled host defines this VM."""

    code = "vm-nowhere"
    message = "VM {vm} is not defined on any enrolled host; nothing was changed. Define it, or place it on a host"


class VmBusy(Conflict):
    """Operations of this VM have not ended."""

    code = "vm-busy"
    message = "VM {vm} has {count} operation(s) that have not ended; nothing was changed. Wait for them or cancel them"


class VmDefined(Conflict):
    """The disks of a VM that a host defines are not removed."""

    code = "vm-defined"
    message = (
        "Host {host} defines VM {vm}; nothing was changed. Its disks are removed once it is undefined: virsh undefine "
        "--nvram {vm}"
    )


class DisksNotRemoved(Conflict):
    """The disks of a VM that was to be forgotten were not removed. ``host_code`` is the host's own code."""

    code, message = "disks-not-removed", "The disks of VM {vm} were not removed: {reason}. Its records are as they were"


class VmExists(Conflict):
    """The UUID given for a clone belongs to another VM."""

    code, message = "vm-exists", "VM {name} has the UUID {vm}; nothing was changed. Use a new UUID"


class VmKnown(Conflict):
    """The VM of an archive, or one of its name, is there already."""

    code = "vm-known"
    message = (
        "VM {name} ({vm}) is defined on host {host}; nothing was changed. "
        "Import it with a new identity (--as-new NAME), or undefine that one first"
    )


class ClonesFailed(Conflict):
    """Some of several clones could not be made. ``clones`` names those that were, ``failed`` the others."""

    code = "clones-failed"
    message = "{count} of {total} clones could not be made: {reasons}. Of these nothing is left, the others stand"


class SnapshotExists(Conflict):
    """The UUID given for a new snapshot is in use."""

    code, message = "snapshot-exists", "A resource with the UUID {snapshot} exists; nothing was changed. Use a new UUID"


class SnapshotBusy(Conflict):
    """Other work on this snapshot has not ended, or it never became whole."""

    code = "snapshot-busy"
    message = "Snapshot {snapshot} is {state}; nothing was changed. Wait for the work on it to end"


class SnapshotProtected(Conflict):
    """The snapshot is protected against deletion."""

    code = "snapshot-protected"
    message = (
        "Snapshot {snapshot} is protected; nothing was changed. "
        "Take the protection off first: coldframe snapshot unprotect {snapshot}"
    )


class FrozenFileHeld(Conflict):
    """Two snapshots hold one file: the VM was put back on a frozen file by hand, and then another was taken."""

    code = "frozen-file-held"
    message = (
        "Disk {target} of snapshot {snapshot} is the file {path}, which snapshot {other} holds too; "
        "nothing was changed. It cannot be merged away while both are there"
    )


class SnapshotPartlyDeleted(Conflict):
    """A deletion of the snapshot began and has not finished, so it no longer holds every disk."""

    code = "snapshot-partly-deleted"
    message = (
        "Disk(s) {targets} of snapshot {snapshot} are gone or written to, by a deletion that has not finished; "
        "nothing was changed. Repeat the deletion, or revert the other disks by name"
    )


class BackupFileOwned(Conflict):
    """The backup file belongs to a snapshot or a VM and goes with it."""

    code = "backup-file-owned"
    message = (
        "Backup file {backup_file} belongs to {owner_kind} {owner_uuid}; nothing was changed. It goes with its owner"
    )


class OwnerReserved(Conflict):
    """The UUID belongs to a resource of another kind, whose backup files must not be replaced this way."""

    code = "owner-reserved"
    message = "{owner_uuid} is a {owner_kind}, whose backup files are its own; nothing was changed. Use another owner"


class OperationNotCancellable(Conflict):
    """The operation has ended or is past the point where it can be undone."""

    code = "operation-not-cancellable"
    message = "Operation {operation} is {state} and cannot be cancelled; nothing was changed"


class OperationCancelled(Conflict):
    """The operation was cancelled before it changed anything."""

    code = "operation-cancelled"
    message = "Operation {operation} was cancelled; what it had begun was undone"


class IdempotencyConflict(Conflict):
    """The idempotency key was used before for a different request."""

    code = "idempotency-conflict"
    message = "The idempotency key {key} was used for a different request; nothing was changed. Use a new key"


class TokenExists(Conflict):
    """A token of this name is in force."""

    code, message = (
        "token-exists",
        "A token named {name} is in force; nothing was changed. Revoke it or choose another name",
    )


class RetentionDisabled(Conflict):
    """The retention policy is not in force."""

    code, message = "retention-disabled", "Retention policy {name} is disabled; nothing was changed. Enable it first"
