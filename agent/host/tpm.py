"""swtpm's state directories, as a tar archive and back.

libvirt keeps the state of one domain in ``<swtpm dir>/<uuid>/tpm2/`` (or ``tpm1.2/``). "The directory" below is always
the one that holds these two. Its archive is canonical: USTAR, members sorted and named relative to the directory
(``tpm2/tpm2-00.permall``), mode 0600, no times and no owners, so equal states give equal bytes. swtpm's ``.lock`` and
its scratch files (``TMP2-00.permall``, renamed when whole) are not state and stay out.

Each state file begins with swtpm's blob header (``src/swtpm/swtpm_nvstore.c``), big-endian: version u8, oldest version
that can read it u8, header size u16, flags u16, total length u32, which equals the size of the file.
"""

import errno
import io
import re
import stat
import struct
import tarfile
from pathlib import Path

from agent.errors import HostFileDamaged, HostFileMissing, HostFileTooLarge, StorageFailed
from agent.host import files, paths, tpm_archive
from agent.host.tpm_archive import STATE_DIRECTORIES
from agent.host.tpm_lock import LOCK_NAME, StateLock

__all__ = ["StateLock", "check", "header_damage", "pack", "unpack"]

_SCRATCH = re.compile(r"TMP\d?-")
_PERMANENT = re.compile(r"tpm2?-\d\d\.permall")
_HEADER = struct.Struct(">BBHHI")
_TRIES = 3


def pack(directory: Path, name: str, limit_bytes: int) -> bytes:
    """Return the canonical archive of a domain's checked TPM state; ``limit_bytes`` bounds the sum of its files.

    Each file is read from one open descriptor, so a file that swtpm replaces by rename meanwhile is the old or the
    new one; a file that vanishes makes the reading begin again.
    Raises ``HostFileMissing``, ``HostFileDamaged``, ``HostFileTooLarge`` or ``StorageFailed``.
    """
    members = _read(directory, name, limit_bytes)
    _check_members(members, directory, name)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for member, data in sorted(members.items()):
            facts = tarfile.TarInfo(member)
            facts.size, facts.mode = len(data), 0o600
            archive.addfile(facts, io.BytesIO(data))
    return buffer.getvalue()


def check(directory: Path, name: str, limit_bytes: int = 16 << 20) -> None:
    """Raise ``HostFileMissing`` or ``HostFileDamaged`` unless the directory holds a whole TPM state."""
    _check_members(_read(directory, name, limit_bytes), directory, name)


def unpack(data: bytes, directory: Path, name: str = "", like: Path | None = None) -> None:
    """Write the state that an archive holds into ``directory``, which must not exist yet or be empty.

    The archive is judged whole before anything is written (``ArchiveRefused``), the state in it too
    (``HostFileDamaged``). Every file and directory is synced. ``like`` is the domain's present directory: what
    it and its state directory have as owner, mode and label is given to the new ones. On any error nothing is left.
    """
    members = judge(data, directory, name)
    _claim(directory)
    try:
        _write(members, directory, like)
    except OSError as err:
        files.remove_tree(directory)
        raise StorageFailed(action="writing", path=str(directory), reason=err.strerror or str(err)) from err
    except BaseException:
        files.remove_tree(directory)
        raise


def judge(data: bytes, directory: Path, name: str = "") -> dict[str, bytes]:
    """Return the files of an archive that holds a whole TPM state. Raises ``ArchiveRefused``, ``HostFileDamaged``."""
    members = tpm_archive.read_members(data)
    _check_members(members, directory, name)
    return members


def _claim(directory: Path) -> None:
    """Make the directory, or refuse one that holds something: from here on all in it is ours to remove."""
    try:
        if not paths.exists(directory):
            paths.make_directory(directory)
        taken = paths.names_in(directory)
    except OSError as err:
        raise StorageFailed(action="creating", path=str(directory), reason=err.strerror or str(err)) from err
    if taken:
        raise StorageFailed(action="writing", path=str(directory), reason="the directory is not empty")


def _write(members: dict[str, bytes], directory: Path, like: Path | None) -> None:
    states = [directory / state for state in sorted({member.split("/")[0] for member in members})]
    for state in states:
        paths.make_directory(state)
    for member, content in members.items():
        files.write_staged(directory / member, content, like=_model(directory / member, like))
    for path in (*states, directory):
        model = like if path == directory else _model(path, like)
        if model is not None and paths.is_directory(model):
            files.copy_ownership(model, path)
        elif path == directory:
            # As libvirt makes it, which gives what is below to swtpm's user at a start: he passes.
            files.change_mode(path, 0o711)
        files.fsync_directory(path)
    files.fsync_directory(directory.parent)


