"""``qemu-img``, one function per subcommand. Never with ``-U``: QEMU's locks are what keeps a running VM's disk whole.

Formats are always named and never probed. Paths are absolute: QEMU takes a name for a protocol when a colon comes
before its first slash (``path_has_protocol`` in ``block.c``) and for an option when it begins with a dash, and an
absolute path does neither. Options that are split at commas (``-o``) carry no path. Every file is made with umask 077.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from agent.errors import QemuImgFailed, StorageFailed
from agent.host import files, process, qcow2

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


async def create_overlay(path: Path, backing: Path, backing_format: str, size_bytes: int) -> None:
    """Make an empty qcow2 overlay of ``size_bytes`` on ``backing``: mode 0600, synced with its directory.

    The backing file is not opened (``-u``), so size and format are the caller's word. An existing file is refused.
    The header is read back before the call returns. On any error nothing is left.
    """
    _require(("create", path), backing, formats=(backing_format,))
    if len(os.fsencode(backing)) > qcow2.MAX_NAME_BYTES:
        raise QemuImgFailed(command="create", path=str(path), reason="the backing file's name is above 1023 bytes")
    arguments = ("-q", "-f", "qcow2", "-u", "-F", backing_format, "-b", str(backing), str(path), str(size_bytes))
    async with _new_file("create", path):
        await _quick("create", path, *arguments)
        await asyncio.to_thread(_verify_overlay, path, backing, backing_format, size_bytes)


@contextlib.asynccontextmanager
async def _new_file(command: str, path: Path) -> AsyncIterator[None]:
    """Take a new name for the block; if that fails or is cancelled, at whatever moment, the name is free again."""
    reserving = asyncio.ensure_future(asyncio.to_thread(_reserve, command, path))
    try:
        await asyncio.shield(reserving)
        yield
    except BaseException:
        await asyncio.wait([reserving])  # a thread cannot be cancelled: it may still make the file
        if reserving.exception() is None:
            await asyncio.to_thread(files.remove_tree, path)
        raise


def _reserve(command: str, path: Path) -> None:
    """Take the name, so that what ``qemu-img create`` truncates is ours and private."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        os.fchmod(descriptor, 0o600)
        os.close(descriptor)
    except FileExistsError as err:
        raise QemuImgFailed(command=command, path=str(path), reason="the file exists") from err
    except OSError as err:
        raise StorageFailed(action="creating", path=str(path), reason=err.strerror or str(err)) from err


def _verify_overlay(path: Path, backing: Path, backing_format: str, size_bytes: int) -> None:
    try:
        header = qcow2.read_header(path)
    except qcow2.Qcow2Error as err:
        raise QemuImgFailed(command="create", path=str(path), reason=f"afterwards {err.reason}") from err
    found = (header.backing, header.backing_format, header.virtual_size_bytes)
    if found != (str(backing), backing_format, size_bytes):
        raise QemuImgFailed(command="create", path=str(path), reason=f"the header came out as {found}")
    sync(path)


