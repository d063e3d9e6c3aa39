"""Operations: queued per VM, claimed by an owner that is heard of again and again, always ended.

States go ``queued`` → ``running`` → ``succeeded | failed | cancelled``, each step by compare-and-set, so an
operation ends once whoever tries. One that can only be done while its VM is off may be *parked*: it is ``queued``
again, holds up no other operation of its VM, and is taken when the VM is recorded as shut off and no other waits.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ParamSpec, TypeVar
from uuid import UUID, uuid4

import msgspec

from agent.wire import operation as wire
from agent.wire.base import utc_now
from agent.wire.problem import Problem
from controller.db import write
from controller.errors import IdempotencyConflict, OperationCancelled, OperationNotCancellable, OperationNotFound
from controller.models import Operation, Vm
from controller.store import events
from controller.store.paging import Slice, after_position, filtered, page_of

#: In the memo of an operation that was parked: how often.
TRIES = "tries"
#: What seems to be parked for longer was parked before the clock was set back.
_PARKED_MAX = timedelta(minutes=1)
#: Their host is the caller's choice, or that of the files; all others are done where their VM is.
_HOST_CHOSEN = frozenset({"vm-place", "snapshot-import", "snapshot-export"})
_OPEN: tuple[wire.OperationState, ...] = ("queued", "running")

P = ParamSpec("P")
T = TypeVar("T")


class Lost(Exception):
    """Another engine has the operation: this one was not heard of for longer than its lease, or ended it before.

    Or nobody has it: an older copy of the database took this one's place.
    """


@dataclass(frozen=True)
class Job:
    """An operation as the engine needs it. ``memo`` holds what a restart needs to go on."""

    operation: wire.Operation
    request: Any
    memo: dict[str, Any]
    cancel_requested: bool
    owner: str | None
    #: Grows whenever the owner is heard of. A count and no time: who reads it may have another clock, or a wrong one.
    beat: int


def enqueue(
    kind: str,
    vm: UUID | None,
    host: str | None,
    request: Any,
    *,
    key: str | None = None,
    uuid: UUID | None = None,
    memo: Mapping[str, Any] | None = None,
) -> wire.Operation:
    """Queue an operation; event ``operation.queued``.

    The same ``key`` with the same kind, VM and request gives back the operation that it made before, whatever
    became of it. Raises IdempotencyConflict for another request. Without a key the same request gives back the one
    that is parked: two of it would have to be withdrawn one by one.
    """
    body_hash = _body_hash(kind, vm, request)
    with write():
        again = (
            Operation.parked_until.is_null(False) & (Operation.state == "queued") & (Operation.body_hash == body_hash)
        )
        known = Operation.get_or_none(again if key is None else Operation.idempotency_key == key)
        if known is not None:
            if known.body_hash != body_hash:
                raise IdempotencyConflict(key=key)
            return _wire(known)
        row = Operation.create(
            uuid=uuid or uuid4(),
            kind=kind,
            vm=vm,
            host=host,
            state="queued",
            request=request,
            memo=dict(memo or {}),
            idempotency_key=key,
            body_hash=body_hash,
        )
        _tell("operation.queued", row)
    return get(row.uuid)


def get(uuid: UUID) -> wire.Operation:
    """Return one. Raises OperationNotFound."""
    return _wire(_row(uuid))


def job(uuid: UUID) -> Job:
    """Return one as the engine needs it. Raises OperationNotFound."""
    return _job(_row(uuid))


def by_key(key: str) -> wire.Operation | None:
    """Return the operation that was queued with this idempotency key."""
    row = Operation.get_or_none(Operation.idempotency_key == key)
    return None if row is None else _wire(row)


def next_for_vm(vm: UUID) -> Job | None:
    """Return the oldest operation of a VM that has not ended: the only one that may run."""
    row = _open_rows().where(Operation.vm == vm, Operation.parked_until.is_null()).first()
    return None if row is None else _job(row)


def open_count(vm: UUID | None = None, host: str | None = None, *, but: UUID | None = None, parked: bool = True) -> int:
    """Return how many operations of a VM or a host have not ended, leaving out ``but``, and the parked if asked to."""
    query = _open_rows() if parked else _open_rows().where(Operation.parked_until.is_null())
    query = filtered(query, ((Operation.vm, vm), (Operation.host, host)))
    if but is not None:
        query = query.where(Operation.uuid != but)
    return int(query.count())


def claim_next(owner: str, per_host_limit: int) -> Job | None:
    """Take the oldest queued operation that may run now, or None.

    It must be the first of its VM that has not ended, and its host must run fewer than ``per_host_limit``. A parked
    one comes after all others of its VM, and only once that is shut off. Where the VM has moved since, it follows.
    """
    with write():
        queue, vms = _queue(), _where_vms_are()
        busy_vms: set[UUID] = set()
        running = Counter(row.host for row in queue if row.state == "running")
        for row in sorted(queue, key=lambda one: one.parked_until is not None):
            if row.parked_until is not None and not _may_be_tried(row, vms):
                continue
            if row.state == "queued" and (row.vm is None or row.vm not in busy_vms):
                host = _host_now(row, vms)
                if host is None or running[host] < per_host_limit:
                    Operation.update(host=host).where(Operation.uuid == row.uuid).execute()
                    _take(row.uuid, owner)
                    return job(row.uuid)
            if row.vm is not None:
                busy_vms.add(row.vm)
    return None


def _queue() -> list[Operation]:
    """Return what is open, oldest first, with what decides whose turn it is: thousands may wait for one host."""
    told = (Operation.uuid, Operation.kind, Operation.vm, Operation.host, Operation.state, Operation.parked_until)
    return list(Operation.select(*told).where(Operation.state.in_(_OPEN)).order_by(Operation.seq))


def _where_vms_are() -> dict[UUID, Vm]:
    """Return the VMs of all that is open, with host, conflict and state, in one query."""
    wanted = Operation.select(Operation.vm).where(Operation.state.in_(_OPEN), Operation.vm.is_null(False))
    found = Vm.select(Vm.uuid, Vm.host, Vm.conflict, Vm.state).where(Vm.uuid.in_(wanted))
    return {row.uuid: row for row in found}


def _host_now(row: Operation, vms: Mapping[UUID, Vm]) -> str | None:
    """Return where a queued operation is to be done. Of a VM in conflict that stays as it was; it will be refused."""
    vm = None if row.kind in _HOST_CHOSEN or row.vm is None else vms.get(row.vm)
    return row.host if vm is None or vm.host_id is None or vm.conflict is not None else str(vm.host_id)


def _may_be_tried(row: Operation, vms: Mapping[UUID, Vm]) -> bool:
    """Tell whether a parked operation's VM is off by now, and a moment has passed since the last try."""
    vm = None if row.vm is None else vms.get(row.vm)
    left = (row.parked_until or utc_now()) - utc_now()
    return vm is not None and vm.state == "shut-off" and not timedelta(0) < left <= _PARKED_MAX


