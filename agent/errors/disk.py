"""What is wrong with a disk, an image or a chain."""

from agent.errors.base import NotFound, Refused


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
    """Another process has the image open, and one of the two would write to it."""

    code = "image-in-use"
    message = (
        "Disk {target}: {path} is locked by another process; nothing was touched. A VM that runs on it or above it, "
        "such as a clone, must be shut off first"
    )


class FrozenFileAltered(Refused):
    """A frozen file is gone or was written to after it was frozen."""

    code, message = "frozen-file-altered", "Disk {target}: {path}: {reason}; nothing was touched"


class SnapshotHasChildren(Refused):
    """The frozen file carries more than can be merged away yet."""

    code = "snapshot-has-children"
    message = "Disk {target}: {path} carries {count} other files; nothing was touched. Delete those snapshots first"


class ImageNotReceived(Refused):
    """An import was to be committed before all of its images were there."""

    code = "image-not-received"
    message = "Transaction {id} still waits for {images}; nothing was touched. Send them, then commit"


class ImageNotFound(NotFound):
    """The transaction neither gives nor takes this image."""

    code, message = "image-not-found", "Transaction {id} has no image {position} of disk {target}"


class DirectoryRefused(Refused):
    """A directory for new images cannot be used."""

    code, message = "directory-refused", "Directory {path}: {reason}; nothing was touched. Allowed are: {allowed}"
