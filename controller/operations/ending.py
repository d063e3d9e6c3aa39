"""How the end of a transaction is written into the records, whoever learns of it: the operation, or a later one.

Plain functions for the database's thread. Each takes the records to their new state in one transaction and may be
run again.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal
from uuid import UUID

import msgspec

from agent.wire.base import Request
from agent.wire.transaction import Transaction, VolumeOutcome
from agent.wire.vm import Disk
from controller.db import write
from controller.errors import SnapshotNotFound
from controller.operations.job import CONCLUDED, Job
from controller.store import bases, groups, operations, snapshots
from controller.store.groups import NewGroup

_KEY = "ending "


class Ending(Request, kw_only=True, frozen=True):
    """What a transaction does to the records. Remembered by an operation before its first change.

    ``snapshot`` is made, reverted to or deleted; ``undo`` is the undo point of a revert. ``moves_current`` is
    false for a revert of single volumes. ``kept`` are the disks of a deletion whose files stay as hidden bases;
    ``bases`` (by target) are the hidden bases on ``host`` that a merge takes away.
    """

    kind: Literal["snapshot", "revert", "delete", "merge"]
    transaction: UUID
    snapshot: UUID
    undo: UUID | None = None
    moves_current: bool = True
    kept: list[str] = []
    host: str = ""
    bases: dict[str, str] = {}

    def promised(self) -> dict[str, Any]:
        """Return what an operation remembers before it begins the transaction."""
        return {f"{_KEY}{self.transaction}": self}


async def promise(job: Job, ending: Ending, facts: Mapping[str, Any]) -> None:
    """Remember what the transaction that comes next does to the records, with ``facts``, and how it is taken back."""
    taken_back_on_failure(job, ending)
    await job.step("prepare", {**ending.promised(), **facts})


def taken_back_on_failure(job: Job, ending: Ending) -> None:
    """Have the job take a promise back if it fails before its commit was sent."""
    job.on_failure(ending.transaction, partial(job.owned, undone, ending))


def endings(memo: Mapping[str, Any]) -> list[Ending]:
    """Return what an operation has promised so far."""
    return [msgspec.convert(value, Ending) for key, value in memo.items() if key.startswith(_KEY)]


def recorded(operation: UUID, new: NewGroup) -> None:
    """Write a group as ``creating``, and remember that it is: a later run need not fetch its host files again."""
    with write():
        groups.create(new)
        operations.progress(operation, memo={"recorded": True})


def concluded(
    operation: UUID, ending: Ending, view: Transaction, result: Mapping[str, Any], memo: str = CONCLUDED
) -> None:
    """Record a commit and remember the operation's result, which a later run answers with.

    Under another name than ``CONCLUDED`` it is the result of a part, and the operation goes on.
    """
    with write():
        committed(ending, view)
        operations.progress(operation, memo={memo: result})


def committed(ending: Ending, view: Transaction) -> list[VolumeOutcome]:
    """Record that the host carried it out; return the disks of a deletion or merge that could not be done."""
    with write():
        if ending.kind == "delete":
            return _deleted(ending, view.outcomes)
        if ending.kind == "merge":
            return _merged(ending, view.outcomes)
        _switched(ending)
        return []


def _switched(ending: Ending) -> None:
    if ending.kind == "snapshot":
        groups.ready(ending.snapshot)
    else:
        groups.reverted(ending.snapshot, ending.undo, moves_current=ending.moves_current)


def as_defined(ending: Ending, disks: list[Disk]) -> bool | None:
    """Record how it ended as the VM's disks show, where its host cannot be asked any more; true: it took effect.

    None where a chain is not known: nothing is recorded. The definition is switched to all new files at one moment. A
    deletion or merge counts as stopped: a frozen file that it had changed no longer has its fingerprint, and is
    refused by name by whatever would use it.
    """
    with write():
        switched = _shows(ending, disks) if ending.kind in {"snapshot", "revert"} else False
        if switched:
            _switched(ending)
        elif switched is not None:
            undone(ending)
        return switched


def _shows(ending: Ending, disks: list[Disk]) -> bool | None:
    """Return whether the disks are as a snapshot or revert leaves them: on new files, right above its frozen ones."""
    chains = {disk.target: [image.path for image in disk.chain] for disk in disks}
    try:
        frozen = {one.target: one.path for one in snapshots.group(ending.snapshot).volumes}
        before = {one.target: one.path for one in snapshots.group(ending.undo).volumes} if ending.undo else {}
    except SnapshotNotFound:  # it was not even written down
        return False
    if not all(chains.get(target) for target in frozen):
        return None
    fresh = all(chains[target][0] != path for target, path in before.items() if target in frozen)
    return bool(frozen) and fresh and all(chains[target][1:2] == [path] for target, path in frozen.items())


def deleted(operation: UUID, ending: Ending, view: Transaction, result: Mapping[str, Any]) -> list[VolumeOutcome]:
    """Record a deletion, and where every disk is done remember the result; return the disks that are not."""
    with write():
        failed = committed(ending, view)
        if not failed:
            operations.progress(operation, memo={CONCLUDED: result})
        return failed


def _merged(ending: Ending, outcomes: list[VolumeOutcome]) -> list[VolumeOutcome]:
    """Each base that is gone goes from the records; what was moved off the others has been moved."""
    for one in outcomes:
        path = ending.bases.get(one.target, "")
        bases.record(ending.host, path, one)
    return [one for one in outcomes if not one.done]


def _deleted(ending: Ending, outcomes: list[VolumeOutcome]) -> list[VolumeOutcome]:
    """The snapshot goes with its backup files when every disk is done, and stays whole in what is left until then."""
    snapshot = ending.snapshot
    backings = {volume.target: volume.backing for volume in snapshots.group(snapshot).volumes}
    for outcome in outcomes:
        # While one disk fails the host keeps every frozen file, but what was moved off them has been moved.
        _moved(snapshot, outcome)
        if outcome.done:
            groups.merged(snapshot, outcome.target, {}, outcome.new_backing or backings.get(outcome.target))
    left = {volume.target for volume in snapshots.group(snapshot).volumes if not volume.merged} - set(ending.kept)
    if left:
        groups.settle(snapshot)
    else:
        groups.remove(snapshot, ending.kept)
    told = {outcome.target: outcome for outcome in outcomes}
    return [told.get(target, VolumeOutcome(target=target, done=False)) for target in sorted(left)]


def _moved(snapshot: UUID, outcome: VolumeOutcome) -> None:
    groups.rebased(snapshot, outcome.target, outcome.fingerprints)
    if outcome.altered is not None:
        groups.altered(snapshot, outcome.target, outcome.altered)


def undone(ending: Ending, view: Transaction | None = None) -> None:
    """Record that nothing came of it: what it was to make goes, the rest is ready as before. Again: no effect.

    A deletion that was stopped (``view``) has moved children off frozen files that are all still there.
    """
    with write():
        if ending.kind == "merge":
            if view is not None:
                _merged(ending, view.outcomes)
            return
        made = ending.snapshot if ending.kind == "snapshot" else ending.undo
        if made is not None:
            _remove_unfinished(made, ending.transaction)
        if ending.kind != "snapshot":
            try:
                for outcome in [] if view is None else view.outcomes:
                    _moved(ending.snapshot, outcome)
                groups.settle(ending.snapshot)
            except SnapshotNotFound:
                return


def parked(operation: UUID, again_s: float) -> None:
    """Take an operation back until its VM has stopped; nothing comes of what it had promised, which it forgets."""
    with write():
        for one in endings(operations.job(operation).memo):
            undone(one)
        operations.park(operation, again_s)


def _remove_unfinished(snapshot: UUID, transaction: UUID) -> None:
    """Remove a group that this transaction was to make whole. Another one's of the same UUID is not ours to remove."""
    try:
        group = snapshots.group(snapshot)
    except SnapshotNotFound:
        return
    if group.snapshot.state == "creating" and group.transaction == transaction:
        groups.remove(snapshot)
