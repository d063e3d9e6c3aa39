"""Enrolled hosts. The agent's secret leaves this module only inside an Endpoint."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec
from peewee import fn

from agent.web.auth import Secret
from agent.wire import fleet as wire
from agent.wire.host import HostFacts
from controller.db import write
from controller.errors import HostBusy, HostExists, HostNotFound, HostUrlTaken
from controller.models import Clone, Host, HostFile, Operation, Vm, VmDefinition, VolumeSnapshot
from controller.store import events, operations, vms
from controller.store.paging import Slice, after_position, filtered, page_of


@dataclass(frozen=True)
class Endpoint:
    """How to reach one agent. ``fingerprint`` pins its certificate (SHA-256, hex)."""

    name: str
    url: str
    token: Secret
    fingerprint: str | None


def add(name: str, url: str, agent_token: str, fingerprint: str | None = None) -> wire.Host:
    """Enrol a host; event ``host.added``. Raises HostExists, HostUrlTaken."""
    with write():
        if Host.get_or_none(Host.name == name) is not None:
            raise HostExists(name=name)
        if (other := Host.get_or_none(Host.url == url)) is not None:
            raise HostUrlTaken(name=other.name, url=url)
        Host.create(name=name, url=url, agent_token=_seal(agent_token), fingerprint=fingerprint)
        events.append("host.added", host=name)
        return get(name)


def get(name: str) -> wire.Host:
    """Return one. Raises HostNotFound."""
    return _wire(_row(name), _vm_counts([name]).get(name, 0))


def names() -> list[str]:
    """Return the names of all hosts in order."""
    return [row.name for row in Host.select(Host.name).order_by(Host.name)]


def page(limit: int, after: str | None = None) -> Slice[wire.Host, str]:
    """Return one page by name."""
    rows = list(after_position(Host.select(), (Host.name,), after).limit(limit + 1))
    counts = _vm_counts(row.name for row in rows)
    return page_of([_wire(row, counts.get(row.name, 0)) for row in rows], limit, lambda one: one.name)


def endpoint(name: str) -> Endpoint:
    """Return how to reach it, with its secret. Raises HostNotFound."""
    return _endpoint(_row(name))


def endpoints() -> dict[str, Endpoint]:
    """Return how to reach all hosts, by name."""
    return {row.name: _endpoint(row) for row in Host.select().order_by(Host.name)}


def change(name: str, after: Endpoint) -> None:
    """Reach a host as ``after`` says, under that name; event ``host.changed``. All that is kept follows the new name.

    Raises HostNotFound, HostExists, HostUrlTaken; HostBusy for a new name while work on it has not ended.
    """
    with write():
        _row(name)
        other = Host.get_or_none(Host.url == after.url, Host.name != name)
        if other is not None:
            raise HostUrlTaken(name=other.name, url=after.url)
        if after.name != name:
            _rename(name, after.name)
        _update(after.name, url=after.url, agent_token=_seal(after.token.reveal()), fingerprint=after.fingerprint)
        events.append("host.changed", host=after.name, data={"name": after.name, "was": name, "url": after.url})


def _rename(name: str, new: str) -> None:
    """Copy the row, let everything that names it name the copy, and drop the row: keys may not dangle in between."""
    if Host.get_or_none(Host.name == new) is not None:
        raise HostExists(name=new)
    if count := operations.open_count(host=name):
        raise HostBusy(name=name, count=count)
    row: Any = Host.select().where(Host.name == name).dicts().get()
    Host.create(**{**row, "name": new})
    for model in (Vm, VmDefinition, HostFile, VolumeSnapshot, Clone, Operation):
        model.update(host=new).where(model.host == name).execute()
    Host.delete().where(Host.name == name).execute()
    vms.settle_all(new)


def remove(name: str) -> None:
    """Take a host out; event ``host.removed``. Raises HostNotFound, HostBusy.

    Its VMs lose their host. Their host files, snapshots and backups stay, since they may be the last copies;
    a VM of which nothing is kept is forgotten.
    """
    with write():
        _row(name)
        count = operations.open_count(host=name)
        if count:
            raise HostBusy(name=name, count=count)
        vms.record_inventory(name, [], None)
        Host.delete().where(Host.name == name).execute()
        events.append("host.removed", host=name)
        vms.forget_traceless()


def seen(name: str, facts: HostFacts, at: datetime) -> bool:
    """Record that the agent answered; event ``host.reachable`` and True if it did not before. Raises HostNotFound."""
    with write():
        row = _row(name)
        is_back = row.error is not None or row.last_seen_at is None
        if is_back:
            events.append("host.reachable", host=name)
        _update(name, facts=facts, last_seen_at=at, error=None)
        return is_back


def failed(name: str, error: str) -> None:
    """Record why the agent cannot be reached; event ``host.unreachable`` where it could before. Raises HostNotFound."""
    with write():
        row = _row(name)
        if row.error is None:
            events.append("host.unreachable", host=name, data={"reason": error})
        if row.error != error:
            _update(name, error=error)


def cursor(name: str) -> tuple[UUID | None, int]:
    """Return the agent's event log and the last number read from it. Raises HostNotFound."""
    row = _row(name)
    return row.event_log, row.event_cursor


def move_cursor(name: str, log: UUID, seq: int) -> None:
    """Record how far the agent's log was worked off: in the transaction that does the work. Raises HostNotFound."""
    with write():
        _row(name)
        _update(name, event_log=log, event_cursor=seq)


def _row(name: str) -> Host:
    row: Host | None = filtered(Host.select(), [(Host.name, name)]).first()
    if row is None:
        raise HostNotFound(name=name)
    return row


def _endpoint(row: Host) -> Endpoint:
    return Endpoint(name=row.name, url=row.url, token=Secret(_open(row.agent_token)), fingerprint=row.fingerprint)


def _update(name: str, **values: Any) -> None:
    Host.update(**values).where(Host.name == name).execute()


def _vm_counts(hosts: Iterable[str]) -> dict[str, int]:
    query = VmDefinition.select(VmDefinition.host, fn.COUNT(VmDefinition.vm)).group_by(VmDefinition.host)
    rows: Any = query.where(VmDefinition.host.in_(list(hosts))).tuples()
    return dict(rows)


def _seal(secret: str) -> str:
    """Write a secret as it is stored. Encryption at rest, when a key is configured, has its place here."""
    return secret


def _open(stored: str) -> str:
    """Read a secret as ``_seal`` wrote it."""
    return stored


def _wire(row: Host, vm_count: int) -> wire.Host:
    return wire.Host(
        name=row.name,
        url=row.url,
        reachable=row.error is None and row.last_seen_at is not None,
        last_seen_at=row.last_seen_at,
        error=row.error,
        event_cursor=row.event_cursor,
        facts=_facts(row.facts),
        vms=vm_count,
    )


def _facts(stored: Any) -> HostFacts | None:
    return None if stored is None else msgspec.convert(stored, HostFacts, strict=False)
