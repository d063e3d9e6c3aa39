"""How a transaction stands: what it is in the way of, and what may be asked of it now."""

import asyncio
import hashlib
import logging
from uuid import UUID

from agent.errors import DomainBusy, Recorded, TransactionEnded
from agent.host.event_log import EventLog
from agent.transactions.running import Running
from agent.web.errors import Error
from agent.wire.host_file import FORMATS, HostFileType
from agent.wire.transaction import ENDED, HostFileRef, RestoreRequest, Transaction

log = logging.getLogger(__name__)


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


async def tell_end(events: EventLog, running: Running) -> None:
    """Log the end of a transaction as an event, if it has ended."""
    seen = running.transaction
    if seen.state in ENDED:
        data = {"transaction": str(seen.id), "kind": seen.kind, "state": seen.state}
        try:
            await asyncio.to_thread(events.append, "transaction.ended", "agent", seen.vm, running.name, data)
        except Error as err:  # the transaction has ended all the same, and GET says so
            log.warning("end-not-told transaction=%s reason=%s", seen.id, err)