def park(uuid: UUID, again_s: float) -> wire.Operation:
    """Take a running operation back until its VM has stopped, not to be tried again before ``again_s`` have passed.

    What it remembered is forgotten, but for the number of tries: it must not have begun anything that stands.
    One whose end was asked for ends as cancelled. Raises OperationNotFound.
    """
    with write():
        row = _row(uuid)
        if row.state == "running" and row.cancel_requested:
            _end(row, "cancelled", {}, OperationCancelled(operation=uuid).problem())
        elif row.state == "running":
            Operation.update(
                state="queued",
                step=wire.WAITS_FOR_STOP,
                owner=None,
                memo={TRIES: int(row.memo.get(TRIES, 0)) + 1},
                parked_until=utc_now() + timedelta(seconds=again_s),
            ).where(Operation.uuid == uuid).execute()
        return get(uuid)


def claim(uuid: UUID, owner: str, *, lost: tuple[str | None, int] | None = None) -> bool:
    """Take one operation: queued, or running and nobody's or the owner's own, or running for one who is ``lost``.

    ``lost`` are the owner and the beat of one that is known to be dead, or was not heard of for a lease: one that was
    heard of since keeps it, and what another took from it meanwhile is not taken again.
    """
    with write():
        row = _row(uuid)
        if row.state == "queued" or (row.state == "running" and (row.owner in {None, owner} or _held(row) == lost)):
            _take(uuid, owner)
            return True
    return False


