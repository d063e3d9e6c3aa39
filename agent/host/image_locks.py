"""QEMU's own image locks, held by the agent: a guard that QEMU obeys even where the hook is not there.

QEMU locks single bytes of an image file with open-file-description locks (``block/file-posix.c``): a read lock on byte
100 + n says "I use permission n", on byte 200 + n "I do not share permission n". Permission 1 is writing. So a
read lock on byte 201 keeps every writer out while readers, and ``qemu-img create -b``, go on; and a lock that somebody
has on byte 101 is a writer that was there before.
"""

import errno
import fcntl
import os
import struct
from pathlib import Path
from types import TracebackType

from agent.errors import ImageInUse, StorageFailed
from agent.host import files, paths

_WRITE_USED, _WRITE_NOT_SHARED = 101, 201
_FLOCK = struct.Struct("hhqqi4x")  # struct flock with 64-bit offsets: type, whence, start, length, pid
_BUSY = {errno.EAGAIN, errno.EACCES}


class ImageLock:
    """A lock that keeps QEMU from opening one image for writing, until ``release`` or the end of this process.

    It belongs to the file, not to its name: an image that is renamed stays locked, one that takes its name is not.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def take(cls, target: str, path: Path) -> "ImageLock":
        """Lock an image. ``ImageInUse`` where somebody writes to it; ``StorageFailed`` where it cannot be locked.

        Lock first, look second: a writer that comes between the two meets our lock.
        """
        try:
            descriptor = files.open_regular(path)
        except OSError as err:
            raise StorageFailed(action="locking", path=str(path), reason=err.strerror or str(err)) from err
        try:
            _lock(descriptor, fcntl.F_RDLCK, _WRITE_NOT_SHARED, 1)
            written = is_locked(descriptor, _WRITE_USED, 1)
        except OSError as err:
            os.close(descriptor)
            if err.errno in _BUSY:
                raise ImageInUse(target=target, path=str(path)) from err
            raise StorageFailed(action="locking", path=str(path), reason=err.strerror or str(err)) from err
        if written:
            os.close(descriptor)
            raise ImageInUse(target=target, path=str(path))
        return cls(descriptor)

    @classmethod
    def take_alone(cls, target: str, path: Path) -> "ImageLock":
        """Lock an image against readers too, before it is removed; ImageInUse where anybody has it open."""
        try:
            descriptor = paths.opened(path, os.O_RDWR)
        except OSError as err:
            raise StorageFailed(action="locking", path=str(path), reason=err.strerror or str(err)) from err
        try:
            lock_whole(descriptor)
        except BlockingIOError as err:
            os.close(descriptor)
            raise ImageInUse(target=target, path=str(path)) from err
        except OSError as err:
            os.close(descriptor)
            raise StorageFailed(action="locking", path=str(path), reason=err.strerror or str(err)) from err
        return cls(descriptor)

    def keeps_us_out(self) -> bool:
        """Tell whether somebody else reads the image and lets nobody write to it: a VM that runs above it, say."""
        return is_locked(self._descriptor, _WRITE_NOT_SHARED, 1)

    def has_name(self, path: Path) -> bool:
        """Tell whether this is the image's name."""
        return paths.is_same(path, self._descriptor)

    def release(self) -> None:
        """Let writers in again; a second call does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> "ImageLock":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def require_unopened(target: str, path: Path) -> None:
    """Raise ``ImageInUse`` where anybody has an image open, without locking anything; ``StorageFailed``."""
    _require_unlocked(target, path, (0, 0))


def require_unwritten(target: str, path: Path, *, to_write: bool = False) -> None:
    """Raise ``ImageInUse`` where somebody writes to an image, without locking anything; ``StorageFailed``.

    With ``to_write`` also where somebody reads it and lets nobody write.
    """
    _require_unlocked(target, path, (_WRITE_USED, 1), *([(_WRITE_NOT_SHARED, 1)] if to_write else []))


def _require_unlocked(target: str, path: Path, *ranges: tuple[int, int]) -> None:
    try:
        descriptor = files.open_regular(path)
        try:
            locked = any(is_locked(descriptor, start, length) for start, length in ranges)
        finally:
            os.close(descriptor)
    except OSError as err:
        raise StorageFailed(action="reading", path=str(path), reason=err.strerror or str(err)) from err
    if locked:
        raise ImageInUse(target=target, path=str(path))


def lock_whole(descriptor: int) -> None:
    """Take a write lock on a whole open file, or raise ``BlockingIOError``: it meets swtpm's POSIX lock too."""
    try:
        _lock(descriptor, fcntl.F_WRLCK, 0, 0)
    except OSError as err:
        if err.errno in _BUSY:
            raise BlockingIOError(err.errno, "is locked by another process") from err
        raise


def is_locked(descriptor: int, start: int, length: int) -> bool:
    """Say whether somebody else's lock of any kind overlaps the bytes."""
    question = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)
    answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, question)
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)


def _lock(descriptor: int, kind: int, start: int, length: int) -> None:
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, start, length, 0))
