"""How a transaction stands: what it is called, what it is in the way of, and what may be asked of it now."""

import hashlib
from typing import Literal
from uuid import UUID

from agent.errors import DomainBusy, Recorded, TransactionEnded
from agent.transactions.journal import AnyRequest
from agent.transactions.model import HostFileRequest
from agent.transactions.running import Running
from agent.wire.host_file import FORMATS, HostFileType
from agent.wire.transaction import CloneRequest, DeleteRequest, RevertRequest, SnapshotRequest, Transaction

KINDS: dict[type[AnyRequest], Literal["snapshot", "revert", "delete", "clone", "host-file"]] = {
    SnapshotRequest: "snapshot",
    RevertRequest: "revert",
    DeleteRequest: "delete",
    CloneRequest: "clone",
    HostFileRequest: "host-file",
}


def clash(one: AnyRequest, other: AnyRequest) -> bool:
    """Tell whether two transactions touch one domain. A clone only reads its source, but that must not be merged."""
    return one.vm in _touched(other) or other.vm in _touched(one)


def _touched(request: AnyRequest) -> set[UUID]:
    return {request.vm, request.source} if isinstance(request, CloneRequest) else {request.vm}


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
    """Raise TransactionEnded or Recorded for a transaction that is not waiting for commit."""
    if running.transaction.state != "prepared":
        outcome(running)
        raise TransactionEnded(id=running.transaction.id, state=running.transaction.state)


def host_file_request(vm: UUID, type_: HostFileType, data: bytes) -> HostFileRequest:
    """Return the request to replace one host file with these bytes."""
    sha256 = hashlib.sha256(data).hexdigest()
    return HostFileRequest(vm=vm, type=type_, format=FORMATS[type_], size_bytes=len(data), sha256=sha256)
