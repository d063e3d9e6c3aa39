"""Files reached by their paths without a link on the way, so that nobody can lead the work elsewhere meanwhile.

The directories of images, NVRAM and TPM states belong to users that are less trusted than the agent, and whoever
owns a directory can put a link in the place of anything in it at any moment. So a path is settled once, which follows
links, and judged; from then on it is taken at its word. Every call here opens the directories of a path one after the
other, each from the one before and none through a link, and then acts on the last component in the directory that it
has open. Where a link has taken the place of a directory the call fails with ``EXDEV`` and has touched nothing.

All raise ``OSError``. Paths are absolute. A last component that is a link is never followed either.
"""

import ctypes
import errno
import os
import shutil
import stat as modes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_RENAME_EXCHANGE = 2  # <linux/fs.h>
_STEP = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MOST_LINKS = 40  # as the kernel, path_resolution(7)
_LED_AWAY = (
    "{link} has become a link on the way to it, and none is followed. Put the directory back in its place, or mount "
    "the other one there (mount --bind); where the link is to stay, restart coldframe-agent"
)


def settle(path: Path) -> Path:
    """Return where a path leads through links that root made, its last component as it is: the name to work with.

    A link that somebody else made, or one with a second name (anybody may have given it that), raises ``EPERM``: who
    owns a directory above would choose what we write to. What is not there is taken as it is named.
    """
    links = 0
    found, left = Path("/"), [*reversed(path.parts[1:])]
    while len(left) > 1:
        name = left.pop()
        step = found.parent if name == ".." else found / name
        facts = _facts(step)
        if facts is None or not modes.S_ISLNK(facts.st_mode):
            found = step
            continue
        links += 1
        if links > _MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
        if facts.st_uid not in {0, os.geteuid()} or facts.st_nlink != 1:
            raise OSError(errno.EPERM, f"{step} is a link that root did not make", str(path))
        led = step.readlink()
        found, steps = (Path("/"), led.parts[1:]) if led.is_absolute() else (found, led.parts)
        left += reversed(steps)
    return found / left.pop() if left else found


def _facts(path: Path) -> os.stat_result | None:
    try:
        return path.lstat()
    except OSError:
        return None


@contextmanager
def parent(path: Path) -> Iterator[tuple[int, str]]:
    """Open the directory that a path is in; yields a descriptor for the ``*at`` calls, and the name in it."""
    root, *steps = path.parts
    if root != "/" or ".." in steps:
        raise OSError(errno.EINVAL, "its name is not one to work with", str(path))
    directory = os.open("/", _STEP)
    try:
        for number in range(1, len(steps)):
            inner = _enter(directory, Path(root, *steps[:number]), path)
            os.close(directory)
            directory = inner
        yield directory, steps[-1] if steps else "."
    finally:
        os.close(directory)


def _enter(directory: int, step: Path, path: Path) -> int:
    try:
        return os.open(step.name, _STEP, dir_fd=directory)
    except OSError as err:
        if err.errno == errno.ENOTDIR and modes.S_ISLNK(os.lstat(step.name, dir_fd=directory).st_mode):
            raise OSError(errno.EXDEV, _LED_AWAY.format(link=step), str(path)) from err
        raise OSError(err.errno, err.strerror, str(path)) from err


def opened(path: Path, flags: int = os.O_RDONLY, mode: int = 0o600) -> int:
    """Open a file or a directory. Never blocks on a pipe, is not inherited by a child."""
    with parent(path) as (directory, name), _naming(path):
        return os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, mode, dir_fd=directory)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Have an error tell the whole path, and not only its last component."""
    try:
        yield
    except OSError as err:
        raise OSError(err.errno, err.strerror, str(path)) from err


def stat(path: Path) -> os.stat_result:
    """Look at what has this name."""
    with parent(path) as (directory, name), _naming(path):
        return os.lstat(name, dir_fd=directory)


def exists(path: Path) -> bool:
    """Tell whether anything has this name, be it a link that leads nowhere."""
    try:
        stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def is_directory(path: Path) -> bool:
    """Tell whether a directory has this name."""
    return exists(path) and modes.S_ISDIR(stat(path).st_mode)


def names_in(path: Path) -> list[str]:
    """List a directory, in order."""
    descriptor = opened(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with os.scandir(descriptor) as entries:
            return sorted(entry.name for entry in entries)
    finally:
        os.close(descriptor)


def make_directory(path: Path, mode: int = 0o700) -> None:
    """Make a directory."""
    with parent(path) as (directory, name), _naming(path):
        os.mkdir(name, mode, dir_fd=directory)


def unlink(path: Path, *, missing_ok: bool = False) -> None:
    """Remove a file or a link."""
    with parent(path) as (directory, name), _naming(path):
        try:
            os.unlink(name, dir_fd=directory)
        except FileNotFoundError:
            if not missing_ok:
                raise


def remove_tree(path: Path) -> None:
    """Remove a file, a link or a directory with all it holds, links in it not followed."""
    with parent(path) as (directory, name), _naming(path):
        if modes.S_ISDIR(os.lstat(name, dir_fd=directory).st_mode):
            shutil.rmtree(name, dir_fd=directory)
        else:
            os.unlink(name, dir_fd=directory)


def rename(source: Path, target: Path) -> None:
    """Give a file or a directory another name; a file that has it is replaced."""
    with parent(source) as (old, old_name), parent(target) as (new, new_name), _naming(target):
        os.rename(old_name, new_name, src_dir_fd=old, dst_dir_fd=new)


def link(source: Path, target: Path) -> None:
    """Give a regular file one more name."""
    with parent(source) as (old, old_name), parent(target) as (new, new_name), _naming(target):
        os.link(old_name, new_name, src_dir_fd=old, dst_dir_fd=new, follow_symlinks=False)


def exchange(a: Path, b: Path) -> None:
    """Swap two names in one step; ``EINVAL`` or ``ENOSYS`` where the file system or the C library cannot."""
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is None:
        raise OSError(errno.ENOSYS, "the C library has no renameat2")
    with parent(a) as (old, old_name), parent(b) as (new, new_name):
        if function(old, os.fsencode(old_name), new, os.fsencode(new_name), _RENAME_EXCHANGE) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(a))


def is_same(path: Path, descriptor: int) -> bool:
    """Tell whether a name is that of an open file."""
    try:
        return os.path.samestat(stat(path), os.fstat(descriptor))
    except OSError:
        return False
