"""How each step is done and undone. Both may be repeated: after a crash nobody knows how far the last try came."""

import asyncio
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import singledispatch
from pathlib import Path
from uuid import UUID

from agent.errors import DomainNotFound, HashMismatch, HostFileDamaged, HostFileMissing, ImageRefused
from agent.host import dependents, files, nvram, qemu_img, tpm
from agent.host.domain_xml import parse, replace_sources
from agent.host.hypervisor import Hypervisor
from agent.host.inventory import Inventory
from agent.transactions.locks import HeldLocks
from agent.transactions.model import (
    CaptureHostFile,
    CommitChild,
    CreateOverlay,
    RebaseChild,
    ReceiveHostFile,
    RemoveFile,
    ReplaceChild,
    SetAsideFrozen,
    SetAsideHostFile,
    SwapHostFile,
    SwitchDisks,
)
from agent.transactions.step import Step
from agent.wire.host_file import HostFile, HostFileType


@dataclass
class Work:
    """What the steps of one transaction work with, and what they leave behind.

    ``captured`` are the host files that were copied; ``on_bytes(step name, bytes done)`` hears of long copying.
    """

    vm: UUID
    name: str
    hypervisor: Hypervisor
    inventory: Inventory
    locks: HeldLocks
    nvram_dir: Path
    swtpm_dir: Path
    image_dirs: list[Path]
    host_file_limit_bytes: int
    on_bytes: Callable[[str, int], None]
    captured: list[HostFile] = field(default_factory=list)


@singledispatch
async def do(step: Step, work: Work) -> None:
    """Do a step, or what is left of it."""
    raise AssertionError(f"nobody knows how to do {type(step).__name__}")


@singledispatch
async def undo(step: Step, work: Work) -> None:
    """Undo a step, or what was done of it."""
    raise AssertionError(f"nobody knows how to undo {type(step).__name__}")


@do.register
async def _(step: CreateOverlay, work: Work) -> None:
    path = Path(step.path)
    await qemu_img.create_overlay(path, Path(step.backing), step.backing_format, step.size_bytes, Path(step.like))
    await asyncio.to_thread(work.locks.take_image, step.target, path)
    await asyncio.to_thread(_require_made, step)


@undo.register
async def _(step: CreateOverlay, work: Work) -> None:
    work.locks.release_image(Path(step.path))
    await asyncio.to_thread(remove_image, Path(step.path))


@do.register
async def _(step: CaptureHostFile, work: Work) -> None:
    facts, data = await work.inventory.read_host_file(work.vm, step.type)
    staged = Path(step.staged)
    await asyncio.to_thread(_write_captured, staged, data)
    work.captured.append(facts)


@undo.register
async def _(step: CaptureHostFile, work: Work) -> None:
    del work
    await asyncio.to_thread(files.remove_tree, Path(step.staged))


async def receive(step: ReceiveHostFile, data: bytes, work: Work) -> None:
    """Check an uploaded host file and stage it beside what it will replace.

    Raises HashMismatch, HostFileDamaged or ArchiveRefused; then nothing is left of it.
    """
    require_receivable(step, data, work.name)
    if step.type == "nvram":
        await asyncio.to_thread(_stage_nvram, step, data)
    else:
        await asyncio.to_thread(_stage_tpm, step, data, work.name)


def require_receivable(step: ReceiveHostFile, data: bytes, name: str) -> None:
    """Judge an uploaded host file. Raises HashMismatch, HostFileDamaged or ArchiveRefused."""
    found = hashlib.sha256(data).hexdigest()
    if found != step.sha256:
        raise HashMismatch(type=step.type, found=found, expected=step.sha256)
    if step.type == "nvram":
        nvram.check(data, Path(step.path), name)
    else:
        tpm.judge(data, Path(step.path), name)


@do.register
async def _(step: ReceiveHostFile, work: Work) -> None:
    if not await asyncio.to_thread(files.exists, Path(step.staged)):
        raise HostFileMissing(name=work.name, type=step.type, path=step.staged, reason="it was not uploaded")


@undo.register
async def _(step: ReceiveHostFile, work: Work) -> None:
    del work
    await asyncio.to_thread(files.remove_tree, Path(step.staged))


@do.register
async def _(step: SwapHostFile, work: Work) -> None:
    await asyncio.to_thread(_swap_in, step, work)


@undo.register
async def _(step: SwapHostFile, work: Work) -> None:
    await asyncio.to_thread(_swap_out, step, work)


