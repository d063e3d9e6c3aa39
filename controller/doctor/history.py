"""What agents remember of the last thirty days, against the records: how an older copy of the database shows. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from agent.wire.finding import Finding
from agent.wire.snapshot import Snapshot
from agent.wire.transaction import Transaction
from agent.wire.upkeep import ImageState
from controller.doctor import frozen
from controller.doctor.look import Look
from controller.store.snapshots import GroupVolume
from controller.store.survey import Records


@dataclass(frozen=True)
class Rewrite:
    """When a deletion moved a file to another backing file, and to which."""

    at: datetime
    backing: str | None


#: By path and the fingerprint that the file had then.
Rewrites = Mapping[tuple[str, str | None], Rewrite]


def judge(look: Look, records: Records) -> list[Finding]:
    """Return frozen files that are not as recorded, and snapshots that only the host or only the records know."""
    deleted, rewritten = deletions(look), rewrites(look.transactions)
    by_snapshot: dict[UUID, list[tuple[GroupVolume, ImageState]]] = {}
    for volume in records.volumes_of(look.host):
        if volume.snapshot is not None and volume.path in look.images:
            by_snapshot.setdefault(volume.snapshot, []).append((volume, look.images[volume.path]))
    found = list(_unrecorded(look, records, deleted))
    for uuid, states in by_snapshot.items():
        snapshot = records.snapshots[uuid]
        whole = len(states) == len(snapshot.volumes)
        if uuid in deleted and whole and not snapshot.protected and not any(state.exists for _, state in states):
            found.append(_deleted(look, records, uuid, deleted[uuid]))
        else:
            for volume, state in states:
                at = moved_at(volume, state, rewritten)
                found += frozen.judge(snapshot, volume, state) if at is None else [_rewritten(snapshot, volume, at)]
    return found


def rewrites(transactions: list[Transaction]) -> Rewrites:
    """Return how deletions, finished or stopped, have left the files that stood on what they deleted."""
    return {
        (path, fingerprint): Rewrite(one.ended_at, outcome.new_backing)
        for one in transactions
        if one.kind == "delete" and one.ended_at is not None
        for outcome in one.outcomes
        for path, fingerprint in outcome.fingerprints.items()
    }


def moved_at(volume: GroupVolume, state: ImageState, rewritten: Rewrites) -> datetime | None:
    """Return when a deletion left a file just as it is; None where none did, or where the records tell of it."""
    left = rewritten.get((state.path, state.fingerprint))
    if left is None or volume.altered or state.problem is not None or state.backing != left.backing:
        return None
    return None if (volume.fingerprint, volume.backing) == (state.fingerprint, state.backing) else left.at


def _rewritten(snapshot: Snapshot, volume: GroupVolume, at: datetime) -> Finding:
    what = f"{volume.path}, frozen for disk {volume.target} of snapshot {snapshot.name}, was moved to another backing"
    return Finding(
        code="rewritten-on-host",
        severity="error",
        what=f"{what} file by a deletion at {at:%Y-%m-%d %H:%M:%S}: the records are older than that",
        repair="Record it as the host left it; it holds the same data",
        safe=True,
        host=volume.host,
        vm=snapshot.vm,
        snapshot=snapshot.uuid,
        path=volume.path,
    )


def deletions(look: Look) -> dict[UUID, datetime]:
    """Return the snapshots whose every disk this host has merged away, and when."""
    return {
        one.snapshot: one.ended_at or one.started_at
        for one in look.transactions
        if one.kind == "delete"
        and one.state == "committed"
        and one.snapshot is not None
        and all(outcome.done for outcome in one.outcomes)
    }


def _deleted(look: Look, records: Records, uuid: UUID, at: datetime) -> Finding:
    snapshot = records.snapshots[uuid]
    what = (
        f"snapshot {snapshot.name} of VM {snapshot.vm_name} was deleted on host {look.host} at {at:%Y-%m-%d %H:%M:%S}"
    )
    return Finding(
        code="deleted-on-host",
        severity="error",
        what=f"{what} and is still in the records: they are older than that",
        repair="Remove its records; its files are gone",
        safe=True,
        host=look.host,
        vm=snapshot.vm,
        snapshot=uuid,
    )


def _unrecorded(look: Look, records: Records, deleted: dict[UUID, datetime]) -> Iterator[Finding]:
    """Snapshots that the host made and no record tells of."""
    standing = {image.path for vm in look.vms for disk in vm.disks for image in disk.chain[1:]}
    # The files of a snapshot that was deleted may be recorded still, as hidden bases; on another host where its VM was
    # moved away from its clones.
    standing -= {one.path for one in records.volumes if not one.merged}
    for one in look.transactions:
        if _lost(one, records) and one.snapshot not in deleted and standing & {file.path for file in one.volumes}:
            files = ", ".join(file.path for file in one.volumes)
            taken = f"{one.started_at:%Y-%m-%d %H:%M:%S}"
            what = f"snapshot {one.snapshot} of VM {records.vms[one.vm].name} was taken at {taken}"
            yield Finding(
                code="snapshot-not-recorded",
                severity="warning",
                what=f"{what} and no record tells of it: the database is older than that. Its frozen files: {files}",
                repair="Restore a newer copy of the database; else leave the files, which the VM's disks stand on",
                host=look.host,
                vm=one.vm,
                snapshot=one.snapshot,
            )


def _lost(one: Transaction, records: Records) -> bool:
    made = one.kind == "snapshot" and one.state == "committed" and one.snapshot is not None
    if not made or one.snapshot in records.snapshots or one.vm not in records.vms or one.vm in records.busy:
        return False
    forgotten = records.forgotten.get(one.vm)
    return forgotten is None or forgotten < one.started_at