def sync(path: Path) -> None:
    """Make a file's contents and its name durable."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as err:
        raise StorageFailed(action="syncing", path=str(path), reason=err.strerror or str(err)) from err
    files.fsync_directory(path.parent)


async def rebase(
    path: Path, backing: Path | None, backing_format: str = "qcow2", on_percent: Callable[[float], None] | None = None
) -> None:
    """Put an overlay on another backing file (None: on none), copying what the guest would else see change.

    Interrupted, it leaves a valid image on the old backing file (the name changes last); repeat it.
    """
    _require(("rebase", path), *([backing] if backing else []), formats=(backing_format,))
    target = ["-b", str(backing), "-F", backing_format] if backing else ["-b", ""]
    await _long("rebase", path, on_percent, "-p", "-f", "qcow2", *target, str(path))
    await asyncio.to_thread(sync, path)


async def rebase_unsafe(path: Path, backing: Path) -> None:
    """Change only the recorded name of the qcow2 backing file (``-u``), which need not be there yet.

    The caller knows that the bytes below are the same.
    """
    _require(("rebase", path), backing)
    await _quick("rebase", path, "-q", "-u", "-f", "qcow2", "-b", str(backing), "-F", "qcow2", str(path))
    await asyncio.to_thread(sync, path)


async def commit(path: Path, base: Path, on_percent: Callable[[float], None] | None = None) -> None:
    """Write an overlay's data down into ``base``, a file of its chain, and leave the overlay as it is (``-d``).

    Interrupted, ``base`` is half-written, which does no harm while ``path`` still covers it; repeat it.
    """
    _require(("commit", path), base)
    await _long("commit", path, on_percent, "-p", "-f", "qcow2", "-d", "-b", str(base), str(path))
    await asyncio.to_thread(sync, base)


async def check(path: Path, image_format: str = "qcow2", timeout_s: float = LONG_S) -> CheckResult:
    """Check the metadata of an image; corruption is a result and not an error."""
    _require(("check", path), formats=(image_format,))
    argv = ["qemu-img", "check", "--output=json", "-f", image_format, str(path)]
    done = await process.run(argv, timeout_s)
    if done.returncode not in {0, 2, 3}:  # qemu-img(1): 2 corruptions, 3 leaks; 1 and 63: the check did not run
        raise QemuImgFailed(command="check", path=str(path), reason=done.error_text)
    found = _json("check", path, done.stdout)
    errors = int(found.get("corruptions", 0)) + int(found.get("check-errors", 0))
    return CheckResult(errors, int(found.get("leaks", 0)))


async def convert(
    source: Path,
    source_format: str,
    target: Path,
    target_format: str = "qcow2",
    on_percent: Callable[[float], None] | None = None,
) -> None:
    """Copy an image with its whole chain into one new file: mode 0600, synced. On any error nothing is left."""
    _require(("convert", target), source, formats=(source_format, target_format))
    arguments = ("-p", "-f", source_format, "-O", target_format, str(source), str(target))
    async with _new_file("convert", target):
        await _long("convert", target, on_percent, *arguments)
        await asyncio.to_thread(sync, target)


async def measure(path: Path, image_format: str = "qcow2", target_format: str = "qcow2") -> Measure:
    """Say how many bytes ``convert`` would write."""
    _require(("measure", path), formats=(image_format, target_format))
    done = await _quick("measure", path, "--output=json", "-f", image_format, "-O", target_format, str(path))
    found = _json("measure", path, done.stdout)
    return Measure(int(found["required"]), int(found["fully-allocated"]))


async def compare(a: Path, a_format: str, b: Path, b_format: str) -> bool:
    """Say whether a guest would read the same bytes from both images."""
    _require(("compare", a), b, formats=(a_format, b_format))
    argv = ["qemu-img", "compare", "-q", "-f", a_format, "-F", b_format, str(a), str(b)]
    done = await process.run(argv, LONG_S)
    if done.returncode not in {0, 1}:  # qemu-img(1): 1 is "different", above it are errors
        raise QemuImgFailed(command="compare", path=str(a), reason=done.error_text)
    return done.returncode == 0


def _require(subject: tuple[str, Path], *others: Path, formats: tuple[str, ...] = ()) -> None:
    command, path = subject
    for name in (path, *others):
        if not name.is_absolute():
            raise QemuImgFailed(command=command, path=str(path), reason=f"{name} is not an absolute path")
    for image_format in formats:
        if image_format not in _FORMATS:
            raise QemuImgFailed(command=command, path=str(path), reason=f"format {image_format!r} is not supported")


async def _quick(command: str, path: Path, *arguments: str) -> process.Completed:
    return _succeeded(command, path, await process.run(["qemu-img", command, *arguments], QUICK_S))


async def _long(command: str, path: Path, on_percent: Callable[[float], None] | None, *arguments: str) -> None:
    argv = ["qemu-img", command, *arguments]
    _succeeded(command, path, await process.run_with_progress(argv, on_percent or _ignore, LONG_S))


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
