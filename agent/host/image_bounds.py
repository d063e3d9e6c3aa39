"""Which files a ``qemu-img`` may open: the chains that it was given as they are now, and nothing that they name later.

A header is read twice, by us and then by QEMU, and whoever owns the directory can change it in between, or put a link
where the file, or a directory above it, was. So every file of the chains is opened here by a path without links that
lies in an allowed directory, and handed on as a rule about that file: QEMU, which goes by names, meets *Permission
denied* on any other that a name leads to by then.
"""

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from agent.host import dependents, paths, qcow2
from agent.host.confine import Bounds

#: qemu-img itself took 0.3 GiB of address space, and at most 64 threads reserve 8 MiB of stack each: where one cannot
#: begin it aborts. ``check`` keeps 2 bytes for each cluster of the file.
_MEMORY_BYTES = 3 << 29
_MEMORY_PER_IMAGE_BYTES = 64 << 20  # its tables and a cache of at most 32 MiB (docs/qcow2-cache.txt in QEMU)
_ROOM_BYTES = 64 << 20
_MOST = 1 << 62


class ImageOutsideError(Exception):
    """A file that a command would open may not be; ``reason`` tells which and why."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


@contextlib.contextmanager
def opened(
    within: Sequence[Path],
    chains: Sequence[Path],
    *,
    writable: Sequence[Path | int] = (),
    alone: Sequence[Path] = (),
    file_bytes: int = 0,
) -> Iterator[Bounds]:
    """Open the files of the chains that begin at ``chains``, and ``writable`` (a path or a descriptor) to be changed.

    Raises ImageOutsideError where one lies outside the directories ``within``, is no regular file, is behind a link
    (only the names in headers may be, which are followed first), or is to have no other name (``alone``) and has one.
    What is not there is left for the command to say.
    """
    read = list(dict.fromkeys(image for top in chains for image in (top, *dependents.chain_of(top)[1:])))
    with contextlib.ExitStack() as stack:
        readable = [_enter(stack, path, within) for path in read]
        written = [one if isinstance(one, int) else _enter(stack, one, within, alone=one in alone) for one in writable]
        yield Bounds(
            readable=[one for one in readable if one is not None],
            writable=[one for one in written if one is not None],
            memory_bytes=_MEMORY_BYTES + _MEMORY_PER_IMAGE_BYTES * (len(read) + len(written)),
            file_bytes=file_bytes,
        )


def _enter(stack: contextlib.ExitStack, path: Path, allowed: Sequence[Path], *, alone: bool = False) -> int | None:
    if not any(path.is_relative_to(directory) for directory in allowed):
        raise ImageOutsideError(f"{path} lies outside the allowed image directories")
    try:
        descriptor = paths.opened(path, os.O_PATH)
    except FileNotFoundError:
        return None
    except OSError as err:
        raise ImageOutsideError(f"{path} cannot be opened: {err.strerror}") from err
    stack.callback(os.close, descriptor)
    facts = os.fstat(descriptor)
    if not stat.S_ISREG(facts.st_mode):
        raise ImageOutsideError(f"{path} is not a regular file")
    if alone and facts.st_nlink != 1:
        raise ImageOutsideError(f"{path} has another name, under which what is written to it would be seen too")
    return descriptor


def grown_bytes(disk: Path, *present: Path) -> int:
    """Return the largest size that a file can take in which all that ``disk`` shows is written over ``present``.

    Metadata takes below an eighth even with clusters of 512 bytes and refcounts of 64 bits.
    """
    virtual = max(_virtual_bytes(path) for path in (disk, *present))
    return min(_MOST, virtual + virtual // 8 + _ROOM_BYTES + sum(_size_bytes(path) for path in present))


def _virtual_bytes(path: Path) -> int:
    try:
        return qcow2.read_header(path).virtual_size_bytes
    except qcow2.Qcow2Error:
        return _size_bytes(path)
    except OSError:
        return 0  # the command says so


def _size_bytes(path: Path) -> int:
    try:
        return paths.stat(path).st_size
    except OSError:
        return 0
