"""The plan of a deletion: each frozen file is merged away in the direction that moves fewer bytes.

``rebase``  the child gets what it sees of the frozen file, stands on what is below, and the frozen file is unlinked
``commit``  the frozen file gets what the child holds and takes the child's name: neither the domain nor the child's
            own children need another

The steps come in four groups, each begun only when the one before has succeeded on every disk: the rebases, which
change no frozen file; the frozen files that nothing stands on any more are set aside, which can be taken back; the
commits, which write to frozen files that their child covers; then those take their child's place. What was set aside
is removed only when all of it is done: one file that will not go keeps them all.
"""

from pathlib import Path

from agent.errors import ImageRefused, SnapshotHasChildren
from agent.transactions.model import (
    AnyStep,
    CommitChild,
    Doomed,
    Plan,
    RebaseChild,
    RemoveFile,
    ReplaceChild,
    Room,
    SetAsideFrozen,
)
from agent.transactions.plan import groups_of
from agent.transactions.room import require_room
from agent.wire.vm import Image


def plan_delete(doomed: list[Doomed], room: Room) -> Plan:
    """Plan a deletion. Raises ImageRefused, SnapshotHasChildren, NoSpace.

    No reserve is kept free: deleting is the way out where room is short.
    """
    rebases: list[AnyStep] = []
    asides: list[AnyStep] = []
    commits: list[AnyStep] = []
    replaces: list[AnyStep] = []
    removals: list[AnyStep] = []
    wanted: list[tuple[Path, int]] = []
    _require_apart(doomed)
    for volume in doomed:
        frozen, child = volume.frozen, _only_child(volume)
        if frozen is None:
            continue
        if child is not None and _goes_down(volume, frozen, child):
            commits.append(_commit(volume, frozen, child))
            replaces.append(ReplaceChild(target=volume.target, frozen=volume.path, child=child.path))
            wanted.append((Path(volume.path).parent, _growth(frozen, child.allocated_bytes)))
            continue
        if child is not None:
            rebases.append(_rebase(volume, frozen, child))
            wanted.append((Path(child.path).parent, _growth(child, frozen.allocated_bytes)))
        asides.append(SetAsideFrozen(target=volume.target, path=volume.path, staged=volume.staged))
        removals.append(RemoveFile(what=f"frozen {volume.target}", path=volume.staged))
    require_room(wanted, room)
    return Plan(switch=groups_of(rebases, asides, commits, replaces), clean=groups_of(removals))


def _require_apart(doomed: list[Doomed]) -> None:
    """Refuse merges that have a file in common: what one stands its child on, the other might take away."""
    seen: set[str] = set()
    for volume in doomed:
        for path in (volume.path, *volume.children):
            if path in seen:
                reason = "another merge of the same request has to do with it too"
                raise ImageRefused(target=volume.target, path=path, reason=reason)
            seen.add(path)


def _only_child(volume: Doomed) -> Image | None:
    """Choose the child that still stands on the frozen file; refuse what would lose somebody's data."""
    for path in (path for path, image in volume.children.items() if image is None):
        reason = (
            "it stood on the file that is to go and is gone. If its file system is not mounted, mount it; otherwise"
        )
        raise ImageRefused(target=volume.target, path=path, reason=f"{reason} delete the snapshot that it is of first")
    if volume.frozen is None:
        return None
    if volume.written_by:
        reason = f"it is a disk of {', '.join(volume.written_by)}, which writes to it"
        raise ImageRefused(target=volume.target, path=volume.path, reason=reason)
    unknown = sorted(set(volume.dependents) - volume.children.keys())
    if unknown:
        reason = f"{unknown[0]} stands on it and belongs to no snapshot of this VM"
        raise ImageRefused(target=volume.target, path=volume.path, reason=reason)
    for path, names in volume.taken.items():
        raise ImageRefused(target=volume.target, path=path, reason=f"it is a disk of {', '.join(names)} too")
    standing = [image for image in volume.children.values() if image and image.backing == volume.path]
    for path, image in volume.children.items():
        if image is not None and image.backing not in (volume.path, volume.frozen.backing):
            raise ImageRefused(target=volume.target, path=path, reason=f"it stands on {image.backing}")
    if len(standing) > 1:
        raise SnapshotHasChildren(target=volume.target, path=volume.path, count=len(standing))
    return standing[0] if standing else None


def _goes_down(volume: Doomed, frozen: Image, child: Image) -> bool:
    """Tell whether the child is to be committed down: that moves less, and nobody but the child sees the frozen file.

    Within one directory only: a rename is one step there, and a relative backing name keeps its meaning.
    """
    return (
        child.allocated_bytes < frozen.allocated_bytes
        and volume.private
        and frozen.virtual_size_bytes == child.virtual_size_bytes
        and Path(frozen.path).parent == Path(child.path).parent
    )


def _growth(written: Image, moved_bytes: int) -> int:
    """Bound what a file can grow by when ``moved_bytes`` are written to it: never beyond its virtual size."""
    return min(moved_bytes, max(0, written.virtual_size_bytes - written.allocated_bytes))


def _commit(volume: Doomed, frozen: Image, child: Image) -> CommitChild:
    return CommitChild(
        target=volume.target,
        frozen=volume.path,
        child=child.path,
        allocated_bytes=child.allocated_bytes,
        fingerprint=frozen.fingerprint,
    )


def _rebase(volume: Doomed, frozen: Image, child: Image) -> RebaseChild:
    return RebaseChild(
        target=volume.target,
        frozen=volume.path,
        child=child.path,
        backing=frozen.backing,
        backing_format=frozen.backing_format,
        allocated_bytes=frozen.allocated_bytes,
        child_bytes=child.allocated_bytes,
    )
