"""Files on the host: replace, exchange, read and remove them so that a crash leaves the old state or the new.

Every name that this module makes beside a target begins with ``.coldframe-``, so that a stray one is known as ours.
An ``OSError`` leaves as ``StorageFailed``; where the file system or the quota is full it leaves as ``NoSpace``.
Nothing here follows a symbolic link, in the last component or on the way to it: see ``paths``. Calls block; an async
caller goes through ``asyncio.to_thread``.
"""

import contextlib
import errno
import hashlib
import os
import secrets
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from agent.errors import HostFileTooLarge, NoSpace, StorageFailed
from agent.host import paths

STAGE_PREFIX = ".coldframe-"
_SELINUX = "security.selinux"
_NO_LABEL = {errno.ENODATA, errno.ENOTSUP, errno.ENOSYS}
_FULL = {errno.ENOSPC, errno.EDQUOT}
_READ_TRIES = 3
#: The years 1 to 9999, which a datetime can tell.
_FIRST_S, _LAST_S = -62_135_596_800, 253_402_300_799


@contextlib.contextmanager
def storage(action: str, path: Path | None = None, need_bytes: int = 0) -> Iterator[None]:
    """Turn an ``OSError`` of the block into ``StorageFailed``, or into ``NoSpace`` where there is none left.

    Without ``path`` the error's own file name is told.
    """
    try:
        yield
    except OSError as err:
        path = path or Path(err.filename or "-")
        if err.errno in _FULL:
            raise NoSpace(path=str(path), have_bytes=_free_or_zero(path), need_bytes=need_bytes) from err
        raise StorageFailed(action=action, path=str(path), reason=err.strerror or str(err)) from err


def _free_or_zero(path: Path) -> int:
    with contextlib.suppress(OSError):
        facts = os.statvfs(path.parent)
        return facts.f_bavail * facts.f_frsize
    return 0


def staged_path(target: Path, token: str) -> Path:
    """Return the hidden name beside ``target`` that belongs to it and to ``token`` (a transaction's id).

    The same arguments always give the same name, so recovery finds what a dead process left. The name has at most
    ``len(token) + 29`` bytes however long the target's is: a name of 255 bytes can be staged too.
    """
    digest = hashlib.sha256(os.fsencode(target.name)).hexdigest()[:16]
    return target.parent / f"{STAGE_PREFIX}{token}-{digest}"


def staged_for(target: Path) -> list[Path]:
    """Find what stands under a hidden name that belongs to ``target``, whatever the token: see ``staged_path``."""
    ending = staged_path(target, "").name.removeprefix(STAGE_PREFIX)
    with storage("listing", target.parent):
        names = paths.names_in(target.parent)
    return [target.parent / name for name in names if name.startswith(STAGE_PREFIX) and name.endswith(ending)]


def write_atomic(
    path: Path, data: bytes, like: Path | None = None, mode: int | None = None, token: str | None = None
) -> None:
    """Make ``data`` the contents of ``path``: the old file or the new one is there at every moment, never a mixture.

    ``like`` names a file (often ``path`` itself) whose owner, mode and security label the new one gets; where it
    does not exist, and without it, the file is the caller's with mode 0600. ``mode`` wins over the mode of ``like``.
    With ``token`` the temporary file is ``staged_path(path, token)``, so that it can be found after a crash;
    one left by an earlier try is replaced. On an error the temporary file is removed and ``path`` is as it was; only
    where it cannot be told whether a power cut would bring the old file back, ``path`` is the new one already.
    """
    temporary = staged_path(path, token or secrets.token_hex(8))
    with storage("writing", path, len(data)):
        paths.unlink(temporary, missing_ok=True)
        try:
            _write_new(temporary, data, like, mode)
            paths.rename(temporary, path)
        except BaseException:
            paths.unlink(temporary, missing_ok=True)
            raise
        _fsync_directory(path.parent)


def write_staged(temporary: Path, data: bytes, like: Path | None = None, mode: int | None = None) -> None:
    """Write ``data`` durably under a name of its own (``staged_path``), to be renamed later; see ``write_atomic``."""
    with storage("writing", temporary, len(data)):
        paths.unlink(temporary, missing_ok=True)
        try:
            _write_new(temporary, data, like, mode)
            _fsync_directory(temporary.parent)
        except BaseException:
            paths.unlink(temporary, missing_ok=True)
            raise


