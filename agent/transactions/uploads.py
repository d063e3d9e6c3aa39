"""Host files as they arrive."""

import hashlib
from collections.abc import AsyncIterator

from agent.errors import HashMismatch, HostFileTooLarge
from agent.wire.host_file import HostFileType


async def collect(
    chunks: AsyncIterator[bytes], type_: HostFileType, limit_bytes: int, announced: str | None = None
) -> bytes:
    """Return a host file whole. Raises HostFileTooLarge as soon as it is, HashMismatch where it is not ``announced``.

    ``announced`` is the SHA-256 that was sent along, if one was.
    """
    parts: list[bytes] = []
    size = 0
    async for chunk in chunks:
        size += len(chunk)
        if size > limit_bytes:
            raise HostFileTooLarge(type=type_, limit_bytes=limit_bytes)
        parts.append(chunk)
    data = b"".join(parts)
    found = hashlib.sha256(data).hexdigest()
    if announced not in {None, found}:
        raise HashMismatch(type=type_, found=found, expected=announced)
    return data
