"""Writing an archive as a stream: tar inside zstd, in constant memory."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

import zstandard

from controller.archive import tar
from controller.archive.manifest import MANIFEST, SUMS, Image, Manifest, Member, encode
from controller.errors import ArchiveSourceChanged

#: zstd's own default: more saves little on disk images and costs much.
_LEVEL = 3

#: Gives the bytes of an image.
Source = Callable[[Image], AsyncGenerator[bytes, None]]


async def pack(manifest: Manifest, small: dict[str, bytes], read: Source, host: str) -> AsyncGenerator[bytes, None]:
    """Give the archive piece by piece. ``small`` holds the members of ``manifest.small()`` by name.

    Raises ArchiveSourceChanged where ``read`` gives another number of bytes than the manifest says (``host`` is
    named then), and what ``read`` raises: what was given until then is no archive.
    """
    compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compressobj()
    sums: list[str] = []
    async with aclosing(_members(manifest, small, read, host, sums)) as members:
        async for piece in members:
            if compressed := await asyncio.to_thread(compressor.compress, piece):
                yield compressed
    yield await asyncio.to_thread(compressor.flush)


async def _members(
    manifest: Manifest, small: dict[str, bytes], read: Source, host: str, sums: list[str]
) -> AsyncGenerator[bytes, None]:
    """Give the tar file, and fill ``sums`` on the way."""
    texts = {MANIFEST: encode(manifest), **{member.name: small[member.name] for member in manifest.small()}}
    for name, data in texts.items():
        sums.append(_line(hashlib.sha256(data).hexdigest(), name))
        yield _whole(manifest, name, data)
    for image in manifest.images():
        yield tar.header(image.name, image.size_bytes, manifest.snapshot.created_at)
        digest, seen = hashlib.sha256(), 0
        async with aclosing(read(image)) as pieces:
            async for piece in pieces:
                seen += len(piece)
                if seen > image.size_bytes:
                    break
                await asyncio.to_thread(digest.update, piece)
                yield piece
        if seen != image.size_bytes:
            raise ArchiveSourceChanged(name=host, file=image.name, found=seen, expected=image.size_bytes)
        yield bytes(tar.padding(seen))
        sums.append(_line(digest.hexdigest(), image.name))
    yield _whole(manifest, SUMS, "".join(sums).encode()) + tar.END


def _whole(manifest: Manifest, name: str, data: bytes) -> bytes:
    return tar.header(name, len(data), manifest.snapshot.created_at) + data + bytes(tar.padding(len(data)))


def _line(sha256: str, name: str) -> str:
    """Return a line as sha256sum(1) writes and checks it."""
    return f"{sha256}  {name}\n"


def member(name: str, data: bytes) -> Member:
    """Describe a file that is at hand."""
    return Member(name=name, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
