"""The agent's errors.

::

    Error
    ├── NotFound                     404
    │   ├── DomainNotFound
    │   ├── HostFileNotFound
    │   └── TransactionNotFound
    ├── Refused                      409  nothing was touched
    │   ├── DomainRunning  DomainPaused  DomainStarting  DomainTransient  DomainManagedSave
    │   ├── DomainBusy               another transaction holds the guard
    │   ├── DomainUnreadable  DomainExists  DomainNameRefused
    │   ├── DiskUnsupported  DiskUnknown  DiskMoved  DiskDetached  DiskAttached
    │   ├── ImageRefused             outside the allowed directories, hostile header, missing backing file …
    │   ├── InternalSnapshot  ChainTooDeep  ImageInUse  FrozenFileAltered
    │   ├── HostFileMissing  HostFileDamaged  HostFileTooLarge  HostFileNotUploaded  HostFileShared  HostFileInUse
    │   ├── HostFileUnsupported  SnapshotHasChildren
    │   └── TransactionMismatch  TransactionEnded  LeaseExpired  AgentRestarted
    ├── Recorded                     as recorded
    ├── HashMismatch                 422
    ├── ArchiveRefused               422
    ├── NoSpace                      507
    ├── StorageFailed                500  the operating system refused a read or write
    ├── HookLockHeld                 503  the lock shared with the hook was not free in time
    ├── QemuImgFailed                500
    ├── ToolFailed                   500  an outside command cannot be run, or answers without end
    ├── HypervisorRefused            500  libvirt said no
    ├── EventsLost                   500
    └── HypervisorUnavailable        503
        └── HypervisorTimeout        504
"""

from agent.web import errors as web_errors
from agent.web.errors import Error
from agent.wire.problem import Problem

#: 412: the thing was changed since the version that the caller saw. Both daemons raise it.
PreconditionFailed = web_errors.PreconditionFailed


class NotFound(Error):
    """The thing asked for does not exist."""

    status, code, message = 404, "not-found", "{what} does not exist"


class DomainNotFound(NotFound):
    """This host defines no such domain."""

    code, message = "domain-not-found", "This host defines no domain {vm}; see: virsh list --all"


class HostFileNotFound(NotFound):
    """The domain has no host file of this type."""

    code, message = "host-file-not-found", "Domain {name} has no {type} on this host; nothing was touched"


class TransactionNotFound(NotFound):
    """The agent knows no such transaction, or has forgotten its outcome after 30 days."""

    code, message = "transaction-not-found", "Transaction {id} is not known to this agent"


class Refused(Error):
    """The present state forbids the work. Nothing was touched."""

    status, code, message = 409, "refused", "{reason}; nothing was touched"


class DomainRunning(Refused):
    """The work needs the domain to be shut off."""

    code = "domain-running"
    message = "Domain {name} is running; nothing was touched. Shut it down first: virsh shutdown {name}"


class DomainPaused(Refused):
    """The work needs the domain to be shut off, and it is paused."""

    code = "domain-paused"
    message = "Domain {name} is paused; nothing was touched. Resume it and shut it down first: virsh resume {name}"


class DomainStarting(Refused):
    """The domain was being started at this moment."""

    code = "domain-starting"
    message = "Domain {name} is being started; nothing was touched. Shut it down, then try again"


class DomainTransient(Refused):
    """A transient domain has no definition to switch."""

    code = "domain-transient"
    message = "Domain {name} is transient; nothing was touched. Make it persistent first: virsh define FILE"


class DomainManagedSave(Refused):
    """A managed-save image would write into the frozen disks when the domain resumes."""

    code = "domain-managed-save"
    message = (
        "Domain {name} has a managed-save image; nothing was touched. Start it and shut it down, "
        "or drop its saved memory: virsh managedsave-remove {name}"
    )


class DomainBusy(Refused):
    """Another transaction is at work on this domain."""

    code = "domain-busy"
    message = (
        "Domain {name} is held by {kind} transaction {transaction} since {since}; nothing was touched. "
        "Wait for it to end, or see: coldframe-agent transactions"
    )


class DomainUnreadable(Refused):
    """The domain's definition is not one that can be worked with."""

    code, message = "domain-unreadable", "Domain {name} cannot be worked with: {reason}; nothing was touched"


