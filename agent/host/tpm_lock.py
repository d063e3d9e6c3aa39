"""swtpm's own lock, held by the agent: a second guard that keeps an emulator from starting on a state.

swtpm takes a POSIX write lock on ``.lock`` in its state directory before it reads anything
(``SWTPM_NVRAM_Lock_Dir`` in ``src/swtpm/swtpm_nvstore_dir.c``). An open-file-description lock conflicts with that, and
unlike a POSIX lock it is not lost when this process closes some other descriptor of the file.
"""

import contextlib
import os
import stat
from pathlib import Path
from types import TracebackType

from agent.errors import HostFileInUse, StorageFailed
from agent.host import image_locks, paths
from agent.host.tpm_archive import STATE_DIRECTORIES

LOCK_NAME = ".lock"


class StateLock:
    """Locks on a domain's TPM state, until ``release`` or the end of this process.

    They belong to the directories, not to their names: a directory that is exchanged in needs a lock of its own.
    """

    def __init__(self, descriptors: list[int]) -> None:
        self._descriptors = descriptors

    @classmethod
    def take(cls, directory: Path, name: str = "") -> "StateLock":
        """Lock ``tpm2/`` and ``tpm1.2/`` of the directory that holds them, as far as they are there.

        Where neither is there nothing is locked. Raises ``HostFileInUse`` where an emulator runs, ``StorageFailed``.
        """
        lock = cls([])
        try:
            for state in STATE_DIRECTORIES:
                if paths.is_directory(directory / state):
                    lock._descriptors.append(_open(directory / state))
                    image_locks.lock_whole(lock._descriptors[-1])
        except BlockingIOError as err:
            lock.release()
            raise HostFileInUse(name=name, type="tpm", path=str(directory)) from err
        except OSError as err:
            lock.release()
            raise StorageFailed(action="locking", path=str(directory), reason=err.strerror or str(err)) from err
        return lock

    def release(self) -> None:
        """Let an emulator start again; a second call does nothing."""
        while self._descriptors:
            os.close(self._descriptors.pop())

    def __enter__(self) -> "StateLock":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def require_free(directory: Path, name: str = "") -> None:
    """Raise ``HostFileInUse`` where an emulator has the state open, without locking anything; ``StorageFailed``."""
    for path in (directory / state / LOCK_NAME for state in STATE_DIRECTORIES):
        try:
            descriptor = paths.opened(path)
        except FileNotFoundError:
            continue
        except OSError as err:
            raise StorageFailed(action="reading", path=str(path), reason=err.strerror or str(err)) from err
        try:
            taken = image_locks.is_locked(descriptor, 0, 0)
        finally:
            os.close(descriptor)
        if taken:
            raise HostFileInUse(name=name, type="tpm", path=str(directory))


def _open(state: Path) -> int:
    """Open the lock file of a state directory, made as swtpm would make it: private, and the directory owner's."""
    path = state / LOCK_NAME
    with contextlib.suppress(FileExistsError):
        descriptor = paths.opened(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        owner = paths.stat(state)
        os.fchown(descriptor, owner.st_uid, owner.st_gid)
        return descriptor
    descriptor = paths.opened(path, os.O_RDWR)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{path} is not a regular file")
    return descriptor
