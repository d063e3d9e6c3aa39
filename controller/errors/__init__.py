"""The controller's errors.

::

    Error
    ├── NotFound                     404
    │   ├── HostNotFound  VmNotFound  SnapshotNotFound  BackupFileNotFound  HostFileNotHeld
    │   ├── OperationNotFound  TokenNotFound  RetentionPolicyNotFound
    │   └── ContentMissing           500  a record names bytes that are not there
    ├── Conflict                     409  nothing was changed
    │   ├── HostExists  HostUrlTaken  HostIsAnother  HostKept  HostBusy  HostFilesStale  VmMayRun
    │   ├── VmAmbiguous  VmConflict  VmNowhere  VmBusy  VmExists  VmDefined  VmKnown
    │   ├── ClonesFailed  DisksNotRemoved
    │   ├── SnapshotExists  SnapshotBusy  SnapshotProtected  SnapshotPartlyDeleted  FrozenFileHeld
    │   ├── BackupFileOwned  OwnerReserved
    │   ├── OperationNotCancellable  OperationCancelled  IdempotencyConflict
    │   └── TokenExists  RetentionDisabled
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
    ├── SnapshotArchiveRefused       422  what was sent is not a whole and sound archive
    ├── ArchiveSourceChanged         502  a host sent other bytes for an archive than it announced
    ├── ExportFailed                 409  its operation says why
    ├── TransferBroken               408  the caller's end of an archive's stream went away
    ├── NotYetSupported              501  says what to do instead
    ├── ContentCorrupt               500  stored bytes no longer have their hash
    └── DatabaseFailed               503  it refused to read or write
        ├── CommitUnconfirmed        503  it was lost between the order to commit and the answer
        ├── DatabaseUnusable         500  it cannot be opened at all
        └── DatabaseTooNew           500  a newer controller has migrated it
"""

from agent.web.errors import Error
from controller.errors.archive import (
    ArchiveSourceChanged,
    ExportFailed,
    SnapshotArchiveRefused,
    TransferBroken,
)
from controller.errors.conflict import (
    BackupFileOwned,
    ClonesFailed,
    Conflict,
    DisksNotRemoved,
    FrozenFileHeld,
    HostBusy,
    HostExists,
    HostFilesStale,
    HostIsAnother,
    HostKept,
    HostUrlTaken,
    IdempotencyConflict,
    OperationCancelled,
    OperationNotCancellable,
    OwnerReserved,
    RetentionDisabled,
    SnapshotBusy,
    SnapshotExists,
    SnapshotPartlyDeleted,
    SnapshotProtected,
    TokenExists,
    VmAmbiguous,
    VmBusy,
    VmConflict,
    VmDefined,
    VmExists,
    VmKnown,
    VmMayRun,
    VmNowhere,
)
from controller.errors.host import (
    AgentRefusedToken,
    CaptureCorrupt,
    DisksNotDeleted,
    HostFilesMissing,
    HostFileTooLarge,
    HostTimeout,
    HostUnreachable,
    OutcomeUnknown,
    TransactionAborted,
)
from controller.errors.missing import (
    BackupFileNotFound,
    ContentMissing,
    HostFileNotHeld,
    HostNotFound,
    NotFound,
    OperationNotFound,
    RetentionPolicyNotFound,
    SnapshotNotFound,
    TokenNotFound,
    VmNotFound,
)
from controller.errors.own import (
    CommitUnconfirmed,
    ContentCorrupt,
    DatabaseFailed,
    DatabaseTooNew,
    DatabaseUnusable,
    NameInvalid,
    NotYetSupported,
)

__all__ = [
    "AgentRefusedToken",
    "ArchiveSourceChanged",
    "BackupFileNotFound",
    "BackupFileOwned",
    "CaptureCorrupt",
    "ClonesFailed",
    "CommitUnconfirmed",
    "Conflict",
    "ContentCorrupt",
    "ContentMissing",
    "DatabaseFailed",
    "DatabaseTooNew",
    "DatabaseUnusable",
    "DisksNotDeleted",
    "DisksNotRemoved",
    "Error",
    "ExportFailed",
    "FrozenFileHeld",
    "HostBusy",
    "HostExists",
    "HostFileNotHeld",
    "HostFileTooLarge",
    "HostFilesMissing",
    "HostFilesStale",
    "HostIsAnother",
    "HostKept",
    "HostNotFound",
    "HostTimeout",
    "HostUnreachable",
    "HostUrlTaken",
    "IdempotencyConflict",
    "NameInvalid",
    "NotFound",
    "NotYetSupported",
    "OperationCancelled",
    "OperationNotCancellable",
    "OperationNotFound",
    "OutcomeUnknown",
    "OwnerReserved",
    "RetentionDisabled",
    "RetentionPolicyNotFound",
    "SnapshotArchiveRefused",
    "SnapshotBusy",
    "SnapshotExists",
    "SnapshotNotFound",
    "SnapshotPartlyDeleted",
    "SnapshotProtected",
    "TokenExists",
    "TokenNotFound",
    "TransactionAborted",
    "TransferBroken",
    "VmAmbiguous",
    "VmBusy",
    "VmConflict",
    "VmDefined",
    "VmExists",
    "VmKnown",
    "VmMayRun",
    "VmNotFound",
    "VmNowhere",
]
