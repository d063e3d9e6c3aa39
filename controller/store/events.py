"""The controller's event log. An event is appended in the transaction that makes what it tells of."""

from collections.abc import Collection
from typing import Any
from uuid import UUID

from peewee import fn

from agent.wire import access
from controller.db import write
from controller.models import Event


def append(type: str, *, host: str | None = None, vm: UUID | None = None, data: dict[str, Any] | None = None) -> int:
    """Append an event and return its number. Inside a ``write()`` it happens with the rest or not at all."""
    with write():
        row = Event.create(type=type, host=host, vm=vm, data=data or {})
    return int(row.seq)


def read(after: int, limit: int) -> list[access.Event]:
    """Return events after this number, oldest first."""
    rows = Event.select().where(Event.seq > after).order_by(Event.seq).limit(limit)
    return [
        access.Event(seq=row.seq, at=row.at, type=row.type, host=row.host, vm=row.vm, data=row.data) for row in rows
    ]


def about(types: Collection[str], after: int) -> set[UUID]:
    """Return the VMs that events of these types after this number are about."""
    rows = Event.select(Event.vm).where(Event.seq > after, Event.type.in_(types), Event.vm.is_null(False))
    return {row.vm for row in rows if row.vm is not None}


def newest() -> int:
    """Return the number of the last event, 0 where there is none."""
    return int(Event.select(fn.MAX(Event.seq)).scalar() or 0)


def oldest() -> int:
    """Return the number of the first event that is kept, 0 where there is none."""
    return int(Event.select(fn.MIN(Event.seq)).scalar() or 0)


def trim(keep: int) -> int:
    """Remove all but the newest ``keep`` events; return how many went."""
    with write():
        last_to_go = newest() - keep
        if not 0 < oldest() <= last_to_go:
            return 0
        return int(Event.delete().where(Event.seq <= last_to_go).execute())
