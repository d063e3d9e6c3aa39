"""The small files that the agent and the hook share in the state directory, and the lock that both take.

A mark is a file of ``key=value`` lines, at most 64 KiB. It is written beside its place and renamed into it, so
within one boot nobody ever reads half of one. ``hooks/README.md`` says which side writes which.
"""

import fcntl
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from agent.errors import HookLockHeld, StorageFailed
from agent.host import files

MARK_LIMIT_BYTES = 65_536
#: The hook gives up after 5 s. Nobody holds the lock for longer than a rename, so either wait means a hung disk.
LOCK_TIMEOUT_S = 3.0
LOCK_RETRY_S = 0.002


@contextmanager
def storage(action: str, path: Path) -> Iterator[None]:
    """Turn what the operating system refuses into StorageFailed."""
    try:
        yield
    except OSError as err:
        raise StorageFailed(action=action, path=str(path), reason=err.strerror or str(err)) from err


def make_directories(state_dir: Path, *names: str) -> None:
    """Make the state directory and these directories below it, for root only, where they are missing."""
    with storage("creating", state_dir):
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in names:
            (state_dir / name).mkdir(mode=0o700, exist_ok=True)


def boot_id() -> str:
    """Return the kernel's id of this boot (random(4))."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def process_start(pid: int) -> str | None:
    """Return field 22 of /proc/PID/stat (start time in clock ticks since boot), or None where no such process lives."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name in field 2 may hold spaces and parentheses; what follows the last one does not.
    fields = stat.rpartition(")")[2].split()
    return fields[19]


def parse_mark(data: bytes) -> dict[str, str]:
    """Return the values of a mark's lines. A line without ``=`` is passed over; bad UTF-8 becomes U+FFFD."""
    lines = data.decode(errors="replace").split("\n")
    return dict(line.split("=", 1) for line in lines if "=" in line)


def format_mark(values: Mapping[str, str]) -> bytes:
    """Return the lines of a mark; a newline in a value becomes a space."""
    return "".join(f"{key}={value}".replace("\n", " ") + "\n" for key, value in values.items()).encode()


def read_mark(path: Path) -> dict[str, str] | None:
    """Return a mark's values, or None where there is no such file."""
    with storage("reading", path):
        try:
            with path.open("rb") as file:
                return parse_mark(file.read(MARK_LIMIT_BYTES))
        except FileNotFoundError:
            return None


def write_mark(path: Path, values: Mapping[str, str]) -> None:
    """Put a whole mark at ``path``; it is there after a power cut once this returns."""
    files.write_atomic(path, format_mark(values), token="agent")  # noqa: S106 - a part of a file's name, no secret


def remove_mark(path: Path) -> None:
    """Take a mark away, if there is one."""
    with storage("removing", path):
        path.unlink(missing_ok=True)
    files.fsync_directory(path.parent)


@contextmanager
def hook_lock(state_dir: Path, timeout_s: float = LOCK_TIMEOUT_S) -> Iterator[None]:
    """Hold ``hook.lock``. Blocks the calling thread up to ``timeout_s``, then raises HookLockHeld.

    Only a decision and a rename happen under it: while the agent holds it, ``virsh start`` waits.
    """
    path = state_dir / "hook.lock"
    with storage("opening", path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + timeout_s
        while not _try_lock(descriptor, path):
            if time.monotonic() >= deadline:
                raise HookLockHeld(path=str(path), timeout_s=timeout_s)
            time.sleep(LOCK_RETRY_S)
        yield
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int, path: Path) -> bool:
    with storage("locking", path):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True
