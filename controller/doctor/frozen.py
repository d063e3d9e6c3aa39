"""Frozen files as they are, against what was recorded when they were frozen. Pure."""

from collections.abc import Iterator

from agent.wire.finding import Finding, Severity
from agent.wire.snapshot import Snapshot
from agent.wire.upkeep import ImageState
from controller.store.snapshots import GroupVolume

_COPY = "Put the file back from a copy that was made before, with its times: cp -p"


def judge(snapshot: Snapshot, volume: GroupVolume, state: ImageState) -> list[Finding]:
    """Return what is wrong with one frozen file; empty where it is as it was recorded."""
    return list(_present(snapshot, volume, state)) if state.exists else [_gone(snapshot, volume)]


def _gone(snapshot: Snapshot, volume: GroupVolume) -> Finding:
    return _finding(
        snapshot,
        volume,
        ("frozen-file-missing", "error"),
        "is not there",
        f"{_COPY}. Without one, this snapshot and what stands on it cannot be used",
    )


def _present(snapshot: Snapshot, volume: GroupVolume, state: ImageState) -> Iterator[Finding]:
    if state.problem is not None:
        yield _finding(snapshot, volume, ("frozen-file-unusable", "error"), f"cannot be used: {state.problem}", _COPY)
        return
    if volume.altered:
        words = "was written to by a deletion that did not finish; what stands on it is whole"
        repair = f"Finish it: coldframe snapshot delete {snapshot.uuid}"
        yield _finding(snapshot, volume, ("frozen-file-altered", "error"), words, repair)
    if volume.fingerprint and state.fingerprint != volume.fingerprint:
        words = f"was written to after it was frozen (it is {state.fingerprint} now and was {volume.fingerprint})"
        yield _finding(snapshot, volume, ("frozen-file-altered", "error"), words, _COPY)
    if state.backing != volume.backing:
        words = f"stands on {state.backing or 'nothing'} and was recorded on {volume.backing or 'nothing'}"
        repair = f"If its bytes are the same there, put it back: qemu-img rebase -u; else: {_COPY}"
        yield _finding(snapshot, volume, ("backing-changed", "error"), words, repair)
    if state.errors:
        words = f"has {state.errors} error(s) in its metadata"
        repair = "Put the file back from a copy; qemu-img check -r all writes to it and is the last resort"
        yield _finding(snapshot, volume, ("image-corrupt", "error"), words, repair)
    if state.leaked_clusters:
        words = f"has {state.leaked_clusters} leaked cluster(s), which waste room and do no harm"
        yield _finding(snapshot, volume, ("image-leaks", "info"), words, "Leave it")
    if state.busy:
        words = "is written to by another process, so its metadata could not be checked"
        yield _finding(snapshot, volume, ("image-busy", "warning"), words, "See who has it open: fuser; verify again")


def _finding(snapshot: Snapshot, volume: GroupVolume, kind: tuple[str, Severity], what: str, repair: str) -> Finding:
    code, severity = kind
    return Finding(
        code=code,
        severity=severity,
        what=f"{volume.path}, frozen for disk {volume.target} of snapshot {snapshot.name}, {what}",
        repair=repair,
        host=volume.host,
        vm=snapshot.vm,
        snapshot=snapshot.uuid,
        path=volume.path,
    )