@do.register
async def _(step: SetAsideHostFile | SetAsideFrozen, work: Work) -> None:
    del work
    await asyncio.to_thread(_move, Path(step.path), Path(step.staged))


@undo.register
async def _(step: SetAsideHostFile, work: Work) -> None:
    del work
    await asyncio.to_thread(_move, Path(step.staged), Path(step.path))


@undo.register
async def _(step: SetAsideFrozen, work: Work) -> None:
    del work
    # Where it is there it never went, whatever stands at the other name.
    if not await asyncio.to_thread(files.exists, Path(step.path)):
        await asyncio.to_thread(_move, Path(step.staged), Path(step.path))


@do.register
async def _(step: SwitchDisks, work: Work) -> None:
    await _switch(work, step.sources)


@undo.register
async def _(step: SwitchDisks, work: Work) -> None:
    await _switch_back(work, step.sources)


@do.register
async def _(step: RebaseChild, work: Work) -> None:
    child = Path(step.child)
    if await asyncio.to_thread(_is_to_rebase, step):
        held = await asyncio.to_thread(work.locks.lend_image, step.target, child)
        await qemu_img.rebase(
            child,
            Path(step.backing) if step.backing else None,
            step.backing_format or "qcow2",
            lambda percent: work.on_bytes(step.name, int(step.allocated_bytes * percent / 100)),
            within=work.image_dirs,
        )
        if held:
            await asyncio.to_thread(work.locks.take_image, step.target, child)
    work.on_bytes(step.name, step.allocated_bytes)


@do.register
async def _(step: CommitChild, work: Work) -> None:
    """Until the child is replaced it covers whatever is written below it, so half a commit harms nobody."""
    frozen, child = Path(step.frozen), Path(step.child)
    if await asyncio.to_thread(_still_covers, step):
        await asyncio.to_thread(work.locks.lend_image, step.target, frozen)
        held = await asyncio.to_thread(work.locks.lend_image, step.target, child)
        await qemu_img.commit(
            child,
            frozen,
            lambda percent: work.on_bytes(step.name, int(step.allocated_bytes * percent / 100)),
            within=work.image_dirs,
        )
        if held:
            await asyncio.to_thread(work.locks.take_image, step.target, child)
    work.on_bytes(step.name, step.allocated_bytes)


@do.register
async def _(step: ReplaceChild, work: Work) -> None:
    frozen, child = Path(step.frozen), Path(step.child)
    if await asyncio.to_thread(_still_covers, step):
        await asyncio.to_thread(work.locks.take_image, step.target, frozen)  # before the domain can find it
        await asyncio.to_thread(files.copy_ownership, child, frozen)
        await asyncio.to_thread(files.rename, frozen, child)
        work.locks.release_image(child)


@do.register
async def _(step: RemoveFile, work: Work) -> None:
    work.locks.release_image(Path(step.path))
    await asyncio.to_thread(files.remove_tree, Path(step.path))


@undo.register
async def _(step: RebaseChild, work: Work) -> None:
    """What was merged stays merged: the guest reads the same bytes either way."""


@undo.register
async def _(step: CommitChild, work: Work) -> None:
    """What was written below the child is covered by it."""


@undo.register
async def _(step: ReplaceChild, work: Work) -> None:
    """The file under the child's name holds what the child held."""


@undo.register
async def _(step: RemoveFile, work: Work) -> None:
    """What nothing referred to stays gone."""


def _require_made(step: CreateOverlay) -> None:
    """Hold that what was locked is the overlay that was made, whose name somebody could have taken in between."""
    if dependents.must_stand_on(step.target, Path(step.path)) != Path(step.backing):
        raise ImageRefused(target=step.target, path=step.path, reason="another file has taken the new overlay's name")


def _is_to_rebase(step: RebaseChild) -> bool:
    """Tell whether a child stands on its frozen file; false where it stands on what is to be below it already.

    Raises ImageRefused where it stands on anything else: somebody has changed it, and what it reads is not what it did.
    """
    found = dependents.must_stand_on(step.target, Path(step.child))
    if found == Path(step.frozen):
        return True
    if found != (Path(step.backing) if step.backing else None):
        raise _changed(step, f"it stands on {found or 'nothing'}, neither on {step.frozen} nor on {step.backing}")
    return False


