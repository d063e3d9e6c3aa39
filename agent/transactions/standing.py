"""How a transaction stands: what it is in the way of, and what may be asked of it now."""

import hashlib
from uuid import UUID

from agent.errors import DomainBusy, Recorded, TransactionEnded
from agent.transactions.running import Running
from agent.wire.host_file import FORMATS, HostFileType
from agent.wire.transaction import HostFileRef, RestoreRequest, Transaction


def busy_with(running: Running) -> DomainBusy:
    """Return what refuses a second transaction of a domain."""
    seen = running.transaction
    return DomainBusy(name=running.name, kind=seen.kind, transaction=seen.id, since=seen.started_at.isoformat())


def outcome(running: Running) -> Transaction:
    """Return a transaction as it is. Raises Recorded for one that was aborted."""
    if running.transaction.state == "aborted" and running.transaction.error is not None:
        raise Recorded(running.transaction.error)
    return running.transaction


def require_prepared(running: Running) -> None:
    """Raise what ended a transaction, or TransactionEnded, where nothing can be handed over to it or fetched."""
    if running.transaction.state != "prepared":
        outcome(running)
        raise TransactionEnded(id=running.transaction.id, state=running.transaction.state)


def host_file_request(vm: UUID, type_: HostFileType, data: bytes) -> RestoreRequest:
    """Return the request to replace one host file with these bytes."""
    sha256 = hashlib.sha256(data).hexdigest()
    ref = HostFileRef(type=type_, format=FORMATS[type_], size_bytes=len(data), sha256=sha256)
    return RestoreRequest(vm=vm, host_files=[ref])
