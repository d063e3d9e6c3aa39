"""A database on which everything is done and nothing stays: what a changing call would do to the records.

A dry run makes the very same calls of the store as the call itself, each in a transaction that is taken back. What
was done before is done again first, so that a call of several transactions finds what its earlier ones wrote.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, ParamSpec, TypeVar

import msgspec
from peewee import BlobField, ForeignKeyField, Model

from agent.wire.plan import PlannedStep
from controller.db import Database, take_back, touched
from controller.models import AuditEntry, Event, Operation, Record

P = ParamSpec("P")
T = TypeVar("T")
Rows = dict[str, dict[tuple[str, ...], dict[str, Any]]]

#: Secrets stay out of plans, and what is long is not read to see whether it changed: something beside it does too.
_UNREAD = frozenset({"agent_token", "secret_hash", "domain_xml", "facts", "request", "memo"})
#: What says that something was done is not what was done.
_LOGS: tuple[type[Model], ...] = (Event, AuditEntry)
#: So many keys say which rows; a thousand more would not help anybody.
_KEYS_SHOWN = 20


class Rehearsal(Database):
    """Stands in for a database during one dry run."""

    def __init__(self, real: Database) -> None:
        super().__init__(real.url)
        self._on = real
        self._done: list[Callable[[], Any]] = []

    async def run(self, fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``fn`` after all that was run before, and take everything back. Raises what it raises."""

        def work() -> T:
            return fn(*args, **kwargs)

        result, writes = await self._on.run(_rehearsed, self._done, work)
        if writes:
            self._done.append(work)
        return result

    async def changed(self, since: int) -> int:
        """Wait as the real one does."""
        return await self._on.changed(since)

    async def effects(self, *, operations: bool = True) -> list[PlannedStep]:
        """Say which rows would be added, changed and removed; ``operations``: those of operations too."""
        logs: Sequence[type[Model]] = _LOGS if operations else (*_LOGS, Operation)
        return await self._on.run(_effects, self._done, logs)


def _rehearsed(done: list[Callable[[], Any]], work: Callable[[], T]) -> tuple[T, bool]:
    def everything() -> tuple[T, bool]:
        for one in done:
            one()
        touched()
        return work(), bool(touched())

    return take_back(everything)


def _effects(done: list[Callable[[], Any]], logs: Sequence[type[Model]]) -> list[PlannedStep]:
    def everything() -> tuple[Sequence[type[Model]], Rows]:
        touched()
        for one in done:
            one()
        concerned = [model for model in _concerned(touched()) if model not in logs]
        return concerned, _rows(concerned)

    models, after = take_back(everything) if done else ([], {})
    return list(_differences(_rows(models), after))


def _concerned(tables: set[str]) -> Sequence[type[Model]]:
    """Return the models of these tables and of those whose rows go with theirs."""
    every = Record.__subclasses__()
    found = [model for model in every if _table(model) in tables]
    for model in found:
        found += [one for one in every if one not in found and _goes_with(one, model)]
    return [model for model in every if model in found]


def _goes_with(one: type[Model], owner: type[Model]) -> bool:
    keys = [field for field in one._meta.sorted_fields if isinstance(field, ForeignKeyField)]
    return any(key.rel_model is owner and key.on_delete in {"CASCADE", "SET NULL"} for key in keys)


def _rows(models: Sequence[type[Model]]) -> Rows:
    return {_table(model): dict(_rows_of(model)) for model in models}


def _rows_of(model: type[Model]) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    fields = [one for one in model._meta.sorted_fields if not isinstance(one, BlobField) and one.name not in _UNREAD]
    meta: Any = model._meta
    names = [one.name for one in meta.get_primary_keys()]
    rows: Any = model.select(*fields).dicts()
    for row in rows:
        yield tuple(str(row[name]) for name in names), row


def _differences(before: Rows, after: Rows) -> Iterator[PlannedStep]:
    for table, now in after.items():
        was = before[table]
        changed = [key for key in now.keys() & was.keys() if now[key] != was[key]]
        for action, keys, rows in (
            ("add", now.keys() - was.keys(), now),
            ("change", set(changed), now),
            ("remove", was.keys() - now.keys(), was),
        ):
            if keys:
                yield _step(action, table, sorted(keys), rows)


def _step(action: str, table: str, keys: list[tuple[str, ...]], rows: dict[tuple[str, ...], Any]) -> PlannedStep:
    words = table.replace("_", " ") + ("" if len(keys) == 1 else "s")
    facts: dict[str, Any] = {"table": table, "rows": len(keys), "keys": ["/".join(key) for key in keys[:_KEYS_SHOWN]]}
    sizes = [rows[key].get("size_bytes") for key in keys]
    if action != "change" and all(isinstance(size, int) for size in sizes):
        facts["bytes"] = sum(sizes)
    return PlannedStep(action=action, name=f"{action} {len(keys)} {words}", facts=msgspec.to_builtins(facts))


def _table(model: type[Model]) -> str:
    return str(model._meta.table_name)