def _model(new: Path, like: Path | None) -> Path | None:
    """Return what a new file or state directory takes its owner, mode and label from.

    One that the present state does not have takes after another that it has: all belong to swtpm's user.
    """
    if like is None:
        return None
    states = [like / state for state in STATE_DIRECTORIES if paths.is_directory(like / state)]
    if new.name in STATE_DIRECTORIES:
        candidates = states
    else:
        candidates = [
            state / name for state in states for name in paths.names_in(state) if files.is_regular(state / name)
        ]
    same = [candidate for candidate in candidates if candidate.name == new.name]
    return next(iter(same + candidates), None)


def _read(directory: Path, name: str, limit_bytes: int) -> dict[str, bytes]:
    """Return the state's files by member name, reading again where swtpm replaced one between list and open."""
    for attempt in range(_TRIES):
        try:
            return _read_once(directory, name, limit_bytes)
        except FileNotFoundError as err:
            if attempt == _TRIES - 1:
                reason = "its files keep vanishing while they are read"
                raise StorageFailed(action="reading", path=str(directory), reason=reason) from err
        except OSError as err:
            raise StorageFailed(action="reading", path=str(directory), reason=err.strerror or str(err)) from err
    raise AssertionError("unreachable")


def _read_once(directory: Path, name: str, limit_bytes: int) -> dict[str, bytes]:
    members: dict[str, bytes] = {}
    left = limit_bytes
    for member in _list(directory, name):
        try:
            data = files.read_limited_raw(directory / member, left, "tpm")
        except OSError as err:
            if err.errno in {errno.ELOOP, errno.EINVAL, errno.ENXIO}:
                raise _damaged(directory, name, f"{member} is not a regular file") from err
            raise
        except HostFileTooLarge as err:
            raise HostFileTooLarge(type="tpm", limit_bytes=limit_bytes) from err
        left -= len(data)
        members[member] = data
    return members


def _list(directory: Path, name: str) -> list[str]:
    found: list[str] = []
    present = [state for state in STATE_DIRECTORIES if _is_directory(directory / state, name)]
    if not present:
        raise _missing(directory, name, "it does not exist")
    for state in present:
        for entry in paths.names_in(directory / state):
            if entry == LOCK_NAME or _SCRATCH.match(entry):
                continue
            if not tpm_archive.FILE_NAME.fullmatch(entry):
                raise _damaged(directory, name, f"{state}/ holds {entry!r}, which is not a TPM's")
            found.append(f"{state}/{entry}")
    if not found:
        raise _missing(directory, name, "it is empty")
    if len(found) > tpm_archive.MAX_MEMBERS:
        raise _damaged(directory, name, f"it holds {len(found)} files")
    return found


def _is_directory(path: Path, name: str) -> bool:
    try:
        mode = paths.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    if not stat.S_ISDIR(mode):
        raise _damaged(path, name, "it is not a directory")
    return True


def _check_members(members: dict[str, bytes], directory: Path, name: str) -> None:
    permanent = [member for member in members if _PERMANENT.fullmatch(member.split("/")[1])]
    if not permanent:
        raise _missing(directory, name, "it has no permanent state (permall)")
    for member in permanent:
        reason = header_damage(members[member])
        if reason is not None:
            raise _damaged(directory, name, f"{member}: {reason}")


def header_damage(data: bytes) -> str | None:
    """Say what disagrees between the blob header of a state file and its size, or None."""
    if not data:
        return "it is empty"
    if len(data) < _HEADER.size:
        return f"it has {len(data)} bytes, less than its header"
    _, _, header_bytes, _, total = _HEADER.unpack_from(data)
    if not _HEADER.size <= header_bytes <= len(data):
        return f"its header claims a size of {header_bytes} bytes"
    if total != len(data):
        return f"its header says {total} bytes and the file has {len(data)}"
    return None


def _missing(directory: Path, name: str, reason: str) -> HostFileMissing:
    return HostFileMissing(name=name, type="tpm", path=str(directory), reason=reason)


def _damaged(directory: Path, name: str, reason: str) -> HostFileDamaged:
    return HostFileDamaged(name=name, type="tpm", path=str(directory), reason=reason)