class DomainExists(Refused):
    """The name or UUID of a domain that is to be made is taken."""

    code, message = "domain-exists", "This host defines {name} ({vm}) already; nothing was touched. Choose another name"


class DomainNameRefused(Refused):
    """A domain cannot have this name."""

    code, message = "domain-name-refused", "A domain cannot be called {name!r}: {reason}; nothing was touched"


class DiskUnsupported(Refused):
    """A disk that an offline qcow2 snapshot cannot cover was not excluded."""

    code = "disk-unsupported"
    message = "Disk {target} of {name} cannot be covered: {reason}; nothing was touched. Exclude it by name to go on"


class DiskUnknown(Refused):
    """A disk was named that the domain does not have."""

    code, message = "disk-unknown", "Domain {name} has no disk {target}; nothing was touched. It has: {targets}"


class DiskMoved(Refused):
    """A disk's source is no longer the file that the work was planned for."""

    code = "disk-moved"
    message = "Disk {target} of {name} now stands on {found}, not on {expected}; everything was left as it was"


class DiskDetached(Refused):
    """A disk that belongs to the snapshot is no longer part of the domain."""

    code = "disk-detached"
    message = "Disk {target} belongs to the snapshot but {name} no longer has it; nothing was touched. Attach it again"


class DiskAttached(Refused):
    """The domain has a disk that the snapshot does not know."""

    code = "disk-attached"
    message = (
        "Disk {target} of {name} is not part of the snapshot; nothing was touched. "
        "Detach it, or revert single volumes by name"
    )


class ImageRefused(Refused):
    """An image file, or what its header names, is not safe to use."""

    code, message = "image-refused", "Disk {target}: {path}: {reason}; nothing was touched"


class InternalSnapshot(Refused):
    """An image of the chain holds internal snapshots, which an overlay would not carry."""

    code = "internal-snapshot"
    message = (
        "Disk {target}: {path} holds {count} internal snapshot(s); nothing was touched. "
        "List them with qemu-img snapshot -l and delete them first"
    )


class ChainTooDeep(Refused):
    """The chain has reached the configured limit."""

    code = "chain-too-deep"
    message = (
        "Disk {target}: the chain is {depth} files deep, the limit is {limit}; nothing was touched. Delete snapshots"
    )


class ImageInUse(Refused):
    """Another process has the image open for writing."""

    code = "image-in-use"
    message = "Disk {target}: {path} is locked by another process; nothing was touched"


class FrozenFileAltered(Refused):
    """A frozen file is gone or was written to after it was frozen."""

    code, message = "frozen-file-altered", "Disk {target}: {path}: {reason}; nothing was touched"


class HostFileMissing(Refused):
    """A host file that the domain should have is absent or empty."""

    code = "host-file-missing"
    message = (
        "Domain {name}: its {type} at {path} cannot be used: {reason}; nothing was touched. A VM that never ran has "
        "none yet: start it once and shut it down. Else restore it, or ask for best-effort or no host files"
    )


class HostFileDamaged(Refused):
    """A host file fails its sanity check."""

    code, message = "host-file-damaged", "Domain {name}: its {type} at {path} is damaged: {reason}; nothing was touched"


class HostFileTooLarge(Refused):
    """A host file is above the size limit."""

    status, code = 413, "host-file-too-large"
    message = "The {type} has more than {limit_bytes} bytes; nothing was touched"


class HostFileShared(Refused):
    """Several domains name one NVRAM file."""

    code = "host-file-shared"
    message = "Domain {name}: its {type} at {path} is also used by {others}; nothing was touched. Give each its own"


class HostFileUnsupported(Refused):
    """The domain keeps its firmware state where the agent cannot read it."""

    code = "host-file-unsupported"
    message = (
        "Domain {name}: its {type} cannot be saved: {reason}; nothing was touched. "
        "Ask for best-effort or no host files to go on without it"
    )


class HostFileInUse(Refused):
    """Another process, such as swtpm, holds the lock of a host file."""

    code = "host-file-in-use"
    message = "Domain {name}: its {type} at {path} is locked by another process; nothing was touched"


