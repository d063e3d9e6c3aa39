"""The agent's errors.

::

    Error
    ├── NotFound                     404
    │   ├── DomainNotFound
    │   ├── HostFileNotFound
    │   ├── ImageNotFound
    │   └── TransactionNotFound
    ├── Refused                      409  nothing was touched
    │   ├── DomainRunning  DomainPaused  DomainStarting  DomainTransient  DomainManagedSave
    │   ├── DomainBusy               another transaction holds the guard
    │   ├── DomainUnreadable  DomainExists  DomainNameRefused  HostUnsuitable
    │   ├── DiskUnsupported  DiskUnknown  DiskMoved  DiskDetached  DiskAttached
    │   ├── ImageRefused             outside the allowed directories, hostile header, missing backing file …
    │   ├── InternalSnapshot  ChainTooDeep  ImageInUse  FrozenFileAltered  ImageNotReceived
    │   ├── DirectoryRefused
    │   ├── HostFileMissing  HostFileDamaged  HostFileTooLarge  HostFileNotUploaded  HostFileShared  HostFileInUse
    │   ├── HostFileUnsupported
    │   ├── SnapshotHasChildren
    │   └── TransactionMismatch  TransactionEnded  LeaseExpired  AgentRestarted
    ├── Recorded                     as recorded
    ├── HashMismatch                 422
    ├── ArchiveRefused               422
    ├── ControllerRefused            409  another controller works with this host
    ├── NoSpace                      507
    ├── StorageFailed                500  the operating system refused a read or write
    │   └── NeighbourUnreadable      409  it cannot be told whether a file stands on one that is to go
    ├── HookLockHeld                 503  the lock shared with the hook was not free in time
    ├── QemuImgFailed                500
    ├── ToolFailed                   500  an outside command cannot be run, or answers without end
    ├── OutOfThreads                 503
    ├── HypervisorRefused            500  libvirt said no
    ├── EventsLost                   500
    └── HypervisorUnavailable        503
        └── HypervisorTimeout        504
"""

from agent.errors.base import (
    NotFound,
    Recorded,
    Refused,
)
from agent.errors.disk import (
    ChainTooDeep,
    DirectoryRefused,
    DiskAttached,
    DiskDetached,
    DiskMoved,
    DiskUnknown,
    DiskUnsupported,
    FrozenFileAltered,
    ImageInUse,
    ImageNotFound,
    ImageNotReceived,
    ImageRefused,
    InternalSnapshot,
    SnapshotHasChildren,
)
from agent.errors.domain import (
    DomainBusy,
    DomainExists,
    DomainManagedSave,
    DomainNameRefused,
    DomainNotFound,
    DomainPaused,
    DomainRunning,
    DomainStarting,
    DomainTransient,
    DomainUnreadable,
    HostUnsuitable,
)
from agent.errors.host_file import (
    ArchiveRefused,
    HashMismatch,
    HostFileDamaged,
    HostFileInUse,
    HostFileMissing,
    HostFileNotFound,
    HostFileNotUploaded,
    HostFileShared,
    HostFileTooLarge,
    HostFileUnsupported,
)
from agent.errors.system import (
    ControllerRefused,
    EventsLost,
    HookLockHeld,
    HypervisorRefused,
    HypervisorTimeout,
    HypervisorUnavailable,
    NeighbourUnreadable,
    NoSpace,
    OutOfThreads,
    QemuImgFailed,
    StateDirInUse,
    StorageFailed,
    ToolFailed,
    ToolTimeout,
)
from agent.errors.transaction import (
    AgentRestarted,
    LeaseExpired,
    Released,
    TransactionEnded,
    TransactionMismatch,
    TransactionNotFound,
)
from agent.web import errors as web_errors
from agent.web.errors import Error

#: 412: the thing was changed since the version that the caller saw. Both daemons raise it.
PreconditionFailed = web_errors.PreconditionFailed

__all__ = [
    "AgentRestarted",
    "ArchiveRefused",
    "ChainTooDeep",
    "ControllerRefused",
    "DirectoryRefused",
    "DiskAttached",
    "DiskDetached",
    "DiskMoved",
    "DiskUnknown",
    "DiskUnsupported",
    "DomainBusy",
    "DomainExists",
    "DomainManagedSave",
    "DomainNameRefused",
    "DomainNotFound",
    "DomainPaused",
    "DomainRunning",
    "DomainStarting",
    "DomainTransient",
    "DomainUnreadable",
    "Error",
    "EventsLost",
    "FrozenFileAltered",
    "HashMismatch",
    "HookLockHeld",
    "HostFileDamaged",
    "HostFileInUse",
    "HostFileMissing",
    "HostFileNotFound",
    "HostFileNotUploaded",
    "HostFileShared",
    "HostFileTooLarge",
    "HostFileUnsupported",
    "HostUnsuitable",
    "HypervisorRefused",
    "HypervisorTimeout",
    "HypervisorUnavailable",
    "ImageInUse",
    "ImageNotFound",
    "ImageNotReceived",
    "ImageRefused",
    "InternalSnapshot",
    "LeaseExpired",
    "NeighbourUnreadable",
    "NoSpace",
    "NotFound",
    "OutOfThreads",
    "PreconditionFailed",
    "QemuImgFailed",
    "Recorded",
    "Refused",
    "Released",
    "SnapshotHasChildren",
    "StateDirInUse",
    "StorageFailed",
    "ToolFailed",
    "ToolTimeout",
    "TransactionEnded",
    "TransactionMismatch",
    "TransactionNotFound",
]
