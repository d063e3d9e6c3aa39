"""From facts and a request to a plan, for each kind of transaction. Nothing here touches anything."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from uuid import UUID

from agent.errors import (
    DiskAttached,
    DiskDetached,
    DiskUnknown,
    DiskUnsupported,
    FrozenFileAltered,
    HostFileDamaged,
    HostFileMissing,
    HostFileNotFound,
    ImageRefused,
)
from agent.transactions.model import (
    AnyStep,
    CaptureHostFile,
    CreateOverlay,
    Facts,
    KeepDeparture,
    Plan,
    ReceiveHostFile,
    RemoveFile,
    SetAsideHostFile,
    SwapHostFile,
    SwitchDisks,
    UndefineDomain,
)
from agent.transactions.room import require_room
from agent.wire.host_file import HostFile, HostFileType, MissingHostFile
from agent.wire.transaction import DepartRequest, HostFileRef, RestoreRequest, RevertRequest, SnapshotRequest
from agent.wire.vm import Disk, Image

#: The longest file name that Linux file systems take, in bytes (NAME_MAX).
NAME_MAX_BYTES = 255
_OVERLAY_NAME = re.compile(r"(?P<stem>.+)\.cf-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\.[^.]+\.qcow2", re.DOTALL)


def overlay_path(present: str, transaction: UUID, target: str, directory: Path | None = None) -> str:
    """Name the new overlay for a disk whose present file is ``present``.

    The name carries the transaction and the target, so that no two overlays meet, and keeps the disk's own stem
    however many snapshots it has seen.
    """
    path = Path(present)
    match = _OVERLAY_NAME.fullmatch(path.name)
    stem = match["stem"] if match else path.name.removesuffix(".qcow2")
    tail = f".cf-{transaction}.{target}.qcow2"
    room = NAME_MAX_BYTES - len(tail.encode())
    kept = stem.encode("utf-8", "surrogateescape")[:room].decode("utf-8", "ignore")
    return str((directory or path.parent) / f"{kept}{tail}")


def is_overlay(path: str) -> bool:
    """Tell whether a file is named as Coldframe names its overlays."""
    return _OVERLAY_NAME.fullmatch(Path(path).name) is not None


def plan_snapshot(facts: Facts, request: SnapshotRequest) -> Plan:
    """Plan a snapshot: one overlay a disk, every host file captured, one switch."""
    disks = _covered_disks(facts, request.exclude)
    captured = _host_files_to_capture(facts, request)
    overlays = [_overlay(facts, disk.target, _top(disk)) for disk in disks]
    _check_space(facts, overlays, captured)
    listed = {*request.exclude, *(disk.target for disk in facts.disks if disk.excluded_because)}
    return Plan(
        stage=groups_of(overlays, [_capture(facts, item.type) for item in captured]),
        switch=_switch(request.vm, overlays, {disk.target: _path(disk) for disk in disks}),
        clean=[[RemoveFile(what="captured host files", path=str(facts.staging))]],
        excluded=sorted(listed),
        missing=[] if request.host_files == "none" else facts.missing,
    )


def plan_revert(facts: Facts, request: RevertRequest) -> Plan:
    """Plan a revert: one overlay a frozen file, host files received and swapped in, one switch."""
    present = {disk.target: disk for disk in facts.disks}
    _check_members(facts, request, present)
    overlays = [
        _overlay(facts, volume.target, _frozen_top(facts, volume.target, volume.path, volume.fingerprint))
        for volume in request.volumes
    ]
    captured = facts.present if request.undo and not request.alone else []
    _check_space(facts, overlays, captured)
    receive = [] if request.alone else [_receive(facts, ref) for ref in request.host_files]
    touched = {step.type for step in receive}
    aside = [] if request.alone else [item.type for item in facts.present if item.type in request.remove]
    tops = {volume.target: _path(present[volume.target]) for volume in request.volumes}
    dropped = [] if request.undo else [path for path in _tops_of(present, tops) if _may_go(path, facts, request)]
    swaps, asides = _swaps(facts, receive), [_set_aside(facts, type_) for type_ in aside]
    moves: list[SwapHostFile | SetAsideHostFile] = [*swaps, *asides]
    staged: list[ReceiveHostFile | SetAsideHostFile] = [*receive, *asides]
    leftovers: list[AnyStep] = [RemoveFile(what=f"staged {step.type}", path=step.staged) for step in staged]
    leftovers += [RemoveFile(what=f"old top {Path(path).name}", path=path) for path in dropped]
    return Plan(
        stage=groups_of(overlays, [_capture(facts, item.type) for item in captured]),
        receive=receive,
        switch=[*groups_of(*([step] for step in moves)), *_switch(request.vm, overlays, tops)],
        clean=[[*leftovers, RemoveFile(what="captured host files", path=str(facts.staging))]],
        excluded=request.excluded,
        missing=facts.missing if request.undo else [],
        kept=[item.type for item in facts.present if item.type not in touched | set(aside)],
    )


def _tops_of(present: dict[str, Disk], targets: Iterable[str]) -> list[str]:
    """Return the resolved top files of these disks."""
    return [present[target].chain[0].path for target in targets if present[target].chain]


def _may_go(path: str, facts: Facts, request: RevertRequest) -> bool:
    """Tell whether an old top is of no use to anybody once the domain has left it.

    It is kept where a snapshot holds it or something stands on it: an administrator may have put the domain back
    on a frozen file by hand.
    """
    return is_overlay(path) and path not in facts.in_use and path not in request.held


def plan_restore(facts: Facts, request: RestoreRequest) -> Plan:
    """Plan putting host files in place: those that they replace are captured first."""
    receive = [_receive(facts, ref) for ref in request.host_files]
    swaps = _swaps(facts, receive)
    replaced = [item for item in facts.present if item.type in {step.type for step in swaps}]
    leftovers: list[AnyStep] = [RemoveFile(what=f"staged {step.type}", path=step.staged) for step in receive]
    return Plan(
        stage=groups_of([_capture(facts, item.type) for item in replaced]),
        receive=receive,
        switch=groups_of(*([step] for step in swaps)),
        clean=[[*leftovers, RemoveFile(what="captured host files", path=str(facts.staging))]],
    )


def departed_dir(state_dir: Path, vm: UUID) -> Path:
    """Return where what a domain had is kept once it was taken away."""
    return state_dir / "departed" / str(vm)


def plan_depart(facts: Facts, request: DepartRequest, xml: str) -> Plan:
    """Plan taking a domain away: host files aside first, as some versions of libvirt delete a TPM with its domain."""
    aside = [_set_aside(facts, item.type) for item in facts.present if item.type not in request.keep]
    leftovers: list[AnyStep] = [RemoveFile(what=f"staged {step.type}", path=step.staged) for step in aside]
    kept = departed_dir(facts.staging.parent.parent, request.vm)
    undefine = UndefineDomain(vm=request.vm, title=facts.name, xml=xml)
    return Plan(
        stage=groups_of([_capture(facts, item.type) for item in facts.present]),
        switch=groups_of(*([step] for step in aside), [undefine]),
        clean=[[KeepDeparture(staging=str(facts.staging), kept=str(kept), xml=xml)], *groups_of(leftovers)],
        missing=facts.missing,
    )


def _covered_disks(facts: Facts, exclude: list[str]) -> list[Disk]:
    """Choose the disks to freeze; refuse by name what cannot be frozen and was not excluded."""
    targets = [disk.target for disk in facts.disks]
    for target in exclude:
        if target not in targets:
            raise DiskUnknown(name=facts.name, target=target, targets=", ".join(targets) or "none")
    chosen = [disk for disk in facts.disks if disk.target not in exclude and not is_empty_drive(disk)]
    for disk in chosen:
        if disk.excluded_because:
            raise DiskUnsupported(name=facts.name, target=disk.target, reason=disk.excluded_because)
    return chosen


def is_empty_drive(disk: Disk) -> bool:
    """Tell whether a removable drive holds no medium: there is nothing to cover and nothing to lose."""
    return disk.path is None and disk.excluded_because == "no medium"


def _host_files_to_capture(facts: Facts, request: SnapshotRequest) -> list[HostFile]:
    if request.host_files == "none":
        return []
    if request.host_files == "required":
        for item in facts.missing:
            refuse_host_file(facts.name, item)
    return facts.present


def refuse_host_file(name: str, item: MissingHostFile) -> None:
    """Raise what is wrong with a host file that must be sound."""
    kind = HostFileDamaged if item.code == HostFileDamaged.code else HostFileMissing
    raise kind(name=name, type=item.type, path=item.path, reason=item.reason)


def _check_members(facts: Facts, request: RevertRequest, present: dict[str, Disk]) -> None:
    members = {volume.target for volume in request.volumes}
    for target in sorted(members - present.keys()):
        raise DiskDetached(name=facts.name, target=target)
    if request.alone:
        return
    for disk in facts.disks:
        if disk.target not in members and disk.target not in request.excluded and not is_empty_drive(disk):
            raise DiskAttached(name=facts.name, target=disk.target)


def _frozen_top(facts: Facts, target: str, path: str, fingerprint: str) -> Image:
    top = facts.frozen[path][0]
    if fingerprint and fingerprint != top.fingerprint:
        reason = f"it was written to after it was frozen (size:mtime is {top.fingerprint}, was {fingerprint})"
        raise FrozenFileAltered(target=target, path=path, reason=reason)
    return top


def _top(disk: Disk) -> Image:
    if not disk.chain:
        raise ImageRefused(target=disk.target, path=disk.path, reason=disk.problem or "it cannot be read")
    return disk.chain[0]


def _path(disk: Disk) -> str:
    if disk.path is None:
        raise ImageRefused(target=disk.target, path="(no source)", reason="the drive is empty")
    return disk.path


def _overlay(facts: Facts, target: str, top: Image) -> CreateOverlay:
    return CreateOverlay(
        target=target,
        path=overlay_path(top.path, facts.transaction, target),
        backing=top.path,
        backing_format=top.format,
        size_bytes=top.virtual_size_bytes,
        like=top.path,
    )


def _switch(vm: UUID, overlays: list[CreateOverlay], tops: dict[str, str]) -> list[list[AnyStep]]:
    if not overlays:
        return []
    return [[SwitchDisks(vm=vm, sources={step.target: (tops[step.target], step.path) for step in overlays})]]


def groups_of(*groups: Sequence[AnyStep]) -> list[list[AnyStep]]:
    """Give the groups of a plan, in order, without those that are empty."""
    return [list(group) for group in groups if group]


def _capture(facts: Facts, type_: HostFileType) -> CaptureHostFile:
    return CaptureHostFile(type=type_, staged=str(facts.staging / type_))


def _host_file_path(facts: Facts, type_: HostFileType) -> Path:
    path = facts.host_file_paths.get(type_)
    if path is None:
        raise HostFileNotFound(name=facts.name, type=type_)
    return path


def _staged(facts: Facts, type_: HostFileType, path: Path) -> str:
    return str(path.parent / f".coldframe-{facts.transaction}-{type_}")


def _receive(facts: Facts, ref: HostFileRef) -> ReceiveHostFile:
    path = _host_file_path(facts, ref.type)
    return ReceiveHostFile(
        type=ref.type,
        format=ref.format,
        path=str(path),
        staged=_staged(facts, ref.type, path),
        size_bytes=ref.size_bytes,
        sha256=ref.sha256,
    )


def _swaps(facts: Facts, receive: list[ReceiveHostFile]) -> list[SwapHostFile]:
    """Swap in what differs from what is there.

    A file that is in place already must not be touched: that it has the new bytes is how undoing tells a swap that
    was done, so it would take the domain's own file for the uploaded one.
    """
    present = {item.type: item.sha256 for item in facts.present}
    changed = [step for step in receive if present.get(step.type) != step.sha256]
    return [SwapHostFile(type=step.type, path=step.path, staged=step.staged, sha256=step.sha256) for step in changed]


def _set_aside(facts: Facts, type_: HostFileType) -> SetAsideHostFile:
    path = _host_file_path(facts, type_)
    return SetAsideHostFile(type=type_, path=str(path), staged=_staged(facts, type_, path))


def _check_space(facts: Facts, overlays: list[CreateOverlay], captured: list[HostFile]) -> None:
    """Refuse when a file system lacks room for what the plan will write there, with the reserve kept free."""
    wanted = [(Path(step.path).parent, facts.overlay_bytes[step.backing]) for step in overlays]
    wanted += [(facts.staging.parent, item.size_bytes) for item in captured]
    require_room(wanted, facts.room, facts.reserve_bytes)
