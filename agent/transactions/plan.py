"""From facts and a request to a list of steps. Nothing here touches anything.

A plan has four parts, run in this order:

``stage``    before commit; every step makes something new under a name that carries the transaction's id
``receive``  before commit; the host files that the controller uploads, each to its staged name
``switch``   after the journal's commit record; redone after a crash, undone when a step fails
``clean``    after the switch; removes what nobody needs any more

The steps of one inner list do not depend on each other and may run side by side.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

import msgspec

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
    NoSpace,
    SnapshotHasChildren,
)
from agent.wire.host_file import HostFile, HostFileFormat, HostFileType, MissingHostFile
from agent.wire.transaction import RevertRequest, SnapshotRequest
from agent.wire.vm import Disk, Image

#: The longest file name that Linux file systems take, in bytes (NAME_MAX).
NAME_MAX_BYTES = 255
_OVERLAY_NAME = re.compile(r"(?P<stem>.+)\.cf-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\.[^.]+\.qcow2", re.DOTALL)


class Step(msgspec.Struct, kw_only=True, frozen=True):
    """One thing to do. Every step can be done twice and undone twice with the effect of once."""

    @property
    def name(self) -> str:
        """Say what the step does, for people and for tests that kill the agent at it."""
        raise AssertionError(f"{type(self).__name__} has no name")


class CreateOverlay(Step, kw_only=True, frozen=True, tag="create-overlay"):
    """Create an empty qcow2 overlay ``path`` on ``backing``, owned like ``like``."""

    target: str
    path: str
    backing: str
    backing_format: str
    size_bytes: int
    like: str

    @property
    def name(self) -> str:
        """Name the disk."""
        return f"create-overlay {self.target}"


class CaptureHostFile(Step, kw_only=True, frozen=True, tag="capture-host-file"):
    """Copy a present host file to ``staged`` for the controller to fetch."""

    type: HostFileType
    staged: str

    @property
    def name(self) -> str:
        """Name the type."""
        return f"capture {self.type}"


class ReceiveHostFile(Step, kw_only=True, frozen=True, tag="receive-host-file"):
    """Write an uploaded host file to ``staged``, beside ``path``, owned like what it will replace."""

    type: HostFileType
    format: HostFileFormat
    path: str
    staged: str
    size_bytes: int
    sha256: str

    @property
    def name(self) -> str:
        """Name the type."""
        return f"receive {self.type}"


class SwapHostFile(Step, kw_only=True, frozen=True, tag="swap-host-file"):
    """Exchange ``staged`` (whose bytes hash to ``sha256``) with what is at ``path``, if anything is."""

    type: HostFileType
    path: str
    staged: str
    sha256: str

    @property
    def name(self) -> str:
        """Name the type."""
        return f"swap {self.type}"


class SetAsideHostFile(Step, kw_only=True, frozen=True, tag="set-aside-host-file"):
    """Move a host file that the VM did not have at the snapshot out of libvirt's sight, to ``staged``."""

    type: HostFileType
    path: str
    staged: str

    @property
    def name(self) -> str:
        """Name the type."""
        return f"set-aside {self.type}"


class SwitchDisks(Step, kw_only=True, frozen=True, tag="switch-disks"):
    """Point the domain's disks from their old to their new top files: the one switch for all disks at once."""

    vm: UUID
    sources: dict[str, tuple[str, str]]

    @property
    def name(self) -> str:
        """Name the disks."""
        return f"switch-disks {' '.join(sorted(self.sources))}"


class RebaseChild(Step, kw_only=True, frozen=True, tag="rebase-child"):
    """Copy into ``child`` what it sees of ``frozen``, and stand it on ``backing`` instead (None: on nothing)."""

    target: str
    frozen: str
    child: str
    backing: str | None
    backing_format: str | None
    allocated_bytes: int

    @property
    def name(self) -> str:
        """Name the disk."""
        return f"rebase {self.target}"


class RemoveFile(Step, kw_only=True, frozen=True, tag="remove-file"):
    """Remove a file or a directory that nothing refers to any more."""

    what: str
    path: str

    @property
    def name(self) -> str:
        """Name what is removed."""
        return f"remove {self.what}"


AnyStep = (
    CreateOverlay
    | CaptureHostFile
    | ReceiveHostFile
    | SwapHostFile
    | SetAsideHostFile
    | SwitchDisks
    | RebaseChild
    | RemoveFile
)


