"""How much there is, for metrics."""

from dataclasses import dataclass
from typing import Any

from peewee import Model, fn

from controller.db import read
from controller.models import Content, Host, Operation, Snapshot, Vm


@dataclass(frozen=True)
class Census:
    """Counts by state; ``content_bytes`` is what contents take up in the database."""

    hosts: dict[str, int]
    vms: dict[str, int]
    snapshots: dict[str, int]
    operations: dict[str, int]
    contents: int
    content_bytes: int


def take() -> Census:
    """Count."""
    with read():
        away = Host.select().where(Host.error.is_null(False) | Host.last_seen_at.is_null()).count()
        return Census(
            hosts={"reachable": Host.select().count() - away, "unreachable": away},
            vms=_by_state(Vm),
            snapshots=_by_state(Snapshot),
            operations=_by_state(Operation),
            contents=Content.select().count(),
            content_bytes=int(Content.select(fn.SUM(fn.LENGTH(Content.data))).scalar() or 0),
        )


def _by_state(model: type[Model]) -> dict[str, int]:
    state = model._meta.fields["state"]
    rows: Any = model.select(state, fn.COUNT(state)).group_by(state).tuples()
    return dict(rows)