def _still_covers(step: CommitChild | ReplaceChild) -> bool:
    """Tell whether a child still stands on its frozen file; once replaced, it has taken the frozen file's place.

    Raises ImageRefused where it stands on another, or on one that is gone.
    """
    there = files.exists(Path(step.frozen))
    found = dependents.must_stand_on(step.target, Path(step.child))
    if there != (found == Path(step.frozen)):
        state = "" if there else ", which is gone"
        raise _changed(step, f"it stands on {found or 'nothing'}{state}, and {step.frozen} was to be merged with it")
    return there


def _changed(step: RebaseChild | CommitChild | ReplaceChild, reason: str) -> ImageRefused:
    return ImageRefused(target=step.target, path=step.child, reason=f"{reason}; nothing was written to it")


async def _sources(work: Work) -> tuple[str, dict[str, str]]:
    xml = await work.hypervisor.inactive_xml(work.vm, secure=True)
    domain = parse(xml, work.nvram_dir, work.swtpm_dir)
    return xml, {disk.target: str(disk.path) for disk in domain.disks}


async def _switch(work: Work, sources: Mapping[str, tuple[str, str]]) -> None:
    """Define the domain on its new tops. Raises DiskMoved where a disk stands on neither the old nor the new one."""
    xml, present = await _sources(work)
    left = {target: pair for target, pair in sources.items() if present.get(target) != pair[1]}
    for target, (_, new) in left.items():
        await asyncio.to_thread(work.locks.require_same, target, Path(new))
    if left:
        await work.hypervisor.define(replace_sources(xml, _as_paths(left)))


async def _switch_back(work: Work, sources: Mapping[str, tuple[str, str]]) -> None:
    """Put back the disks that stand on our new tops; what an administrator moved meanwhile is left alone."""
    try:
        xml, present = await _sources(work)
    except DomainNotFound:
        return  # undefined meanwhile: nothing names our overlays
    switched = {target: (new, old) for target, (old, new) in sources.items() if present.get(target) == new}
    if switched:
        await work.hypervisor.define(replace_sources(xml, _as_paths(switched)))


def _as_paths(sources: Mapping[str, tuple[str, str]]) -> dict[str, tuple[Path, Path]]:
    return {target: (Path(old), Path(new)) for target, (old, new) in sources.items()}


def remove_image(path: Path) -> None:
    """Remove an image and nothing else that may have taken its name."""
    if files.is_regular(path):
        files.remove_tree(path)


def _move(source: Path, target: Path) -> None:
    if files.exists(source):
        files.rename(source, target)


def _write_captured(staged: Path, data: bytes) -> None:
    staged.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    files.write_atomic(staged, data, mode=0o600)


def _stage_nvram(step: ReceiveHostFile, data: bytes) -> None:
    files.write_staged(Path(step.staged), data, like=Path(step.like or step.path))


def _make_swtpm_dir(directory: Path) -> None:
    """Make libvirt's own directory for TPMs, as libvirt does before the first one of a host."""
    if not files.exists(directory):
        files.make_directory(directory, mode=0o711)


def _stage_tpm(step: ReceiveHostFile, data: bytes, name: str) -> None:
    staged = Path(step.staged)
    files.remove_tree(staged)
    _make_swtpm_dir(staged.parent)
    tpm.unpack(data, staged, name, like=Path(step.like or step.path))


def sha256_of(type_: HostFileType, path: Path, limit_bytes: int) -> str | None:
    """Hash a host file as it travels; None where there is no sound one."""
    try:
        data = nvram.read(path, "", limit_bytes) if type_ == "nvram" else tpm.pack(path, "", limit_bytes)
    except (HostFileMissing, HostFileDamaged):
        return None
    return hashlib.sha256(data).hexdigest()


def _is_in_place(step: SwapHostFile, work: Work) -> bool:
    """Tell by its contents whether the new host file is where it belongs, so that a second try does nothing."""
    files.finish_exchange(Path(step.path), Path(step.staged))
    return sha256_of(step.type, Path(step.path), work.host_file_limit_bytes) == step.sha256


def _swap_in(step: SwapHostFile, work: Work) -> None:
    path, staged = Path(step.path), Path(step.staged)
    if _is_in_place(step, work):
        return
    if step.type == "tpm":
        work.locks.take_tpm(staged)  # before libvirt can find it under its own name
    if files.exists(path):
        files.exchange(path, staged)
    else:
        files.rename(staged, path)


def _swap_out(step: SwapHostFile, work: Work) -> None:
    path, staged = Path(step.path), Path(step.staged)
    if not _is_in_place(step, work):
        return
    if files.exists(staged):
        files.exchange(path, staged)
    else:
        files.rename(path, staged)
