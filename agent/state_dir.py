"""The agent's state directory: private, and one agent's at a time."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agent.errors import StateDirInUse
from agent.host.marks import make_directories, storage


@contextmanager
def claimed(state_dir: Path) -> Iterator[None]:
    """Make the directory, private to its owner, and hold it. The kernel lets go of it when this process dies.

    Raises StateDirInUse where another agent holds it, StorageFailed.
    """
    make_directories(state_dir)
    with storage("locking", state_dir):
        state_dir.chmod(0o700)
        descriptor = os.open(state_dir / "agent.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        with storage("locking", state_dir):
            _lock(descriptor, state_dir)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, state_dir: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as err:
        raise StateDirInUse(state_dir=str(state_dir)) from err
