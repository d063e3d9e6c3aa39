"""The archive of a TPM state, read as if an enemy had written it.

Only what ``tpm.pack`` or a plain ``tar --format=ustar`` of such a directory can produce is accepted. The blocks are
parsed here and not by ``tarfile``, which acts on extension headers (pax, GNU long names, sparse maps) before a caller
sees them and has looped on hostile sizes. Format: POSIX.1-1988 ``ustar``, as in the manual page tar(5).
"""

import re

from agent.errors import ArchiveRefused

STATE_DIRECTORIES = ("tpm1.2", "tpm2")
MAX_MEMBERS = 16
FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._~+-]{0,63}")
_BLOCK = 512
_MEMBER = re.compile(rf"(tpm2|tpm1\.2)/{FILE_NAME.pattern}")
_OCTAL = re.compile(rb" *([0-7]+)[ \0]*")
_KINDS = {b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device", b"5": "a directory"}


def read_members(data: bytes) -> dict[str, bytes]:
    """Return the files of an archive by name; ``ArchiveRefused`` for anything that a TPM state never holds.

    Directory entries ``tpm2/`` and ``tpm1.2/`` are accepted and skipped, times and owners are ignored.
    """
    members: dict[str, bytes] = {}
    at = 0
    while (header := data[at : at + _BLOCK]) and header.strip(b"\0"):
        name, kind, size = _parse(header)
        at += _BLOCK
        if kind == b"5" and name in {"tpm2/", "tpm1.2/"} and size == 0:
            continue
        _accept(name, kind, members)
        if size > len(data) - at:
            raise ArchiveRefused(reason=f"it ends in the middle of {name}")
        members[name] = data[at : at + size]
        at += -(-size // _BLOCK) * _BLOCK
    if data[at:].strip(b"\0"):
        raise ArchiveRefused(reason="something follows its end")
    if len(data) - at < 2 * _BLOCK:
        raise ArchiveRefused(reason="its end is missing")
    return members


def _accept(name: str, kind: bytes, members: dict[str, bytes]) -> None:
    if kind not in {b"0", b"\0"}:
        raise ArchiveRefused(reason=f"{name!r} is {_KINDS.get(kind, f'of type {kind!r}')}, not a plain file")
    if not _MEMBER.fullmatch(name):
        raise ArchiveRefused(reason=f"it holds {name!r}, which is not a file of a TPM state")
    if name in members:
        raise ArchiveRefused(reason=f"it holds {name} twice")
    if len(members) == MAX_MEMBERS:
        raise ArchiveRefused(reason=f"it holds more than {MAX_MEMBERS} files")


def _parse(header: bytes) -> tuple[str, bytes, int]:
    """Return name, type flag and size of one header block."""
    if len(header) < _BLOCK:
        raise ArchiveRefused(reason="it ends in the middle of a header")
    blank = header[:148] + b" " * 8 + header[156:]
    if _number(header[148:156]) != sum(blank):
        raise ArchiveRefused(reason="a header's checksum is wrong")
    if header[257:262] != b"ustar":
        raise ArchiveRefused(reason="it is not in the ustar format")
    name = header[:100].split(b"\0", 1)[0]
    if header[345:500].strip(b"\0"):
        raise ArchiveRefused(reason="a name is longer than that of any file of a TPM state")
    return name.decode("ascii", "backslashreplace"), header[156:157], _number(header[124:136])


def _number(field: bytes) -> int:
    match = _OCTAL.fullmatch(field)
    if match is None:
        raise ArchiveRefused(reason="a header holds a number that is not octal")
    return int(match[1], 8)