class HostFileNotUploaded(Refused):
    """Commit was asked for before every host file had arrived."""

    code = "host-file-not-uploaded"
    message = "Transaction {id} still waits for: {types}; upload them and commit again"


class SnapshotHasChildren(Refused):
    """The frozen file carries more than can be merged away yet."""

    code = "snapshot-has-children"
    message = "Disk {target}: {path} carries {count} other files; nothing was touched. Delete those snapshots first"


class TransactionMismatch(Refused):
    """The id was used before for a different request."""

    code, message = "transaction-mismatch", "Transaction {id} exists with a different request; nothing was touched"


class TransactionEnded(Refused):
    """The transaction has ended and cannot be changed."""

    code, message = "transaction-ended", "Transaction {id} is {state}; begin another with a new id"


class LeaseExpired(Refused):
    """The lease ran out before commit, and the transaction was undone."""

    code = "lease-expired"
    message = "The lease of transaction {id} ran out; what was staged was removed. Begin another with a new id"


class AgentRestarted(Refused):
    """The agent was restarted before the commit, and the transaction was undone."""

    code = "agent-restarted"
    message = "The agent was restarted before transaction {id} was committed; what was staged was removed. Try again"


class Released(Refused):
    """The transaction was aborted on request."""

    code, message = "aborted", "Transaction {id} was aborted on request; what was staged was removed"


class Recorded(Error):
    """A failure that was recorded earlier, told again to whoever repeats the request."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self._problem = problem

    def __str__(self) -> str:
        """Say what was recorded."""
        return self._problem.detail

    def problem(self) -> Problem:
        """Give the problem as it was recorded."""
        return self._problem


class HashMismatch(Error):
    """The bytes that arrived are not those that were announced."""

    status, code = 422, "hash-mismatch"
    message = "The {type} that arrived has SHA-256 {found}, not {expected}; nothing was touched"


class ArchiveRefused(Error):
    """An archive holds something that a TPM state never holds."""

    status, code, message = 422, "archive-refused", "The archive was refused: {reason}; nothing was touched"


class NoSpace(Error):
    """The file system has too little room for the work."""

    status, code = 507, "no-space"
    message = "{path} has {have_bytes} bytes free and {need_bytes} are needed; nothing was touched"


class StorageFailed(Error):
    """The operating system refused a read or a write."""

    status, code, message = 500, "storage-failed", "{action} {path}: {reason}; what was begun was undone"


class HookLockHeld(Error):
    """The lock that the agent shares with the hook was not free in time."""

    status, code = 503, "hook-lock-held"
    message = "{path} was not free within {timeout_s} s; nothing was touched. Try again; fuser shows who holds it"


class QemuImgFailed(Error):
    """A qemu-img command ended with an error."""

    status, code, message = 500, "qemu-img-failed", "qemu-img {command} failed on {path}: {reason}"


class ToolFailed(Error):
    """An outside command cannot be run, or its output has no end."""

    status, code, message = 500, "tool-failed", "{command} failed: {reason}"


class ToolTimeout(Error):
    """An outside command did not end in time and was stopped."""

    status, code, message = 504, "tool-timeout", "{command} did not end within {timeout_s} s and was stopped"


class HypervisorRefused(Error):
    """libvirt refused what the agent asked of it."""

    status, code, message = 500, "hypervisor-refused", "libvirt refused {call}: {reason}"


class EventsLost(Error):
    """A listener was too slow for libvirt's events and has to look at everything again."""

    status, code, message = 500, "events-lost", "A listener fell {count} events behind; list the domains again"


class HypervisorUnavailable(Error):
    """libvirt cannot be reached."""

    status, code = 503, "hypervisor-unavailable"
    message = "libvirt at {uri} cannot be reached: {reason}. The agent reconnects by itself; try again"


class HypervisorTimeout(HypervisorUnavailable):
    """libvirt did not answer in time."""

    status, code = 504, "hypervisor-timeout"
    message = "libvirt at {uri} did not answer {call} within {timeout_s} s. The agent reconnects by itself; try again"


class StateDirInUse(Error):
    """Another agent works on this state directory."""

    status, code = 503, "state-dir-in-use"
    message = "Another agent works on {state_dir}; two would undo each other's work. Stop it, or set state_dir"
