"""Contents: bytes by their SHA-256, compressed, stored once however many rows name them.

A content is only ever stored in the transaction that stores what refers to it, and goes in the transaction that
removes the last reference: so there is no moment, and no crash, that leaves one behind. Encryption at rest has
its one place in ``pack`` and ``_unpack`` (``codec`` says how a row is written).
"""

import hashlib
from dataclasses import dataclass, field

import zstandard

from agent.wire.host_file import HostFileFormat
from controller.db import write
from controller.errors import ContentCorrupt, ContentMissing
from controller.models import BackupFile, Content, HostFile

CODEC = "zstd"
_LEVEL = 9  # a used 540,672-byte NVRAM goes to about 2,000 bytes at any level; higher ones only take longer


@dataclass(frozen=True)
class Packed:
    """Bytes ready to be stored. ``data`` is compressed and kept out of the repr: it may be a TPM's state."""

    sha256: str
    size_bytes: int
    codec: str
    data: bytes = field(repr=False)


#: What a row is to refer to: bytes just packed, or the hash of bytes that are held; and how they are written.
Held = tuple[Packed | str, HostFileFormat]


def pack(data: bytes) -> Packed:
    """Hash and compress. Needs no database, so it can run on any thread."""
    compressed = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compress(data)
    return Packed(sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data), codec=CODEC, data=compressed)


def put(packed: Packed) -> str:
    """Store, and return the hash. What is there under this hash is written anew, which also heals a damaged row.

    Call it inside the transaction that stores the reference.
    """
    row = {"size_bytes": packed.size_bytes, "codec": packed.codec, "data": packed.data}
    Content.insert(sha256=packed.sha256, **row).on_conflict(conflict_target=[Content.sha256], update=row).execute()
    return packed.sha256


def hold(content: Packed | str) -> str:
    """Return the hash of stored bytes, after storing them where they are new. Raises ContentMissing for a hash."""
    if isinstance(content, Packed):
        return put(content)
    if not Content.select(Content.sha256).where(Content.sha256 == content).exists():
        raise ContentMissing(sha256=content)
    return content


def get(sha256: str) -> bytes:
    """Return the bytes. Raises ContentMissing, or ContentCorrupt rather than ever give out other bytes."""
    row = Content.get_or_none(Content.sha256 == sha256)
    if row is None:
        raise ContentMissing(sha256=sha256)
    data = _unpack(sha256, row.codec, row.size_bytes, bytes(row.data))
    if len(data) != row.size_bytes or hashlib.sha256(data).hexdigest() != sha256:
        raise ContentCorrupt(sha256=sha256, reason="their hash differs")
    return data


def sweep() -> int:
    """Remove contents that nothing refers to; return how many. Part of every owner's removal."""
    with write():
        in_use = (HostFile, HostFile.content), (BackupFile, BackupFile.content)
        unused = [~(Content.sha256.in_(model.select(column).where(column.is_null(False)))) for model, column in in_use]
        return int(Content.delete().where(*unused).execute())


def _unpack(sha256: str, codec: str, size_bytes: int, data: bytes) -> bytes:
    if codec != CODEC:
        raise ContentCorrupt(sha256=sha256, reason=f"they are written as {codec}, which this version cannot read")
    try:
        # The size is checked before anything is unpacked: a damaged row must not fill the memory.
        if zstandard.frame_content_size(data) != size_bytes:
            raise ContentCorrupt(sha256=sha256, reason="their size differs")
        return zstandard.ZstdDecompressor().decompress(data, max_output_size=size_bytes)
    except zstandard.ZstdError as err:
        raise ContentCorrupt(sha256=sha256, reason="they cannot be unpacked") from err