class Plan(msgspec.Struct, kw_only=True, frozen=True):
    """The steps of one transaction; see the module's docstring for when each part runs."""

    stage: list[list[AnyStep]] = []
    receive: list[ReceiveHostFile] = []
    switch: list[list[AnyStep]] = []
    clean: list[list[AnyStep]] = []
    excluded: list[str] = []
    missing: list[MissingHostFile] = []
    kept: list[HostFileType] = []

    def names(self) -> list[str]:
        """List the names of all steps in the order in which they run."""
        parts: list[Sequence[Iterable[AnyStep]]] = [self.stage, [self.receive], self.switch, self.clean]
        return [step.name for part in parts for group in part for step in group]


@dataclass(frozen=True)
class Facts:
    """What the planner is told about one domain and its host.

    ``disks`` hold their chains, or a ``problem``. ``host_file_paths`` says where each type that the domain is
    configured to have lives (whether it exists or not); ``present`` are sound, ``missing`` are not.
    ``frozen`` gives the chain of each frozen file that a revert names. ``staging`` is the directory for captured
    host files. ``free_bytes`` maps a directory to what is free on its file system, ``device`` to which one it is.
    """

    transaction: UUID
    name: str
    disks: list[Disk]
    staging: Path
    host_file_paths: dict[HostFileType, Path] = field(default_factory=dict)
    present: list[HostFile] = field(default_factory=list)
    missing: list[MissingHostFile] = field(default_factory=list)
    frozen: dict[str, list[Image]] = field(default_factory=dict)
    free_bytes: dict[Path, int] = field(default_factory=dict)
    device: dict[Path, int] = field(default_factory=dict)
    reserve_bytes: int = 0


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


