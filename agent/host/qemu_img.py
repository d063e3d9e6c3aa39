"""``qemu-img``, one function per subcommand. Never with ``-U``: QEMU's locks are what keeps a running VM's disk whole.

Formats are always named and never probed. Paths are absolute: QEMU takes a name for a protocol when a colon comes
before its first slash (``path_has_protocol`` in ``block.c``) and for an option when it begins with a dash, and an
absolute path does neither. Options that are split at commas (``-o``) carry no path. Every file is made with umask 077.

Each call is confined to the files it is about, which must lie in the directories ``within``; where it opens a chain,
to that chain's files (``image_bounds``), without network, and with bounds of memory, file size, output and time.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from agent.errors import QemuImgFailed, StorageFailed
from agent.host import files, image_bounds, images, paths, process, qcow2
from agent.host.confine import Bounds

QUICK_S = 60.0
LONG_S = 86_400.0  # a merge moves whole disks; the caller's cancellation is the real bound
_FORMATS = {"qcow2", "raw"}


@dataclass(frozen=True)
class CheckResult:
    """What ``qemu-img check`` found. ``errors`` are corruptions and failed checks; leaked clusters only waste room."""

    errors: int
    leaked_clusters: int


@dataclass(frozen=True)
class Measure:
    """What a converted image will take: bytes needed for the data, and when every cluster is allocated."""

    required_bytes: int
    fully_allocated_bytes: int


async def create_overlay(
    path: Path, backing: Path, backing_format: str, size_bytes: int, like: Path | None = None
) -> None:
    """Make an empty qcow2 overlay of ``size_bytes`` on ``backing``: mode 0600, synced with its directory.

    It gets the owner and label of ``like``. The backing file is not opened (``-u``), so size and format are the
    caller's word. An existing file is refused. The header is read back before the call returns. On any error nothing
    is left.
    """
    _require(("create", path), backing, formats=(backing_format,))
    if len(os.fsencode(backing)) > qcow2.MAX_NAME_BYTES:
        raise QemuImgFailed(command="create", path=str(path), reason="the backing file's name is above 1023 bytes")
    arguments = ("-q", "-f", "qcow2", "-u", "-F", backing_format, "-b", str(backing), str(path), str(size_bytes))
    async with _new_file("create", path, like) as descriptor:
        most = images.overlay_bytes(max(0, min(size_bytes, qcow2.MAX_VIRTUAL_BYTES)))
        await _quick("create", path, *arguments, bounds=Bounds(writable=[descriptor], file_bytes=most))
        await asyncio.to_thread(_verify_overlay, descriptor, path, (str(backing), backing_format, size_bytes))


@contextlib.asynccontextmanager
async def _new_file(command: str, path: Path, like: Path | None) -> AsyncIterator[int]:
    """Take a new name for the block, which gets its file's descriptor; after it the file is whole and ``like``'s.

    If the block fails or is cancelled, at whatever moment, the name is free again.
    """
    reserving = asyncio.ensure_future(asyncio.to_thread(_reserve, command, path))
    try:
        descriptor = await asyncio.shield(reserving)
        yield descriptor
        await asyncio.to_thread(_finish, command, path, descriptor, like)
    except BaseException:
        await asyncio.wait([reserving])  # a thread cannot be cancelled: it may still make the file
        if reserving.exception() is None:
            await asyncio.to_thread(_discard, path, reserving.result())
        raise
    finally:
        if reserving.done() and reserving.exception() is None:
            os.close(reserving.result())


def _reserve(command: str, path: Path) -> int:
    """Take the name, so that what ``qemu-img`` truncates is ours and private; return the file's descriptor."""
    try:
        descriptor = paths.opened(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    except FileExistsError as err:
        raise QemuImgFailed(command=command, path=str(path), reason="the file exists") from err
    except OSError as err:
        raise StorageFailed(action="creating", path=str(path), reason=err.strerror or str(err)) from err
    os.fchmod(descriptor, 0o600)
    return descriptor


def _finish(command: str, path: Path, descriptor: int, like: Path | None) -> None:
    """Make a new file durable, and give it away: the file that was made, whatever has its name by now."""
    if not paths.is_same(path, descriptor):
        raise QemuImgFailed(command=command, path=str(path), reason="another file took its name meanwhile")
    with files.storage("syncing", path):
        if like is not None:
            files.take_after(descriptor, like, mode=0o600)
        os.fsync(descriptor)
    files.fsync_directory(path.parent)


def _discard(path: Path, descriptor: int) -> None:
    if paths.is_same(path, descriptor):
        files.remove_tree(path)


def _verify_overlay(descriptor: int, path: Path, wanted: tuple[str, str, int]) -> None:
    try:
        header = qcow2.read_header_from(descriptor)
    except qcow2.Qcow2Error as err:
        raise QemuImgFailed(command="create", path=str(path), reason=f"afterwards {err.reason}") from err
    found = (header.backing, header.backing_format, header.virtual_size_bytes)
    if found != wanted:
        raise QemuImgFailed(command="create", path=str(path), reason=f"the header came out as {found}")


def sync(path: Path) -> None:
    """Make a file's contents and its name durable."""
    try:
        descriptor = paths.opened(path)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as err:
        raise StorageFailed(action="syncing", path=str(path), reason=err.strerror or str(err)) from err
    files.fsync_directory(path.parent)


async def rebase(
    path: Path,
    backing: Path | None,
    backing_format: str = "qcow2",
    on_percent: Callable[[float], None] | None = None,
    *,
    within: Sequence[Path],
) -> None:
    """Put an overlay on another backing file (None: on none), copying what the guest would else see change.

    Interrupted, it leaves a valid image on the old backing file; repeat it. The name changes last, but QEMU 7.2 changes
    it in the file while what it copied is known to its own cache only, and a qemu-img that ended there would have lost
    that. So every write goes through (``-t``), which makes a rebase about three times as long.
    """
    _require(("rebase", path), *([backing] if backing else []), formats=(backing_format,))
    target = ("-b", str(backing), "-F", backing_format) if backing else ("-b", "")
    arguments = ("-t", "writethrough", "-f", "qcow2", *target, str(path))
    chains = [path, *([backing] if backing else [])]
    async with _opened("rebase", path, within, chains, writable=[path], grows=(path, path)) as bounds:
        await _long("rebase", path, on_percent, "-p", *arguments, bounds=bounds)
    await asyncio.to_thread(sync, path)


async def rebase_unsafe(path: Path, backing: Path, *, within: Sequence[Path]) -> None:
    """Change only the recorded name of the qcow2 backing file (``-u``), which need not be there yet.

    The caller knows that the bytes below are the same.
    """
    _require(("rebase", path), backing)
    arguments = ("-q", "-u", "-f", "qcow2", "-b", str(backing), "-F", "qcow2", str(path))
    async with _opened("rebase", path, within, [], writable=[path], grows=(path, path)) as bounds:
        await _quick("rebase", path, *arguments, bounds=bounds)
    await asyncio.to_thread(sync, path)


async def commit(
    path: Path, base: Path, on_percent: Callable[[float], None] | None = None, *, within: Sequence[Path]
) -> None:
    """Write an overlay's data down into ``base``, a file of its chain, and leave the overlay as it is (``-d``).

    Interrupted, ``base`` is half-written, which does no harm while ``path`` still covers it; repeat it.
    """
    _require(("commit", path), base)
    arguments = ("-p", "-f", "qcow2", "-d", "-b", str(base), str(path))
    async with _opened(
        "commit", path, within, [path], writable=[path, base], alone=[base], grows=(path, base)
    ) as bounds:
        await _long("commit", path, on_percent, *arguments, bounds=bounds)
    await asyncio.to_thread(sync, base)


async def check(
    path: Path, image_format: str = "qcow2", timeout_s: float = LONG_S, *, alone: bool = False, within: Sequence[Path]
) -> CheckResult:
    """Check the metadata of an image; corruption is a result and not an error.

    ``alone``: a qcow2 image whose backing file need not be there, and is not opened.
    """
    _require(("check", path), formats=(image_format,))
    what = [_without_backing(path)] if alone else ["-f", image_format, str(path)]
    argv = ["qemu-img", "check", "--output=json", *what]
    async with _opened("check", path, within, [path]) as bounds:
        done = await process.run(argv, timeout_s, bounds=bounds)
    if done.returncode not in {0, 2, 3}:  # qemu-img(1): 2 corruptions, 3 leaks; 1 and 63: the check did not run
        raise QemuImgFailed(command="check", path=str(path), reason=done.error_text)
    found = _json("check", path, done.stdout)
    errors = int(found.get("corruptions", 0)) + int(found.get("check-errors", 0))
    return CheckResult(errors, int(found.get("leaks", 0)))


def _without_backing(path: Path) -> str:
    """Name an image so that QEMU leaves its backing file alone (``BlockdevOptionsGenericCOWFormat`` in QAPI)."""
    file = {"driver": "file", "filename": str(path)}
    return "json:" + msgspec.json.encode({"driver": "qcow2", "backing": None, "file": file}).decode()


async def convert(
    source: Path,
    source_format: str,
    target: Path,
    target_format: str = "qcow2",
    on_percent: Callable[[float], None] | None = None,
    *,
    within: Sequence[Path],
    like: Path | None = None,
) -> None:
    """Copy an image with its whole chain into one new file: mode 0600, synced, with owner and label of ``like``.

    On any error nothing is left.
    """
    _require(("convert", target), source, formats=(source_format, target_format))
    arguments = ("-p", "-f", source_format, "-O", target_format, str(source), str(target))
    async with (
        _new_file("convert", target, like) as descriptor,
        _opened("convert", target, within, [source], writable=[descriptor], grows=(source,)) as bounds,
    ):
        await _long("convert", target, on_percent, *arguments, bounds=bounds)


async def measure(
    path: Path, image_format: str = "qcow2", target_format: str = "qcow2", *, within: Sequence[Path]
) -> Measure:
    """Say how many bytes ``convert`` would write."""
    _require(("measure", path), formats=(image_format, target_format))
    arguments = ("--output=json", "-f", image_format, "-O", target_format, str(path))
    async with _opened("measure", path, within, [path]) as bounds:
        done = await _quick("measure", path, *arguments, bounds=bounds)
    found = _json("measure", path, done.stdout)
    return Measure(int(found["required"]), int(found["fully-allocated"]))


async def compare(a: Path, a_format: str, b: Path, b_format: str, *, within: Sequence[Path]) -> bool:
    """Say whether a guest would read the same bytes from both images."""
    _require(("compare", a), b, formats=(a_format, b_format))
    argv = ["qemu-img", "compare", "-q", "-f", a_format, "-F", b_format, str(a), str(b)]
    async with _opened("compare", a, within, [a, b]) as bounds:
        done = await process.run(argv, LONG_S, bounds=bounds)
    if done.returncode not in {0, 1}:  # qemu-img(1): 1 is "different", above it are errors
        raise QemuImgFailed(command="compare", path=str(a), reason=done.error_text)
    return done.returncode == 0


@contextlib.asynccontextmanager
async def _opened(
    command: str,
    path: Path,
    within: Sequence[Path],
    chains: Sequence[Path],
    *,
    writable: Sequence[Path | int] = (),
    alone: Sequence[Path] = (),
    grows: Sequence[Path] = (),
) -> AsyncIterator[Bounds]:
    """Hold open what a command may open; ``grows`` are the disk that it copies and the file that it writes to."""

    def enter(stack: contextlib.ExitStack) -> Bounds:
        most = image_bounds.grown_bytes(*grows) if grows else 0
        return stack.enter_context(image_bounds.opened(within, chains, writable=writable, alone=alone, file_bytes=most))

    with contextlib.ExitStack() as stack:
        try:
            bounds = await asyncio.to_thread(enter, stack)
        except image_bounds.ImageOutsideError as err:
            raise QemuImgFailed(command=command, path=str(path), reason=err.reason) from err
        yield bounds


def _require(subject: tuple[str, Path], *others: Path, formats: tuple[str, ...] = ()) -> None:
    command, path = subject
    for name in (path, *others):
        if not name.is_absolute():
            raise QemuImgFailed(command=command, path=str(path), reason=f"{name} is not an absolute path")
    for image_format in formats:
        if image_format not in _FORMATS:
            raise QemuImgFailed(command=command, path=str(path), reason=f"format {image_format!r} is not supported")


async def _quick(command: str, path: Path, *arguments: str, bounds: Bounds) -> process.Completed:
    return _succeeded(command, path, await process.run(["qemu-img", command, *arguments], QUICK_S, bounds=bounds))


async def _long(
    command: str, path: Path, on_percent: Callable[[float], None] | None, *arguments: str, bounds: Bounds
) -> None:
    argv = ["qemu-img", command, *arguments]
    done = await process.run_with_progress(argv, on_percent or _ignore, LONG_S, bounds=bounds)
    _succeeded(command, path, done)


def _ignore(percent: float) -> None:
    """Nobody watches."""


def _succeeded(command: str, path: Path, done: process.Completed) -> process.Completed:
    if done.returncode != 0:
        raise QemuImgFailed(command=command, path=str(path), reason=done.error_text)
    return done


def _json(command: str, path: Path, data: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(data, type=dict[str, Any])
    except msgspec.MsgspecError as err:
        raise QemuImgFailed(command=command, path=str(path), reason=f"its answer cannot be read: {err}") from err
