"""The controller's errors.

::

    Error
    ├── NotFound                     404
    │   ├── HostNotFound  VmNotFound  SnapshotNotFound  BackupFileNotFound  HostFileNotHeld
    │   ├── OperationNotFound  TokenNotFound
    │   └── ContentMissing           500  a record names bytes that are not there
    ├── Conflict                     409  nothing was changed
    │   ├── HostExists  HostUrlTaken  HostBusy
    │   ├── VmAmbiguous  VmConflict  VmNowhere  VmBusy  VmExists  ClonesFailed
    │   ├── SnapshotExists  SnapshotBusy  SnapshotProtected  SnapshotPartlyDeleted  FrozenFileHeld
    │   ├── BackupFileOwned  OwnerReserved
    │   ├── OperationNotCancellable  OperationCancelled  IdempotencyConflict
    │   └── TokenExists
    ├── HostUnreachable              502
    │   ├── HostTimeout              504
    │   └── OutcomeUnknown           504  commit was sent and the host does not say how it ended
    ├── AgentRefusedToken            422
    ├── TransactionAborted           409  the host undid the work
    ├── HostFileTooLarge             413
    ├── CaptureCorrupt               502  other bytes arrived than the host announced
    ├── HostFilesMissing             409  some of a VM's host files cannot be had
    ├── DisksNotDeleted              500  some disks of a snapshot could not be merged away
    ├── NameInvalid                  422
    ├── NotYetSupported              501  says what to do instead
    ├── ContentCorrupt               500  stored bytes no longer have their hash
    └── DatabaseFailed               503  it refused to read or write
        ├── DatabaseUnusable         500  it cannot be opened at all
        └── DatabaseTooNew           500  a newer controller has migrated it
"""

from agent.web.errors import Error


class NotFound(Error):
    """The thing asked for does not exist."""

    status, code, message = 404, "not-found", "{what} does not exist"


class HostNotFound(NotFound):
    """No host of this name is enrolled."""

    code, message = "host-not-found", "No host {name} is enrolled; see: coldframe host list"


class VmNotFound(NotFound):
    """No VM has this UUID or name."""

    code, message = "vm-not-found", "No VM {vm} is known; see: coldframe vm list"


class SnapshotNotFound(NotFound):
    """No snapshot has this UUID."""

    code, message = "snapshot-not-found", "No snapshot {snapshot} exists; see: coldframe snapshot list"


class BackupFileNotFound(NotFound):
    """No backup file has this UUID."""

    code, message = "backup-file-not-found", "No backup file {backup_file} exists; see: coldframe backup list"


class HostFileNotHeld(NotFound):
    """The controller holds no copy of this host file."""

    code = "host-file-not-held"
    message = "No copy of the {type} of VM {vm} is held; take one with: coldframe vm sync {vm}"


class OperationNotFound(NotFound):
    """No operation has this UUID."""

    code, message = "operation-not-found", "No operation {operation} exists; see: coldframe operation list"


class TokenNotFound(NotFound):
    """No token has this UUID, or it was revoked."""

    code, message = "token-not-found", "No token {token} is in force; see: coldframe token list"


class ContentMissing(NotFound):
    """A record names bytes that the database does not hold."""

    status, code = 500, "content-missing"
    message = "The bytes {sha256} are not in the database; restore it from a backup, or take a new copy"


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
        "VM {vm} is defined on several hosts: {hosts}; nothing was changed. Undefine it on all but one; where "
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


class VmExists(Conflict):
    """The UUID given for a clone belongs to another VM."""

    code, message = "vm-exists", "VM {name} has the UUID {vm}; nothing was changed. Use a new UUID"


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
    message = "Snapshot {snapshot} is protected; nothing was changed. Take the protection off first"


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


class HostUnreachable(Error):
    """The agent of a host does not answer."""

    status, code = 502, "host-unreachable"
    message = (
        "Host {name} cannot be reached: {reason}; nothing is known to have changed. Check its agent and the network"
    )


class HostTimeout(HostUnreachable):
    """The agent of a host did not answer in time."""

    status, code = 504, "host-timeout"
    message = "Host {name} did not answer within {timeout_s} s; the work is resumed or undone when it answers again"


class OutcomeUnknown(HostUnreachable):
    """Commit was sent, and the host has not said how it ended."""

    status, code = 504, "outcome-unknown"
    message = (
        "Host {name} was told to commit transaction {transaction} and has not said how it ended: {reason}. "
        "The records are brought in line when it answers again, before any other work on this VM"
    )


class AgentRefusedToken(Error):
    """The agent answers, and does not know this token."""

    status, code = 422, "agent-refused-token"
    message = (
        "The agent at {url} refuses the token given for host {name}; nothing was changed. "
        "Give the secret that is in its token_file"
    )


class TransactionAborted(Error):
    """The host undid the transaction."""

    status, code = 409, "transaction-aborted"
    message = "Host {name} undid transaction {transaction}; everything is as it was. Try again"


class HostFileTooLarge(Error):
    """A host file is above the controller's limit."""

    status, code = 413, "host-file-too-large"
    message = "The {type} has {size_bytes} bytes, the limit is {limit_bytes}; it was not used and nothing was changed"


class CaptureCorrupt(Error):
    """The bytes that arrived are not those that the host announced."""

    status, code = 502, "capture-corrupt"
    message = "The {type} that arrived has SHA-256 {found}, not {expected}; it was not used and nothing was changed"


class HostFilesMissing(Error):
    """Some of the VM's host files cannot be had, so there is no whole set to keep."""

    status, code = 409, "host-files-missing"
    message = "No backup of VM {vm} was made, and no older one replaced: its {types} cannot be had. {reason}"


class DisksNotDeleted(Error):
    """Some disks of the snapshot could not be merged away."""

    status, code = 500, "disks-not-deleted"
    message = (
        "Disk(s) {targets} of snapshot {snapshot} could not be deleted: {reason}. The snapshot and its backup files "
        "are kept; repeat the deletion to finish it"
    )


class NameInvalid(Error):
    """A name breaks the rules for names."""

    status, code, message = 422, "name-invalid", "{kind} name {name!r} is refused: {reason}; nothing was changed"


class NotYetSupported(Error):
    """This version cannot do what was asked for."""

    status, code = 501, "not-yet-supported"
    message = "{what} is not supported by this version; nothing was changed. {instead}"


class ContentCorrupt(Error):
    """Stored bytes no longer have the hash they were stored under."""

    status, code = 500, "content-corrupt"
    message = (
        "The stored bytes {sha256} are damaged ({reason}) and were not used; restore the database, or take a new copy"
    )


class DatabaseFailed(Error):
    """The database refused to read or write."""

    status, code, message = (
        503,
        "database-failed",
        "The database failed: {reason}; what was begun was undone. Try again",
    )


class DatabaseUnusable(DatabaseFailed):
    """The database cannot be opened."""

    status, code, message = 500, "database-unusable", "The database {url} cannot be used: {reason}"


class DatabaseTooNew(DatabaseFailed):
    """A newer controller has migrated this database."""

    status, code = 500, "database-too-new"
    message = (
        "The database holds migrations that this version does not know: {unknown}; nothing was changed. "
        "Install the version that made them, or restore a database from before"
    )