def overlay_bytes(virtual_size_bytes: int) -> int:
    """Give the bytes that a new, empty overlay takes at most.

    Four 64 KiB clusters (header, refcount table, refcount block, L1 table) and eight bytes of L1 for each 512 MiB
    (docs/interop/qcow2.txt in QEMU's source).
    """
    return 4 * 65_536 + 8 * (virtual_size_bytes // (512 * 1024 * 1024) + 1)


def plan_snapshot(facts: Facts, request: SnapshotRequest) -> Plan:
    """Plan a snapshot: one overlay a disk, every host file captured, one switch."""
    disks = _covered_disks(facts, request.exclude)
    captured = _host_files_to_capture(facts, request)
    overlays = [_overlay(facts, disk.target, _top(disk)) for disk in disks]
    _check_space(facts, overlays, captured)
    captures: list[AnyStep] = [_capture(facts, item.type) for item in captured]
    listed = {*request.exclude, *(disk.target for disk in facts.disks if disk.excluded_because)}
    return Plan(
        stage=[group for group in (list[AnyStep](overlays), captures) if group],
        switch=_switch(request.vm, overlays, {disk.target: _top(disk).path for disk in disks}),
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
    receive = [] if request.alone else [_receive(facts, request, ref.type) for ref in request.host_files]
    touched = {step.type for step in receive}
    aside = [] if request.alone else [item.type for item in facts.present if item.type in request.remove]
    tops = {volume.target: _path(present[volume.target]) for volume in request.volumes}
    dropped = [] if request.undo else [path for path in tops.values() if is_overlay(path)]
    swaps = [_swap(step) for step in receive]
    asides = [_set_aside(facts, type_) for type_ in aside]
    leftovers: list[AnyStep] = [RemoveFile(what=f"staged {step.type}", path=step.staged) for step in (*swaps, *asides)]
    leftovers += [RemoveFile(what=f"old top {Path(path).name}", path=path) for path in dropped]
    return Plan(
        stage=[
            group for group in (list[AnyStep](overlays), [_capture(facts, item.type) for item in captured]) if group
        ],
        receive=receive,
        switch=[[step] for step in (*swaps, *asides)] + _switch(request.vm, overlays, tops),
        clean=[[*leftovers, RemoveFile(what="captured host files", path=str(facts.staging))]],
        excluded=request.excluded,
        missing=facts.missing if request.undo else [],
        kept=[item.type for item in facts.present if item.type not in touched | set(aside)],
    )


def plan_host_file(facts: Facts, type_: HostFileType, format_: HostFileFormat, size_bytes: int, sha256: str) -> Plan:
    """Plan the replacement of one host file."""
    path = _host_file_path(facts, type_)
    receive = ReceiveHostFile(
        type=type_, format=format_, path=str(path), staged=_staged(facts, path), size_bytes=size_bytes, sha256=sha256
    )
    swap = _swap(receive)
    return Plan(
        receive=[receive],
        switch=[[swap]],
        clean=[[RemoveFile(what=f"staged {type_}", path=swap.staged)]],
    )


@dataclass(frozen=True)
class Doomed:
    """What the planner is told about one frozen file that is to be merged away.

    ``frozen`` is None when the file is gone already. ``children`` are the images that the controller named, by
    path (None: that file is gone). ``dependents`` are all files found standing on it: beside it on disk, and in the
    chains of the domain. ``is_top``: the domain itself writes to it.
    """

    target: str
    path: str
    frozen: Image | None
    children: dict[str, Image | None]
    dependents: list[str]
    is_top: bool


def plan_delete(name: str, doomed: list[Doomed]) -> Plan:
    """Plan a deletion: every child stands on what was below, and only when all do, the frozen files go."""
    rebases: list[AnyStep] = []
    removals: list[AnyStep] = []
    for volume in doomed:
        if volume.frozen is None:
            continue
        if volume.is_top:
            raise ImageRefused(target=volume.target, path=volume.path, reason=f"{name} itself writes to it")
        rebases += [_rebase(volume, volume.frozen, child) for child in _standing(volume, volume.frozen)]
        removals.append(RemoveFile(what=f"frozen {volume.target}", path=volume.path))
    return Plan(switch=[group for group in (rebases, removals) if group])


def _standing(volume: Doomed, frozen: Image) -> list[Image]:
    """Choose the child that still stands on the frozen file; refuse what would lose somebody's data."""
    unknown = sorted(set(volume.dependents) - volume.children.keys())
    if unknown:
        reason = f"{unknown[0]} stands on it and belongs to no snapshot of this VM"
        raise ImageRefused(target=volume.target, path=volume.path, reason=reason)
    standing = [image for image in volume.children.values() if image and image.backing == volume.path]
    for path, image in volume.children.items():
        if image is not None and image.backing not in (volume.path, frozen.backing):
            raise ImageRefused(target=volume.target, path=path, reason=f"it stands on {image.backing}")
    if len(standing) > 1:
        raise SnapshotHasChildren(target=volume.target, path=volume.path, count=len(standing))
    return standing


def _rebase(volume: Doomed, frozen: Image, child: Image) -> RebaseChild:
    return RebaseChild(
        target=volume.target,
        frozen=volume.path,
        child=child.path,
        backing=frozen.backing,
        backing_format=frozen.backing_format,
        allocated_bytes=frozen.allocated_bytes,
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


def _capture(facts: Facts, type_: HostFileType) -> CaptureHostFile:
    return CaptureHostFile(type=type_, staged=str(facts.staging / type_))


def _host_file_path(facts: Facts, type_: HostFileType) -> Path:
    path = facts.host_file_paths.get(type_)
    if path is None:
        raise HostFileNotFound(name=facts.name, type=type_)
    return path


def _staged(facts: Facts, path: Path) -> str:
    return str(path.parent / f".coldframe-{facts.transaction}-{path.name[:100]}")


def _receive(facts: Facts, request: RevertRequest, type_: HostFileType) -> ReceiveHostFile:
    ref = next(item for item in request.host_files if item.type == type_)
    path = _host_file_path(facts, type_)
    return ReceiveHostFile(
        type=type_,
        format=ref.format,
        path=str(path),
        staged=_staged(facts, path),
        size_bytes=ref.size_bytes,
        sha256=ref.sha256,
    )


def _swap(step: ReceiveHostFile) -> SwapHostFile:
    return SwapHostFile(type=step.type, path=step.path, staged=step.staged, sha256=step.sha256)


def _set_aside(facts: Facts, type_: HostFileType) -> SetAsideHostFile:
    path = _host_file_path(facts, type_)
    return SetAsideHostFile(type=type_, path=str(path), staged=_staged(facts, path))


def _check_space(facts: Facts, overlays: list[CreateOverlay], captured: list[HostFile]) -> None:
    """Refuse when a file system lacks room for what the plan will write there, with the reserve kept free."""
    need: dict[int, int] = {}
    where: dict[int, Path] = {}
    wanted = [(Path(step.path).parent, overlay_bytes(step.size_bytes)) for step in overlays]
    wanted += [(facts.staging.parent, item.size_bytes) for item in captured]
    for directory, size in wanted:
        device = facts.device[directory]
        need[device] = need.get(device, facts.reserve_bytes) + size
        where[device] = directory
    for device, need_bytes in need.items():
        have_bytes = facts.free_bytes[where[device]]
        if have_bytes < need_bytes:
            raise NoSpace(path=str(where[device]), have_bytes=have_bytes, need_bytes=need_bytes)
