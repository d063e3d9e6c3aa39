"""Which image files stand on another one, told by their headers. QEMU is not asked.

What is no image stands on nothing; a file that cannot be read might, so that is StorageFailed and never an answer.
"""

import errno
import os
from pathlib import Path

import msgspec

from agent.errors import ImageRefused, NeighbourUnreadable, StorageFailed
from agent.host import files, qcow2

_MAX_DEPTH = 1_000  # what is deeper is not a chain but an attack
#: We are short of something ourselves: the file is not to blame.
_SHORT = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR, errno.EAGAIN}
#: Nothing there, a link, a pipe or a directory, a socket, a name that no file can have: none of them is an image.
_NO_IMAGE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EINVAL, errno.ENXIO, errno.ENAMETOOLONG}


def is_image(path: Path) -> bool:
    """Tell whether a file is a qcow2 image. Raises StorageFailed where it cannot be read."""
    return _header_of(path) is not None


def backing_of(path: Path) -> Path | None:
    """Return the resolved file that an image stands on; None for a root, and for what is no qcow2 image.

    Raises StorageFailed where it cannot be read.
    """
    header = _header_of(path)
    return _backing(path, header) if header is not None else None


def must_stand_on(target: str, path: Path) -> Path | None:
    """Like ``backing_of`` for a file that has to be an image. Raises ImageRefused, StorageFailed."""
    try:
        with files.storage("reading", path):
            header = qcow2.read_header(path)
    except qcow2.Qcow2Error as err:
        raise ImageRefused(target=target, path=str(path), reason=err.reason) from err
    found = _backing(path, header)
    if header.backing and (found is None or header.backing_format not in {"qcow2", "raw"}):
        reason = f"it has come to stand on {header.backing!r} ({header.backing_format})"
        raise ImageRefused(target=target, path=str(path), reason=reason)
    return found


def _backing(path: Path, header: qcow2.Header) -> Path | None:
    name = _file_name(header.backing) if header.backing else None
    # A relative name is relative to the image that holds it (docs/interop/qcow2.txt, "backing file name").
    return Path(os.path.realpath(path.parent / name)) if name else None


def _header_of(path: Path) -> qcow2.Header | None:
    try:
        return qcow2.read_header(path)
    except qcow2.Qcow2Error:
        return None
    except OSError as err:
        if err.errno in _NO_IMAGE:
            return None
        raise StorageFailed(action="reading", path=str(path), reason=err.strerror or str(err)) from err


def _file_name(backing: str) -> str | None:
    """Return the file that QEMU would open for a backing name: also ``file:`` and ``json:`` name a local file."""
    if not backing.startswith("json:"):
        return backing.removeprefix("file:")
    try:
        node = msgspec.json.decode(backing.removeprefix("json:"))
    except msgspec.DecodeError:
        return None
    while isinstance(node, dict):
        named = [node.get(key) for key in ("filename", "file.filename")]
        for name in named:
            if isinstance(name, str):
                return _file_name(name)
        node = node.get("file")
    return None


def chain_of(path: Path) -> list[Path]:
    """Follow the headers from an image down as far as there are images, resolved, top first; nothing is refused.

    Raises StorageFailed where one cannot be read.
    """
    chain: list[Path] = []
    below: Path | None = Path(os.path.realpath(path))
    while below is not None and below not in chain and len(chain) < _MAX_DEPTH:
        chain.append(below)
        below = backing_of(below)
    return chain


def standing_on(path: Path) -> list[Path]:
    """Find the images in the same directory that stand on ``path``: an administrator's own overlay among them.

    A file elsewhere is not found; the caller adds the chains that it knows. Raises StorageFailed where the directory
    cannot be listed, NeighbourUnreadable for a file in it that cannot be read, or begins as an image and is none that
    we understand: QEMU may, as one of a later version.
    """
    resolved = Path(os.path.realpath(path))
    try:
        with os.scandir(resolved.parent) as entries:
            beside = [Path(entry.path) for entry in entries if entry.is_file(follow_symlinks=False)]
    except OSError as err:
        raise StorageFailed(action="list", path=str(resolved.parent), reason=err.strerror or str(err)) from err
    return sorted(other for other in beside if other != resolved and _stands_on(other, resolved))


def _stands_on(other: Path, frozen: Path) -> bool:
    try:
        header = qcow2.read_header(other)
    except qcow2.Qcow2Error as err:
        # What we stage ourselves may be half there; what it is to stand on its own transaction knows.
        if isinstance(err, qcow2.NotQcow2) or other.name.startswith(files.STAGE_PREFIX):
            return False
        raise NeighbourUnreadable(path=str(other), frozen=str(frozen), reason=err.reason) from err
    except OSError as err:
        if err.errno in _NO_IMAGE:
            return False
        if err.errno in _SHORT:
            raise StorageFailed(action="reading", path=str(other), reason=err.strerror or str(err)) from err
        raise NeighbourUnreadable(path=str(other), frozen=str(frozen), reason=err.strerror or str(err)) from err
    return _backing(other, header) == frozen
