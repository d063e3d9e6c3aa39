"""What a host did not do, or not as it said."""

from agent.web.errors import Error


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
        "The records are brought in line when it answers again, before any other work on this VM. If it is lost for "
        "good, place the VM on another host by force: the definition that it goes on with decides"
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
    message = "The {types} of VM {vm} cannot be had: {reason}. Nothing was made, replaced or moved"


class DisksNotDeleted(Error):
    """Some disks of the snapshot could not be merged away."""

    status, code = 500, "disks-not-deleted"
    message = (
        "Disk(s) {targets} of snapshot {snapshot} could not be deleted: {reason}. The snapshot and its backup files "
        "are kept; repeat the deletion to finish it"
    )
