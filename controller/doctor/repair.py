"""The repairs that lose nothing. Each looks again before it acts: what was found may have ended by itself."""

from collections.abc import Awaitable, Callable, Mapping
from uuid import UUID

import msgspec

from agent.web.errors import Error
from agent.wire.finding import Finding
from agent.wire.upkeep import ImageState
from controller.db import Database, write
from controller.doctor import history
from controller.doctor.history import Rewrites
from controller.errors import SnapshotBusy, SnapshotProtected
from controller.hosts import Hosts
from controller.store import bases, groups, operations, repairs, snapshots

Repair = Callable[[Database, Hosts, Finding], Awaitable[str]]


async def repair(db: Database, hosts: Hosts, one: Finding) -> Finding:
    """Mend one safe finding; return it with what was done, or with why that did not work."""
    try:
        return msgspec.structs.replace(one, done=await _REPAIRS[one.code](db, hosts, one))
    except Error as err:
        return msgspec.structs.replace(one, repair=f"{one.repair}. It was tried: {err.problem().detail}")


def can(one: Finding) -> bool:
    """Return whether a finding is mended by ``repair``."""
    return one.safe and one.code in _REPAIRS


async def _release(db: Database, hosts: Hosts, one: Finding) -> str:
    # While the guard stands no transaction of this VM can begin, so nothing but the guard is released.
    await hosts.client(_host(one)).release(_uuid(one.vm))
    return "The guard is removed; the VM can start"


async def _remove_staged(db: Database, hosts: Hosts, one: Finding) -> str:
    removed = await hosts.client(_host(one)).remove_leftovers([str(one.path)])
    return "It is removed" if removed else "It was gone already"


async def _sweep(db: Database, hosts: Hosts, one: Finding) -> str:
    count = await db.run(repairs.remove_ownerless)
    return f"{count} row(s) without an owner are removed" if count else "It was removed with the others"


async def _sync(db: Database, hosts: Hosts, one: Finding) -> str:
    operation = await db.run(_queue_sync, _uuid(one.vm), _host(one))
    return f"Operation {operation} was queued: coldframe operation wait {operation}"


def _queue_sync(vm: UUID, host: str) -> UUID:
    with write():
        queued = operations.next_for_vm(vm)
        return operations.enqueue("vm-sync", vm, host, {}).uuid if queued is None else queued.operation.uuid


async def _remove_records(db: Database, hosts: Hosts, one: Finding) -> str:
    await db.run(_remove_deleted, _uuid(one.snapshot))
    return "Its records and backup files are removed"


def _remove_deleted(uuid: UUID) -> None:
    with write():
        snapshot = snapshots.get(uuid)
        if snapshot.protected:
            raise SnapshotProtected(snapshot=uuid)
        if snapshot.state != "ready" or operations.open_count(vm=snapshot.vm):
            raise SnapshotBusy(snapshot=uuid, state=snapshot.state)
        groups.remove(uuid)


async def _record_rewritten(db: Database, hosts: Hosts, one: Finding) -> str:
    client, path = hosts.client(_host(one)), str(one.path)
    (state,) = await client.check_images([path])
    rewritten = history.rewrites(await client.transactions())
    recorded = await db.run(_record_as_left, _uuid(one.snapshot), state, rewritten)
    return "It is recorded as the host left it" if recorded else "It was in order already"


def _record_as_left(uuid: UUID, state: ImageState, rewritten: Rewrites) -> bool:
    with write():
        snapshot = snapshots.get(uuid)
        if snapshot.state != "ready" or operations.open_count(vm=snapshot.vm):
            raise SnapshotBusy(snapshot=uuid, state=snapshot.state)
        for volume in snapshots.group(uuid).volumes:
            if volume.path == state.path and history.moved_at(volume, state, rewritten) is not None:
                bases.left(volume.host, state.path, str(state.fingerprint), state.backing)
                return True
    return False


def _host(one: Finding) -> str:
    if one.host is None:
        raise TypeError(f"finding {one.code} names no host")
    return one.host


def _uuid(given: UUID | None) -> UUID:
    if given is None:
        raise TypeError("the finding does not say what it is about")
    return given


_REPAIRS: Mapping[str, Repair] = {
    "guard-left-behind": _release,
    "staged-leftover": _remove_staged,
    "database-orphan": _sweep,
    "snapshot-held-up": _sync,
    "host-file-dirty": _sync,
    "deleted-on-host": _remove_records,
    "rewritten-on-host": _record_rewritten,
}
