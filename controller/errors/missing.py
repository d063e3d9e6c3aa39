"""What does not exist."""

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


class RetentionPolicyNotFound(NotFound):
    """No retention policy has this name."""

    code, message = "retention-policy-not-found", "No retention policy {name} exists; see: coldframe retention list"


class ContentMissing(NotFound):
    """A record names bytes that the database does not hold."""

    status, code = 500, "content-missing"
    message = "The bytes {sha256} are not in the database; restore it from a backup, or take a new copy"
