"""What earlier operations of a VM left open: settled before anything else is done with it.

An operation that could not learn in time how its transaction ended leaves its snapshot ``creating``, ``reverting``
or ``deleting``. The host that was told to commit decides; until it has said so no other work on the VM begins.
"""

import logging
from collections.abc import Iterator
from uuid import UUID

from agent.web.log import kv
from agent.wire.base import utc_now
from agent.wire.operation import Operation
from agent.wire.snapshot import Snapshot
from controller.db import read
from controller.errors import HostNotFound, OutcomeUnknown
from controller.operations import ending, transaction
from controller.operations.ending import Ending
from controller.operations.job import Job
from controller.store import clones, operations, snapshots, vms

log = logging.getLogger("coldframe.operations")

_OPEN = ("creating", "reverting", "deleting")
#: What reads, makes another VM, or settles the conflict.
_IN_CONFLICT_TOO = frozenset({"vm-place", "vm-sync", "snapshot-export", "snapshot-import"})
_AT_ONCE = 1000  # leftovers are a handful after a bad day; a page is bounded all the same


async def settle(job: Job, *, given_up: bool = False) -> None:
    """Bring the VM's snapshots into settled states. Raises OutcomeUnknown while a host does not say.

    The job's own, which a resumed job finds as its last run left them, are not touched. Raises VmConflict where
    several hosts define the VM by now, unless a commit was sent before: what was asked for may have waited long.
    ``given_up``: what only another host than the job's could tell stays open, as the VM is taken from it all the same.
    """
    if not job.sealed and job.row.operation.kind not in _IN_CONFLICT_TOO:
        await job.db.run(vms.require_no_conflict, job.vm)
    own = {uuid for one in ending.endings(job.memo) for uuid in (one.snapshot, one.undo)}
    for row, promised in await job.db.run(_unsettled, job.vm, own):
        await _settle_one(job, Job(row, job.db, job.hosts, job.patience), promised, given_up=given_up)
    for left in await job.db.run(clones.unfinished, job.vm, job.uuid):
        await _settle_clone(job, left)


async def _settle_clone(job: Job, left: clones.Unfinished) -> None:
    """Ask the host that was to make a clone whether it did, and record it.

    While another host than the VM's does not say, the clone stays open and keeps what it may stand on.
    """
    old = Job(await job.db.run(operations.job, left.operation), job.db, job.hosts, job.patience)
    try:
        view = await transaction.outcome_of(old, left.transaction)
    except HostNotFound:  # it was removed, with all its VMs
        view = None
    except OutcomeUnknown:
        if old.host == job.host:
            raise
        return
    if view is not None and view.state == "committed":
        await job.db.run(clones.ready, left.vm, left.transaction, None, utc_now())
    else:
        await job.db.run(clones.undone, left.vm, left.transaction)


async def _settle_one(job: Job, old: Job, promised: Ending, *, given_up: bool) -> None:
    """Ask how an earlier operation's transaction ended, and record it.

    Once the VM is another host's and no longer that one's, the definition by which it went on decides.
    """
    try:
        view = await transaction.outcome_of(old, promised.transaction)
    except (OutcomeUnknown, HostNotFound) as err:
        if given_up and old.host != job.host:
            return
        if not await job.db.run(_went_on_elsewhere, job.vm, old.host):
            raise
        facts = await job.db.run(vms.last_facts, job.vm)
        switched = await job.db.run(ending.as_defined, promised, facts.disks)
        if switched is None:
            raise
        told = {"operation": old.uuid, "vm": job.vm, "host": old.host, "took-effect": switched, "reason": str(err)}
        log.warning(kv("outcome-read-from-definition", **told))
        return
    if view is not None and view.state == "committed":
        await old.db.run(ending.committed, promised, view)
    else:
        await old.db.run(ending.undone, promised, view)


def _went_on_elsewhere(vm: UUID, host: str) -> bool:
    defined_on = vms.defined_on(vm)
    return bool(defined_on) and host not in defined_on


def _open_snapshots(vm: UUID, but: set[UUID | None]) -> list[Snapshot]:
    with read():
        found = [one for state in _OPEN for one in snapshots.page(_AT_ONCE, vm=vm, state=state).items]
    return [one for one in found if one.uuid not in but]


def _unsettled(vm: UUID, but: set[UUID | None]) -> list[tuple[operations.Job, Ending]]:
    """Return, for each open snapshot, the newest operation that promised to bring it out of that state.

    A VM's operations run one after the other, so an older one of the same kind has had its end recorded. While
    a host is away thousands may have come and failed since.
    """
    found: dict[UUID, tuple[operations.Job, Ending]] = {}
    with read():
        left = _open_snapshots(vm, but)
        page = operations.page(_AT_ONCE, vm=vm)
        while len(found) < len(left):
            for row, promised in _promises(page.items):
                for snapshot in (each.uuid for each in left if _concerns(promised, each)):
                    found.setdefault(snapshot, (row, promised))
            if page.next is None:
                break
            page = operations.page(_AT_ONCE, page.next, vm=vm)
    return list({promised.transaction: (row, promised) for row, promised in found.values()}.values())


def _promises(of: list[Operation]) -> Iterator[tuple[operations.Job, Ending]]:
    for one in of:
        row = operations.job(one.uuid)
        yield from ((row, promised) for promised in ending.endings(row.memo))


def _concerns(promised: Ending, one: Snapshot) -> bool:
    """Return whether this is what put the snapshot into its open state."""
    if one.state == "creating":
        return one.uuid == (promised.snapshot if promised.kind == "snapshot" else promised.undo)
    return one.uuid == promised.snapshot and promised.kind == {"reverting": "revert", "deleting": "delete"}[one.state]