def as_owner(uuid: UUID, owner: str | None, act: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Do what only the owner of a running operation may do, in one transaction with the look at who that is.

    An engine that slept past its lease does not know it: what it read before may be wrong by now. Nor does one whose
    database was exchanged for an older copy. Raises Lost.
    """
    with write():
        row = Operation.get_or_none(Operation.uuid == uuid)
        if row is None:
            raise Lost(f"operation {uuid} is not known to this database")
        if row.state != "running" or row.owner != owner:
            raise Lost(f"operation {uuid} belongs to {row.owner} and is {row.state}")
        return act(*args, **kwargs)


def renew(owner: str) -> int:
    """Let it be seen that this owner is alive, at everything that it runs; return how many."""
    with write():
        mine = (Operation.owner == owner, Operation.state == "running")
        return int(Operation.update(beat=Operation.beat + 1).where(*mine).execute())


def release(owner: str) -> None:
    """Leave everything that this owner runs to whoever looks next."""
    with write():
        Operation.update(owner=None).where(Operation.owner == owner, Operation.state == "running").execute()


def progress(
    uuid: UUID,
    *,
    step: str | None = None,
    done_bytes: int | None = None,
    total_bytes: int | None = None,
    memo: Mapping[str, Any] | None = None,
) -> None:
    """Record how far a running operation is; ``memo`` is merged into what is there. Raises OperationNotFound."""
    with write():
        row = _row(uuid)
        values: dict[str, Any] = {"step": step, "done_bytes": done_bytes, "total_bytes": total_bytes}
        changes = {name: value for name, value in values.items() if value is not None}
        if memo:
            changes["memo"] = {**row.memo, **memo}
        if changes and row.state == "running":
            Operation.update(**changes).where(Operation.uuid == uuid).execute()


def finish(
    uuid: UUID,
    state: wire.OperationState,
    *,
    result: Mapping[str, Any] | None = None,
    error: Problem | None = None,
) -> wire.Operation:
    """End an operation; event ``operation.ended``. One that has ended stays as it ended. Raises OperationNotFound."""
    with write():
        row = _row(uuid)
        if row.state in _OPEN:
            _end(row, state, dict(result or {}), error)
        return get(uuid)


def cancel(uuid: UUID) -> wire.Operation:
    """End a queued operation as cancelled, ask a running one to stop.

    Raises OperationNotFound, OperationNotCancellable.
    """
    with write():
        row = _row(uuid)
        if row.state not in _OPEN:
            raise OperationNotCancellable(operation=uuid, state=row.state)
        if row.state == "queued":
            _end(row, "cancelled", {}, OperationCancelled(operation=uuid).problem())
        elif not row.cancel_requested:
            Operation.update(cancel_requested=True).where(Operation.uuid == uuid).execute()
            _tell("operation.cancel-requested", row)
        return get(uuid)


def unfinished() -> list[Job]:
    """Return the operations that run, for whatever owner, oldest first: those to be resumed after a restart."""
    return [_job(row) for row in _open_rows().where(Operation.state == "running")]


def page(
    limit: int,
    after: int | None = None,
    *,
    vm: UUID | None = None,
    host: str | None = None,
    state: str | None = None,
    kind: str | None = None,
) -> Slice[wire.Operation, int]:
    """Return one page, newest first."""
    query = Operation.select()
    filters = ((Operation.vm, vm), (Operation.host, host), (Operation.state, state), (Operation.kind, kind))
    query = filtered(query, filters)
    rows = list(after_position(query, (Operation.seq,), after, newest_first=True).limit(limit + 1))
    cut = page_of(rows, limit, lambda row: int(row.seq))
    return Slice([_wire(row) for row in cut.items], cut.next)


def _open_rows() -> Any:
    return Operation.select().where(Operation.state.in_(_OPEN)).order_by(Operation.seq)


def _row(uuid: UUID) -> Operation:
    row = Operation.get_or_none(Operation.uuid == uuid)
    if row is None:
        raise OperationNotFound(operation=uuid)
    return row


def _take(uuid: UUID, owner: str) -> None:
    taken = {"state": "running", "owner": owner, "beat": Operation.beat + 1, "parked_until": None}
    Operation.update(**taken).where(Operation.uuid == uuid).execute()


def _held(row: Operation) -> tuple[str | None, int]:
    return row.owner, row.beat


def _end(row: Operation, state: wire.OperationState, result: dict[str, Any], error: Problem | None) -> None:
    changes: dict[str, Any] = {"state": state, "result": result, "error": error, "ended_at": utc_now()}
    if state == "succeeded":
        changes["step"] = "done"
    Operation.update(owner=None, parked_until=None, **changes).where(Operation.uuid == row.uuid).execute()
    told = {"state": state, "code": None if error is None else error.code}
    _tell("operation.ended", row, **told)


def _tell(type: str, row: Operation, **data: Any) -> None:
    facts = {"operation": row.uuid, "kind": row.kind, **data}
    events.append(type, host=row.host, vm=row.vm, data=facts)


def _body_hash(kind: str, vm: UUID | None, request: Any) -> str:
    """Hash what was asked for. The host is left out: the VM may have moved between two sendings of one request."""
    return hashlib.sha256(msgspec.json.encode([kind, vm, request], order="sorted")).hexdigest()


def _job(row: Operation) -> Job:
    return Job(
        operation=_wire(row),
        request=row.request,
        memo=row.memo,
        cancel_requested=row.cancel_requested,
        owner=row.owner,
        beat=row.beat,
    )


def _about(request: Any) -> UUID | None:
    """Return the snapshot that a request names."""
    named = request.get("snapshot") if isinstance(request, dict) else None
    return UUID(named) if isinstance(named, str) else None


def _wire(row: Operation) -> wire.Operation:
    percent = None if row.total_bytes <= 0 else min(100, row.done_bytes * 100 // row.total_bytes)
    return wire.Operation(
        uuid=row.uuid,
        kind=row.kind,
        vm=row.vm,
        host=row.host,
        snapshot=_about(row.request),
        state=row.state,
        step=row.step,
        progress=wire.Progress(done_bytes=row.done_bytes, total_bytes=row.total_bytes, percent=percent),
        error=None if row.error is None else msgspec.convert(row.error, Problem),
        result=row.result,
        created_at=row.created_at,
        ended_at=row.ended_at,
    )
