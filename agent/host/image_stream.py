"""Image files as streams: read out for an archive, and written from one with holes where there are zeros."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Self

from agent.errors import ImageRefused
from agent.host import files, paths, qcow2

_PIECE_BYTES = 1 << 20
_HOLE_BYTES = 64 << 10
_ZEROS = bytes(_HOLE_BYTES)


async def read(path: Path, target: str, size_bytes: int, named: str | None) -> AsyncIterator[bytes]:
    """Give an image's first ``size_bytes``, with ``named`` in its header in place of its backing file's name.

    The caller holds a lock on the image. Raises ImageRefused where the header has no room for the name, StorageFailed.
    """
    descriptor = await asyncio.to_thread(_open, path)
    try:
        at = 0
        while at < size_bytes:
            piece = await asyncio.to_thread(_read, descriptor, path, at, min(_PIECE_BYTES * 2, size_bytes - at))
            if not piece:
                return  # it became shorter, and the receiver sees that
            if at == 0 and named is not None:
                piece = _renamed(path, target, piece, named)
            yield piece
            at += len(piece)
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    with files.storage("reading", path):
        return files.open_regular(path)


def _read(descriptor: int, path: Path, at: int, count: int) -> bytes:
    with files.storage("reading", path):
        return os.pread(descriptor, count, at)


def _renamed(path: Path, target: str, piece: bytes, named: str) -> bytes:
    try:
        return qcow2.renamed_backing(piece, named)
    except qcow2.Qcow2Error as err:
        raise ImageRefused(target=target, path=str(path), reason=f"{err.reason}; export it flat") from err


async def pieces(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Give what comes in small chunks in larger pieces, each worth a thread's while."""
    parts: list[bytes] = []
    size = 0
    async for chunk in chunks:
        parts.append(chunk)
        size += len(chunk)
        if size >= _PIECE_BYTES:
            yield b"".join(parts)
            parts, size = [], 0
    if parts:
        yield b"".join(parts)


class NewImage:
    """A private file that is written from its beginning to its end; zeros become holes. Methods block."""

    def __init__(self, path: Path) -> None:
        """Make the file anew. Raises StorageFailed, NoSpace."""
        self._path = path
        self._digest = hashlib.sha256()
        self.size_bytes = 0
        with files.storage("creating", path):
            paths.unlink(path, missing_ok=True)
            self._descriptor = paths.opened(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)

    def write(self, data: bytes) -> None:
        """Append. Raises NoSpace, StorageFailed."""
        self._digest.update(data)
        view = memoryview(data)
        with files.storage("writing", self._path, len(data)):
            while view:
                part = view[: _HOLE_BYTES - self.size_bytes % _HOLE_BYTES]
                if part != _ZEROS[: len(part)]:
                    self._write_at(part)
                self.size_bytes += len(part)
                view = view[len(part) :]

    def _write_at(self, part: memoryview) -> None:
        done = 0
        while done < len(part):
            done += os.pwrite(self._descriptor, part[done:], self.size_bytes + done)

    def finish(self) -> str:
        """Make it durable, and return its SHA-256."""
        with files.storage("writing", self._path):
            os.ftruncate(self._descriptor, self.size_bytes)
            os.fsync(self._descriptor)
        files.fsync_directory(self._path.parent)
        return self._digest.hexdigest()
