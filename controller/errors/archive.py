"""What a portable archive can be refused for, and what can go wrong while it travels."""

from agent.web.errors import Error


class SnapshotArchiveRefused(Error):
    """What was sent is not a whole and sound archive of a snapshot."""

    status, code = 422, "snapshot-archive-refused"
    message = "The archive is refused: {reason}. Nothing of it was kept"


class ArchiveSourceChanged(Error):
    """The host sent another number of bytes than it announced."""

    status, code = 502, "archive-source-changed"
    message = "Host {name} sent {found} bytes of {file} and had announced {expected}; the archive is not whole"


class TransferBroken(Error):
    """The caller's end of an archive's stream went away, or stood still for too long."""

    status, code = 408, "transfer-broken"
    message = "The archive's stream ended early: {reason}; nothing was changed. Begin again"


class ExportFailed(Error):
    """A snapshot could not be exported. ``cause`` is the code of what was wrong, ``operation`` the work that failed."""

    status, code = 409, "export-failed"
    message = "The snapshot was not exported: {reason}"
