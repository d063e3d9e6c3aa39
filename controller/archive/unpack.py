"""Reading an archive as a stream, as if an enemy had written it.

Members stand in one order that the manifest fixes, so each header that comes is known before it is read: whatever else
comes (another name, kind or size, a member twice, one missing) is refused by name. Nothing here writes anything, and
memory is bounded by the limits of the small members.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Self

from agent.wire.host_file import HostFileType
from controller.archive import tar
from controller.archive.inflate import Inflater
from controller.archive.manifest import MANIFEST, MANIFEST_LIMIT_BYTES, SUMS, Image, Manifest, decode
from controller.errors import SnapshotArchiveRefused

_PIECE_BYTES = 1 << 20
#: GNU tar fills its last record with zeros, up to 10 KiB by default and 1 MiB at its largest sensible setting.
_FILL_LIMIT_BYTES = 1 << 20


class Unpacking:
    """An archive under way: ``open`` it, consume ``images`` to the end, and only what ``finish`` accepts is whole."""

    def __init__(self, inflater: Inflater) -> None:
        self._inflater = inflater
        self._digests: dict[str, str] = {}
        self.manifest: Manifest
        self.small: dict[str, bytes] = {}

    @classmethod
    async def open(cls, chunks: AsyncIterator[bytes], host_file_limit_bytes: int) -> Self:
        """Read the manifest and all that stands before the images, checked against their hashes.

        Raises SnapshotArchiveRefused, and what ``chunks`` raises.
        """
        self = cls(Inflater(chunks))
        name, size = await self._header(MANIFEST)
        if name != MANIFEST:
            raise SnapshotArchiveRefused(reason=f"it begins with {name!r} in place of {MANIFEST}")
        if size > MANIFEST_LIMIT_BYTES:
            reason = f"its {MANIFEST} has {size} bytes; the limit is {MANIFEST_LIMIT_BYTES}"
            raise SnapshotArchiveRefused(reason=reason)
        self.manifest = decode(await self._whole(MANIFEST, size), host_file_limit_bytes)
        for member in self.manifest.small():
            await self._expect(member.name, member.size_bytes)
            self.small[member.name] = await self._whole(member.name, member.size_bytes)
            if self._digests[member.name] != member.sha256:
                raise SnapshotArchiveRefused(reason=f"{member.name} does not have the hash that the manifest says")
        return self

    def domain_xml(self) -> str:
        """Return the domain XML. Raises SnapshotArchiveRefused where it is not text."""
        try:
            return self.small[self.manifest.domain_xml.name].decode()
        except UnicodeDecodeError as err:
            raise SnapshotArchiveRefused(reason="its domain XML is not UTF-8") from err

    def host_files(self) -> dict[HostFileType, bytes]:
        """Return the host files as they travel."""
        return {type_: self.small[member.name] for type_, member in self.manifest.host_files.items()}

    async def images(self) -> AsyncIterator[tuple[Image, AsyncIterator[bytes]]]:
        """Give each image with its bytes, which the caller consumes before it asks for the next."""
        for image in self.manifest.images():
            await self._expect(image.name, image.size_bytes)
            yield image, self._pieces(image.name, image.size_bytes)
            if image.name not in self._digests:
                raise AssertionError(f"{image.name} was not consumed")

    def digest(self, image: Image) -> str:
        """Return the SHA-256 of an image that was consumed."""
        return self._digests[image.name]

    async def verify(self) -> None:
        """Read the rest, check all of it, and keep nothing. Raises SnapshotArchiveRefused."""
        async for _, pieces in self.images():
            async for _ in pieces:
                pass
        await self.finish()

    async def finish(self) -> None:
        """Check the hashes of all members, and that nothing follows. Raises SnapshotArchiveRefused."""
        lines = {name: f"{sha256}  {name}" for name, sha256 in self._digests.items()}
        length = sum(len(line) + 1 for line in lines.values())
        name, size = await self._header(SUMS)
        if name != SUMS:
            raise self._misplaced(name, SUMS)
        if size > 2 * length:
            raise SnapshotArchiveRefused(reason=f"its {SUMS} has {size} bytes and should have {length}")
        _compare(lines, (await self._whole(SUMS, size)).decode("utf-8", "backslashreplace"))
        if await self._inflater.exactly(len(tar.END), "its end") != tar.END:
            raise SnapshotArchiveRefused(reason=f"something follows {SUMS}")
        filled = 0
        while fill := await self._inflater.read(_PIECE_BYTES):
            filled += len(fill)
            if fill.strip(b"\0") or filled > _FILL_LIMIT_BYTES:
                raise SnapshotArchiveRefused(reason=f"something follows {SUMS}")
        await self._inflater.finish()

    async def _header(self, wanted: str) -> tuple[str, int]:
        block = await self._inflater.exactly(tar.BLOCK, f"the header of {wanted}")
        if not block.strip(b"\0"):
            raise SnapshotArchiveRefused(reason=f"{wanted} is missing")
        return tar.parse(block)

    async def _expect(self, name: str, size_bytes: int) -> None:
        found, size = await self._header(name)
        if found != name:
            raise self._misplaced(found, name)
        if size != size_bytes:
            reason = f"{name} has {size} bytes, and the manifest says {size_bytes}"
            raise SnapshotArchiveRefused(reason=reason)

    def _misplaced(self, found: str, wanted: str) -> SnapshotArchiveRefused:
        if found in self._digests:
            return SnapshotArchiveRefused(reason=f"it holds {found} twice")
        known = {SUMS, *(member.name for member in self.manifest.small()), *(i.name for i in self.manifest.images())}
        if found in known:
            return SnapshotArchiveRefused(reason=f"{wanted} is missing where {found} stands")
        return SnapshotArchiveRefused(reason=f"it holds {found!r}, which is no member of a snapshot's archive")

    async def _whole(self, name: str, size_bytes: int) -> bytes:
        return b"".join([piece async for piece in self._pieces(name, size_bytes)])

    async def _pieces(self, name: str, size_bytes: int) -> AsyncIterator[bytes]:
        digest, left = hashlib.sha256(), size_bytes
        while left:
            piece = await self._inflater.read(min(left, _PIECE_BYTES))
            if not piece:
                raise SnapshotArchiveRefused(reason=f"it ends in the middle of {name}")
            await asyncio.to_thread(digest.update, piece)
            left -= len(piece)
            yield piece
        if (await self._inflater.exactly(tar.padding(size_bytes), name)).strip(b"\0"):
            raise SnapshotArchiveRefused(reason=f"something is hidden behind {name}")
        self._digests[name] = digest.hexdigest()


def _compare(lines: dict[str, str], found: str) -> None:
    """Hold that what was read is what the archive's own list says; name the first member that is not."""
    listed = found.splitlines()
    for name, line in lines.items():
        if line not in listed:
            raise SnapshotArchiveRefused(reason=f"{name} is damaged: its SHA-256 is not the one in {SUMS}")
    if "".join(f"{line}\n" for line in lines.values()) != found:
        raise SnapshotArchiveRefused(reason=f"its {SUMS} is not the list of its members")
