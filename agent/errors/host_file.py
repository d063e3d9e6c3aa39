"""What is wrong with NVRAM or TPM state."""

from agent.errors.base import NotFound, Refused
from agent.web.errors import Error


class HostFileNotFound(NotFound):
    """The domain has no host file of this type."""

    code, message = "host-file-not-found", "Domain {name} has no {type} on this host; nothing was touched"


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


class HashMismatch(Error):
    """The bytes that arrived are not those that were announced."""

    status, code = 422, "hash-mismatch"
    message = "The {type} that arrived has SHA-256 {found}, not {expected}; nothing was touched"


class ArchiveRefused(Error):
    """An archive holds something that a TPM state never holds."""

    status, code, message = 422, "archive-refused", "The archive was refused: {reason}; nothing was touched"
