"""Headers of tar members, written as GNU tar does and read as if an enemy had written them.

The blocks are parsed here and not by ``tarfile``, which acts on extension headers (pax, GNU long names, sparse maps)
before a caller sees them. Formats: POSIX.1-1988 ``ustar`` and GNU, whose numbers of 8 GiB and more are binary; both as
in the manual page tar(5).
"""

import re
import tarfile
from datetime import datetime

from controller.errors import SnapshotArchiveRefused

BLOCK = 512
#: The end of a tar file: two blocks of zeros.
END = bytes(2 * BLOCK)
_OCTAL = re.compile(rb" *([0-7]+)[ \0]*")
_KINDS = {b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device", b"5": "a directory"}


def header(name: str, size_bytes: int, at: datetime) -> bytes:
    """Return the header of a plain file that only its owner can read; ``name`` has less than 100 bytes."""
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = size_bytes, int(at.timestamp()), 0o600
    return info.tobuf(tarfile.GNU_FORMAT)


def padding(size_bytes: int) -> int:
    """Return how many zeros follow a member of this size."""
    return -size_bytes % BLOCK


def parse(block: bytes) -> tuple[str, int]:
    """Return a plain file's name and size. Raises SnapshotArchiveRefused for anything else."""
    blank = block[:148] + b" " * 8 + block[156:]
    if _number(block[148:156]) != sum(blank):
        raise SnapshotArchiveRefused(reason="the checksum of a tar header is wrong")
    if block[257:262] != b"ustar":
        raise SnapshotArchiveRefused(reason="what is inside is not in a tar format that is read here")
    name = block[:100].split(b"\0", 1)[0].decode("ascii", "backslashreplace")
    kind = block[156:157]
    if kind not in {b"0", b"\0"}:
        found = _KINDS.get(kind, f"of the type {kind!r}")
        raise SnapshotArchiveRefused(reason=f"{name!r} is {found} and not a plain file")
    if block[257:263] == b"ustar\0" and block[345:500].strip(b"\0"):
        raise SnapshotArchiveRefused(reason=f"the name that ends in {name!r} is longer than any of an archive")
    return name, _number(block[124:136])


def _number(field: bytes) -> int:
    if field[0] == 0x80:  # GNU: the rest is a binary number
        return int.from_bytes(field[1:], "big")
    match = _OCTAL.fullmatch(field)
    if match is None:
        raise SnapshotArchiveRefused(reason="a tar header holds a number that is not one")
    return int(match[1], 8)
