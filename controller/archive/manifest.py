"""What an archive says of itself: its first member, ``manifest.json``."""

import re
from collections.abc import Iterator
from datetime import datetime
from typing import Literal, TypeVar
from uuid import UUID

import msgspec

from agent.wire.base import Request
from agent.wire.host_file import HostFileType
from agent.wire.snapshot import SnapshotHostFiles
from agent.wire.transaction import FirmwareFile
from controller.errors import SnapshotArchiveRefused

T = TypeVar("T")

#: ``flat``: one file a disk. ``chain``: the frozen file and all that it stands on, as they are.
DisksMode = Literal["flat", "chain"]

FORMAT, VERSION = "coldframe-snapshot", 1
MANIFEST, DOMAIN_XML, SUMS = "manifest.json", "domain.xml", "SHA256SUMS"
HOST_FILE_NAMES: dict[HostFileType, str] = {"nvram": "nvram", "tpm": "tpm.tar"}
MANIFEST_LIMIT_BYTES = 1 << 20  # a hundred disks in chains of a hundred files take 800 kB
XML_LIMIT_BYTES = 4 << 20
SIZE_LIMIT_BYTES = 1 << 56  # above any file system; a sum of sizes stays a number that every database takes
_DISKS_LIMIT, _DEPTH_LIMIT = 256, 1_000
_YEARS = range(1970, 2200)  # beyond these, times cannot be brought to UTC everywhere
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TARGET = re.compile(r"[A-Za-z0-9_-]{1,32}")


class Member(Request, kw_only=True, frozen=True):
    """A file whose hash is known before the archive is written."""

    name: str
    size_bytes: int
    sha256: str


class Image(Request, kw_only=True, frozen=True):
    """A qcow2 file. Its hash is in SHA256SUMS, since it is known only when the file has been read."""

    name: str
    size_bytes: int
    virtual_size_bytes: int


class Disk(Request, kw_only=True, frozen=True):
    """One disk of the VM: its frozen file first, then each file that the one before stands on."""

    target: str
    images: list[Image]


class Origin(Request, kw_only=True, frozen=True):
    """The snapshot that was exported."""

    uuid: UUID
    name: str
    description: str
    labels: dict[str, str]
    created_at: datetime
    host_files: SnapshotHostFiles
    excluded: list[str]
    firmware: list[FirmwareFile]
    tpm_secret: UUID | None


class Machine(Request, kw_only=True, frozen=True):
    """The VM that the snapshot is of."""

    uuid: UUID
    name: str


class Manifest(Request, kw_only=True, frozen=True):
    """The whole. ``version`` grows when a reader of the one before could not read the archive rightly."""

    format: str
    version: int
    created_at: datetime
    disks_mode: DisksMode
    vm: Machine
    snapshot: Origin
    domain_xml: Member
    host_files: dict[HostFileType, Member]
    disks: list[Disk]

    def images(self) -> Iterator[Image]:
        """Give the images in the order in which they stand in the archive."""
        for disk in self.disks:
            yield from disk.images

    def small(self) -> list[Member]:
        """Give the members that stand between the manifest and the images, in order."""
        files = [self.host_files[type_] for type_ in HOST_FILE_NAMES if type_ in self.host_files]
        return [self.domain_xml, *files]


class _Version(msgspec.Struct):
    format: str = ""
    version: int = 0


def image_name(target: str, position: int) -> str:
    """Return the name of a disk's file; position 0 is the frozen file."""
    return f"disks/{target}.qcow2" if position == 0 else f"disks/{target}.{position}.qcow2"


def encode(manifest: Manifest) -> bytes:
    """Return it as it stands in the archive, for people too."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"


def decode(data: bytes, host_file_limit_bytes: int) -> Manifest:
    """Return a manifest that agrees with itself. Raises SnapshotArchiveRefused."""
    found = _as(data, _Version)
    if found.format != FORMAT:
        raise SnapshotArchiveRefused(reason=f"its {MANIFEST} is not that of a snapshot's archive")
    if found.version != VERSION:
        reason = f"it has version {found.version} of the format, and this Coldframe reads version {VERSION}"
        raise SnapshotArchiveRefused(reason=reason)
    manifest = _as(data, Manifest)
    for reason in _contradictions(manifest, host_file_limit_bytes):
        raise SnapshotArchiveRefused(reason=f"its {MANIFEST} {reason}")
    return manifest


def _as(data: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
        reason = "nested too deeply" if isinstance(err, RecursionError) else str(err)
        raise SnapshotArchiveRefused(reason=f"its {MANIFEST} cannot be read: {reason}") from err


def _contradictions(manifest: Manifest, host_file_limit_bytes: int) -> Iterator[str]:
    """Say what is wrong with it, the first thing first."""
    if manifest.domain_xml.name != DOMAIN_XML:
        yield f"calls the domain XML {manifest.domain_xml.name!r}"
    if manifest.domain_xml.size_bytes > XML_LIMIT_BYTES:
        yield f"claims a domain XML of {manifest.domain_xml.size_bytes} bytes; the limit is {XML_LIMIT_BYTES}"
    for type_, member in manifest.host_files.items():
        if member.name != HOST_FILE_NAMES[type_]:
            yield f"calls the {type_} {member.name!r}"
        if member.size_bytes > host_file_limit_bytes:
            yield f"claims a {type_} of {member.size_bytes} bytes; the limit is {host_file_limit_bytes}"
    for member in manifest.small():
        if member.size_bytes < 0 or not _SHA256.fullmatch(member.sha256):
            yield f"gives {member.name} a size or a hash that cannot be"
    if any(at.tzinfo is None or at.year not in _YEARS for at in (manifest.created_at, manifest.snapshot.created_at)):
        yield "gives a time without its zone, or one that cannot be"
    held, files = set(manifest.host_files), manifest.snapshot.host_files
    if files.state == "complete" and held != set(files.expected):
        yield f"calls the host files complete, expects {sorted(files.expected)} and holds {sorted(held)}"
    yield from _wrong_disks(manifest)


def _wrong_disks(manifest: Manifest) -> Iterator[str]:
    targets = [disk.target for disk in manifest.disks]
    if len(targets) > _DISKS_LIMIT or len(set(targets)) < len(targets):
        yield f"lists {len(targets)} disks, some of them twice or too many"
    for disk in manifest.disks:
        if not _TARGET.fullmatch(disk.target):
            yield f"names a disk {disk.target!r}"
        if not 1 <= len(disk.images) <= (1 if manifest.disks_mode == "flat" else _DEPTH_LIMIT):
            yield f"lists {len(disk.images)} files for disk {disk.target}"
        for position, image in enumerate(disk.images):
            if image.name != image_name(disk.target, position):
                yield f"names a file {image.name!r} in place of {image_name(disk.target, position)!r}"
            if not 0 < image.size_bytes <= SIZE_LIMIT_BYTES or not 0 <= image.virtual_size_bytes <= SIZE_LIMIT_BYTES:
                yield f"gives {image.name} a size that cannot be"