def _write_new(path: Path, data: bytes, like: Path | None, mode: int | None) -> None:
    descriptor = paths.opened(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    with os.fdopen(descriptor, "wb", buffering=0) as file:
        os.fchmod(descriptor, 0o600)  # the umask does not decide
        view = memoryview(data)
        while view:
            view = view[file.write(view) :]
        if like is not None and paths.exists(like):
            take_after(descriptor, like)
        if mode is not None:
            os.fchmod(descriptor, mode)
        os.fsync(descriptor)


def copy_ownership(source: Path, target: Path) -> None:
    """Give ``target`` the owner, mode and SELinux label of ``source``; neither may be a symbolic link.

    Other extended attributes stay behind: ``trusted.libvirt.*`` is libvirt's memory of the running domain's labels,
    and on another file it would make libvirt "restore" what was never there.
    """
    with storage("setting the owner of", target), _opened(target) as descriptor:
        _require_one_name(descriptor, target)
        take_after(descriptor, source)


def give_like_directory(path: Path, directory: Path) -> None:
    """Give a regular file to whom the directory belongs."""
    with storage("setting the owner of", path), _opened(path) as descriptor:
        _require_one_name(descriptor, path)
        facts = paths.stat(directory)
        os.fchown(descriptor, facts.st_uid, facts.st_gid)


def _require_one_name(descriptor: int, path: Path) -> None:
    """Refuse to give away a file that has another name: the directory's owner may have linked somebody else's here."""
    facts = os.fstat(descriptor)
    if not stat.S_ISDIR(facts.st_mode) and (not stat.S_ISREG(facts.st_mode) or facts.st_nlink != 1):
        raise OSError(errno.EPERM, "it is not a regular file with one name", str(path))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = paths.opened(path)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def take_after(target: int, source: Path, mode: int | None = None) -> None:
    """Give an open file the owner, label and (without ``mode``) mode of another; raises ``OSError`` as it is.

    It works on descriptors: between two calls by name, the owner of the directory could put a link there. Bits that
    make a program run as its owner are not passed on.
    """
    with _opened(source) as descriptor:
        facts = os.fstat(descriptor)
        os.fchown(target, facts.st_uid, facts.st_gid)
        os.fchmod(target, facts.st_mode & 0o777 if mode is None else mode)  # after chown, which clears bits of it
        try:
            os.setxattr(target, _SELINUX, os.getxattr(descriptor, _SELINUX))
        except OSError as err:
            if err.errno not in _NO_LABEL:
                raise


def fsync_directory(path: Path) -> None:
    """Make the names in the directory durable."""
    with storage("syncing", path):
        _fsync_directory(path)


def _fsync_directory(path: Path) -> None:
    with _opened(path) as descriptor:
        os.fsync(descriptor)


def rename(source: Path, target: Path) -> None:
    """Rename within one directory or between two of one file system, durably; an existing file is replaced."""
    with storage("renaming to", target):
        paths.rename(source, target)
        _fsync_directory(target.parent)
        if source.parent != target.parent:
            _fsync_directory(source.parent)


def rename_new(source: Path, target: Path) -> None:
    """Give a regular file another name in its directory, durably. Where that is taken, nothing is changed.

    Both names are there for a moment, so that a crash cannot lose the file; called again, it goes on from there.
    """
    with storage("renaming to", target):
        if not (paths.exists(target) and os.path.samestat(paths.stat(source), paths.stat(target))):
            paths.link(source, target)
            _fsync_directory(target.parent)
        paths.unlink(source)
        _fsync_directory(target.parent)


def exchange(a: Path, b: Path) -> None:
    """Swap two files, or two directories, in one step (``renameat2`` with ``RENAME_EXCHANGE``), durably.

    Where the file system cannot (``EINVAL``, ``ENOSYS``) the swap takes several renames over a hidden name beside
    ``a``. Of two files ``a`` then is there at each moment; of two directories it is missing between two renames.
    After a crash ``finish_exchange`` completes such a swap; call it before judging which of the two is where.
    """
    with storage("exchanging", a):
        try:
            paths.exchange(a, b)
        except OSError as err:
            if err.errno not in {errno.EINVAL, errno.ENOSYS}:
                raise
            exchange_by_renames(a, b)
        _fsync_directory(a.parent)
        if a.parent != b.parent:
            _fsync_directory(b.parent)


def exchange_by_renames(a: Path, b: Path) -> None:
    """The fallback of ``exchange``; raises ``OSError``. The hidden name exists as long as the swap is unfinished."""
    aside = staged_path(a, "exchange")
    paths.stat(b)  # both must be there before anything is touched
    if paths.is_directory(a):
        paths.rename(a, aside)
    else:
        paths.link(a, aside)
    paths.rename(b, a)
    paths.rename(aside, b)


def finish_exchange(a: Path, b: Path) -> bool:
    """Complete a swap that a crash cut short in its fallback; true where there was one."""
    aside = staged_path(a, "exchange")
    with storage("exchanging", a):
        if not paths.exists(aside):
            return False
        if paths.exists(b):
            paths.rename(b, a)
        paths.rename(aside, b)
        _fsync_directory(a.parent)
        return True


def open_regular(path: Path) -> int:
    """Open a regular file for reading and return the descriptor; raises ``OSError`` as it is.

    Never follows a link, never blocks on a pipe, is not inherited by a child.
    """
    descriptor = paths.opened(path)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise OSError(errno.EINVAL, "is not a regular file", str(path))


def read_limited(path: Path, limit_bytes: int, what: str = "file") -> bytes:
    """Read a whole regular file; ``HostFileTooLarge(type=what)`` above the limit, ``StorageFailed`` where it fails.

    What is returned was in the file at one moment: a file that changes while it is read is read again, and
    refused when it keeps changing.
    """
    with storage("reading", path):
        return read_limited_raw(path, limit_bytes, what)


def read_limited_raw(path: Path, limit_bytes: int, what: str) -> bytes:
    """Like ``read_limited``, but an ``OSError`` passes as it is, for a caller that has a better name for it."""
    for _ in range(_READ_TRIES):
        with os.fdopen(open_regular(path), "rb", buffering=0) as file:
            before = os.fstat(file.fileno())
            if before.st_size > limit_bytes:
                raise HostFileTooLarge(type=what, limit_bytes=limit_bytes)
            data = _read_up_to(file.fileno(), limit_bytes + 1)
            after = os.fstat(file.fileno())
        if (before.st_mtime_ns, before.st_size) == (after.st_mtime_ns, len(data)):
            return data
    raise OSError(errno.EBUSY, "it keeps changing while it is read", str(path))


def _read_up_to(descriptor: int, count: int) -> bytes:
    parts = []
    while count > 0 and (part := os.read(descriptor, min(count, 1 << 20))):
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def settled(path: Path) -> Path:
    """Return the name to work with from now on: see ``paths.settle``."""
    with storage("looking for", path):
        return paths.settle(path)


def exists(path: Path) -> bool:
    """Tell whether anything has this name, be it a link that leads nowhere."""
    with storage("looking for", path):
        return paths.exists(path)


def is_regular(path: Path) -> bool:
    """Tell whether a regular file has this name."""
    with storage("looking for", path):
        return paths.exists(path) and stat.S_ISREG(paths.stat(path).st_mode)


def changed_at(facts: os.stat_result) -> datetime:
    """Return when a file was changed last; the nearest there is where its owner has set it beyond all calendars."""
    return datetime.fromtimestamp(min(max(facts.st_mtime, _FIRST_S), _LAST_S), UTC)


def make_directory(path: Path, mode: int = 0o700) -> None:
    """Make a directory with this mode, whatever the umask says."""
    with storage("making", path):
        paths.make_directory(path)
    change_mode(path, mode)


def change_mode(path: Path, mode: int) -> None:
    """Set the mode of a file or a directory."""
    with storage("setting the mode of", path), _opened(path) as descriptor:
        os.fchmod(descriptor, mode)


def nearest_directory(path: Path) -> Path:
    """Return the directory, or the nearest above it that exists: what will be made in it takes room there."""
    return next(one for one in (path, *path.parents) if one.is_dir())


def free_bytes(path: Path) -> int:
    """Bytes that an unprivileged writer may still use on the file system of ``path`` (``f_bavail``)."""
    with storage("measuring", path):
        facts = os.statvfs(path)
        return facts.f_bavail * facts.f_frsize


def remove_tree(path: Path) -> None:
    """Remove a file, a link (not what it names) or a directory with all it holds; nothing there is no error."""
    with storage("removing", path):
        try:
            paths.remove_tree(path)
        except FileNotFoundError:
            return
        _fsync_directory(path.parent)
