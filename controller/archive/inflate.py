"""Decompressing a stream that may be hostile, in bounded memory."""

import asyncio
from collections.abc import AsyncIterator

import zstandard

from controller.errors import SnapshotArchiveRefused

#: What ``zstd -19`` needs and all that is granted: a larger window is an attack or ``zstd --long``.
_WINDOW_BYTES = 8 << 20
#: Compressed bytes that are handed on at a time. A block of 4 bytes can stand for 128 KiB, so 1 KiB can for 32 MiB.
_SLICE_BYTES = 1024
_ENOUGH_BYTES = 1 << 20


class Inflater:
    """What is inside one zstd frame, read forwards. Every error is a SnapshotArchiveRefused."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self._object = zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES).decompressobj()
        self._compressed = memoryview(b"")
        self._ready = bytearray()

    async def read(self, limit_bytes: int) -> bytes:
        """Return at most so many bytes, and none at the end. Raises where the frame is cut short or broken."""
        while not self._ready and await self._more():
            pass
        taken = bytes(self._ready[:limit_bytes])
        del self._ready[:limit_bytes]
        return taken

    async def exactly(self, size_bytes: int, what: str) -> bytes:
        """Return so many bytes. Raises where there are fewer."""
        parts: list[bytes] = []
        while size_bytes:
            part = await self.read(size_bytes)
            if not part:
                raise SnapshotArchiveRefused(reason=f"it ends in the middle of {what}")
            parts.append(part)
            size_bytes -= len(part)
        return b"".join(parts)

    async def finish(self) -> None:
        """Hold that nothing follows the frame."""
        if self._compressed or self._object.unused_data or await anext(self._chunks, b""):
            raise SnapshotArchiveRefused(reason="something follows its end")

    async def _more(self) -> bool:
        """Decompress some more; false at the frame's end."""
        if self._object.eof:
            return False
        if not self._compressed:
            chunk = await anext(self._chunks, b"")
            if not chunk:
                raise SnapshotArchiveRefused(reason="it is cut short: its compressed data have no end")
            self._compressed = memoryview(chunk)
        try:
            await asyncio.to_thread(self._inflate)
        except zstandard.ZstdError as err:
            raise SnapshotArchiveRefused(reason=f"it cannot be decompressed ({err})") from err
        return True

    def _inflate(self) -> None:
        while self._compressed and len(self._ready) < _ENOUGH_BYTES and not self._object.eof:
            self._ready += self._object.decompress(self._compressed[:_SLICE_BYTES])
            self._compressed = self._compressed[_SLICE_BYTES:]
