"""Archives for tests: whole ones, and ones made by an enemy."""

import io
import tarfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from datetime import UTC, datetime
from uuid import UUID

import zstandard

from agent.wire.snapshot import SnapshotHostFiles
from controller.archive.manifest import Disk, Image, Machine, Manifest, Origin
from controller.archive.pack import member, pack
from controller.archive.unpack import Unpacking

XML = b"<domain><name>win11</name></domain>"
SMALL = {"domain.xml": XML, "nvram": b"N" * 700, "tpm.tar": b"T" * 1024}
IMAGES = {"disks/vda.qcow2": b"vda" * 5000, "disks/vda.1.qcow2": b"base" * 100, "disks/vdb.qcow2": b"b" * 512}
LIMIT_BYTES = 1 << 20


def manifest(images: dict[str, bytes] | None = None) -> Manifest:
    """Make the manifest of IMAGES, or of one disk with other bytes."""
    images = images or IMAGES
    vda = [Image(name=n, size_bytes=len(d), virtual_size_bytes=1 << 30) for n, d in images.items() if "vda" in n]
    vdb = [Image(name=n, size_bytes=len(d), virtual_size_bytes=1 << 30) for n, d in images.items() if "vdb" in n]
    return Manifest(
        format="coldframe-snapshot",
        version=1,
        created_at=datetime(2026, 11, 2, tzinfo=UTC),
        disks_mode="chain",
        vm=Machine(uuid=UUID("6e0f1c1e-6d9e-4b8e-9f57-1b9b4c3f8a11"), name="win11"),
        snapshot=Origin(
            uuid=UUID("b9a7cf5e-3c3e-4f5c-8a0d-0c7c8f6f2b11"),
            name="before-update",
            description="",
            labels={"team": "a"},
            created_at=datetime(2026, 11, 1, tzinfo=UTC),
            host_files=SnapshotHostFiles(state="complete", expected=["nvram", "tpm"]),
            excluded=[],
            firmware=[],
            tpm_secret=None,
        ),
        domain_xml=member("domain.xml", SMALL["domain.xml"]),
        host_files={"nvram": member("nvram", SMALL["nvram"]), "tpm": member("tpm.tar", SMALL["tpm.tar"])},
        disks=[Disk(target="vda", images=vda), *([Disk(target="vdb", images=vdb)] if vdb else [])],
    )


async def packed(images: dict[str, bytes] | None = None) -> bytes:
    """Pack it as an export does."""

    async def read(image: Image) -> AsyncGenerator[bytes, None]:
        data = (images or IMAGES)[image.name]
        for at in range(0, len(data), 1000):
            yield data[at : at + 1000]

    return b"".join([piece async for piece in pack(manifest(images), SMALL, read, "kvm1")])


def members(archive: bytes) -> list[tuple[tarfile.TarInfo, bytes]]:
    """Take an archive apart."""
    data = zstandard.ZstdDecompressor().decompressobj().decompress(archive)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return [(info, tar.extractfile(info).read()) for info in tar]  # type: ignore[union-attr]  # plain files all


def put_together(parts: list[tuple[tarfile.TarInfo, bytes]], end: bytes = bytes(1024)) -> bytes:
    """Make an archive of whatever members."""
    return compressed(b"".join(blocks(info, data) for info, data in parts) + end)


def blocks(info: tarfile.TarInfo, data: bytes) -> bytes:
    return info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)


def compressed(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=1, write_checksum=True).compress(data)


def changed(archive: bytes, name: str, change: Callable[[tarfile.TarInfo], object]) -> bytes:
    """Change the header of one member."""
    parts = members(archive)
    for info, _ in parts:
        if info.name == name:
            change(info)
    return put_together(parts)


async def unpack(archive: bytes, piece_bytes: int = 4096) -> tuple[Unpacking, dict[str, bytes]]:
    """Read an archive to its end; return it with the images."""

    async def chunks() -> AsyncIterator[bytes]:
        for at in range(0, len(archive), piece_bytes):
            yield archive[at : at + piece_bytes]

    unpacking = await Unpacking.open(chunks(), LIMIT_BYTES)
    found = {}
    async for image, pieces in unpacking.images():
        found[image.name] = b"".join([piece async for piece in pieces])
    await unpacking.finish()
    return unpacking, found
