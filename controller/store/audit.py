"""The audit log. A line is written before the call is worked on, so a call that never ended is in it too (status 0)."""

from uuid import UUID

from agent.wire import access as wire
from controller.db import write
from controller.models import AuditEntry
from controller.store.paging import Slice, after_position, filtered, page_of


def begin(*, actor: str, role: wire.Role, remote: str, method: str, path: str) -> int:
    """Write that a changing call has come in; return its number."""
    with write():
        return int(AuditEntry.create(actor=actor, role=role, remote=remote, method=method, path=path).seq)


def finish(seq: int, status: int, operation: UUID | None = None) -> None:
    """Write how it ended: the HTTP status, and the operation that it began."""
    with write():
        AuditEntry.update(status=status, operation=operation).where(AuditEntry.seq == seq).execute()


def page(
    limit: int, after: int | None = None, *, actor: str | None = None, method: str | None = None
) -> Slice[wire.AuditEntry, int]:
    """Return one page, newest first."""
    query = AuditEntry.select()
    query = filtered(query, ((AuditEntry.actor, actor), (AuditEntry.method, method)))
    rows = after_position(query, (AuditEntry.seq,), after, newest_first=True).limit(limit + 1)
    return page_of([_wire(row) for row in rows], limit, lambda entry: entry.seq)


def _wire(row: AuditEntry) -> wire.AuditEntry:
    return wire.AuditEntry(
        seq=row.seq,
        at=row.at,
        actor=row.actor,
        role=row.role,
        remote=row.remote,
        method=row.method,
        path=row.path,
        status=row.status,
        operation=row.operation,
    )
