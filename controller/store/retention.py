"""Retention policies, by name."""

from typing import Any

import msgspec
from peewee import JOIN

from agent.wire import retention as wire
from controller.db import read, write
from controller.errors import RetentionPolicyNotFound
from controller.models import RetentionPolicy, Vm
from controller.names import check_handle, check_labels
from controller.store import events, vms
from controller.store.paging import Slice, after_position, page_of


def put(name: str, asked: wire.SetRetention) -> wire.RetentionPolicy:
    """Make a policy, or make it another; event ``retention.set``. Again: no effect.

    Raises NameInvalid, VmNotFound, VmAmbiguous.
    """
    check_handle("Retention policy", name)
    check_labels(asked.labels)
    with write():
        values = {**msgspec.structs.asdict(asked), "vm": None if asked.vm is None else vms.resolve(asked.vm)}
        row = RetentionPolicy.get_or_none(RetentionPolicy.name == name)
        if row is None:
            RetentionPolicy.create(name=name, **values)
        elif values == {field: row.vm_id if field == "vm" else getattr(row, field) for field in values}:
            return get(name)
        else:
            RetentionPolicy.update(**values).where(RetentionPolicy.name == name).execute()
        made = get(name)
        events.append("retention.set", vm=made.vm, data={"policy": made})
        return made


def get(name: str) -> wire.RetentionPolicy:
    """Return one. Raises RetentionPolicyNotFound."""
    row = _select().where(RetentionPolicy.name == name).first() if "\0" not in name else None
    if row is None:
        raise RetentionPolicyNotFound(name=name)
    return _wire(row)


def find(name: str) -> wire.RetentionPolicy | None:
    """Return one, or None."""
    try:
        return get(name)
    except RetentionPolicyNotFound:
        return None


def enabled() -> list[wire.RetentionPolicy]:
    """Return the policies that are in force, by name."""
    return [_wire(row) for row in _select().where(RetentionPolicy.enabled).order_by(RetentionPolicy.name)]


def page(limit: int, after: str | None = None) -> Slice[wire.RetentionPolicy, str]:
    """Return one page by name."""
    with read():
        rows = list(after_position(_select(), (RetentionPolicy.name,), after).limit(limit + 1))
        return page_of([_wire(row) for row in rows], limit, lambda policy: policy.name)


def remove(name: str) -> wire.RetentionPolicy:
    """Remove a policy and return it; event ``retention.removed``. Raises RetentionPolicyNotFound."""
    with write():
        gone = get(name)
        RetentionPolicy.delete().where(RetentionPolicy.name == name).execute()
        events.append("retention.removed", vm=gone.vm, data={"policy": gone})
        return gone


def _select() -> Any:
    return RetentionPolicy.select(RetentionPolicy, Vm.uuid, Vm.name).join(Vm, JOIN.LEFT_OUTER)


def _wire(row: RetentionPolicy) -> wire.RetentionPolicy:
    return wire.RetentionPolicy(
        name=row.name,
        vm=row.vm_id,
        vm_name=None if row.vm is None else row.vm.name,
        labels=row.labels,
        keep_last=row.keep_last,
        keep_hourly=row.keep_hourly,
        keep_daily=row.keep_daily,
        keep_weekly=row.keep_weekly,
        keep_monthly=row.keep_monthly,
        enabled=row.enabled,
        created_at=row.created_at,
    )
