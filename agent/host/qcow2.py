"""The header of a qcow2 image, parsed here so that no image is opened by QEMU before it is known to be safe.

Source: QEMU's ``docs/interop/qcow2.txt`` (sections "Header", "Feature name table" and "Header extensions") and, for
what QEMU refuses, ``qcow2_do_open`` in ``block/qcow2.c``. A guest that was once given its image as a raw disk can
have written any of this, so nothing is believed: every length is bounded before it is used.
"""

import os
import struct
from dataclasses import dataclass
from pathlib import Path

from agent.host import files

MAGIC = b"QFI\xfb"
MAX_VIRTUAL_BYTES = 64 << 50  # far above any disk; QEMU's own limit with 64 KiB clusters is 2 PiB
MAX_NAME_BYTES = 1023  # of a backing file, as the specification says
_MAX_L1_BYTES = 32 << 20  # QCOW_MAX_L1_SIZE in block/qcow2.h
_CLUSTER_BITS = range(9, 22)  # 512 bytes to 2 MiB, as QEMU accepts
_V2_BYTES, _V3_BYTES = 72, 104
_V2 = struct.Struct(">4sIQIIQIIQQIIQ")
_V3 = struct.Struct(">QQQII")
_EXTENSION = struct.Struct(">II")
_BACKING_FORMAT, _DATA_FILE, _BITMAPS = 0xE2792ACA, 0x44415441, 0x23852875
_MAX_FORMAT_BYTES = 15  # QEMU keeps it in a buffer of 16

_DIRTY, _CORRUPT, _EXTERNAL_DATA, _COMPRESSION, _EXTENDED_L2 = (1 << bit for bit in range(5))
_KNOWN = _DIRTY | _CORRUPT | _EXTERNAL_DATA | _COMPRESSION | _EXTENDED_L2


class Qcow2Error(Exception):
    """The file is not a qcow2 image that can be used; ``reason`` completes the sentence "<path>: <reason>"."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class NotQcow2(Qcow2Error):
    """The file does not even begin as one; QEMU would not take it for one either."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """What an image says of itself. ``backing_format`` and ``data_file`` are None where it says nothing.

    ``encryption`` is 0 (none), 1 (AES) or 2 (LUKS). ``external_data`` is set by the feature bit even where no name
    is recorded. ``bitmaps``: it keeps bitmaps of what changed, for somebody's incremental backups.
    """

    version: int
    virtual_size_bytes: int
    cluster_bits: int
    encryption: int
    internal_snapshots: int
    backing: str | None
    backing_format: str | None
    external_data: bool
    data_file: str | None
    dirty: bool
    corrupt: bool
    bitmaps: bool = False


def read_header(path: Path) -> Header:
    """Read the header of a file. Raises ``Qcow2Error``, or ``OSError`` as it is."""
    descriptor = files.open_regular(path)
    try:
        return read_header_from(descriptor)
    finally:
        os.close(descriptor)


def read_header_from(descriptor: int) -> Header:
    """Read the header of an open file; reads at most its first cluster (2 MiB)."""
    start = os.pread(descriptor, 512, 0)
    if len(start) < _V2_BYTES or start[:4] != MAGIC:
        raise NotQcow2("it is not a qcow2 image")
    bits = int.from_bytes(start[20:24], "big")
    if bits not in _CLUSTER_BITS:
        raise Qcow2Error(f"its cluster size 2^{bits} is not one of qcow2")
    return parse(os.pread(descriptor, 1 << bits, 0))


def parse(data: bytes) -> Header:
    """Parse the first cluster of an image; ``Qcow2Error`` for anything that QEMU or this page would not accept."""
    if len(data) < _V2_BYTES or data[:4] != MAGIC:
        raise NotQcow2("it is not a qcow2 image")
    fields = _V2.unpack_from(data)
    _, version, backing_at, backing_bytes, bits, virtual, encryption, l1_entries, l1_at = fields[:9]
    snapshots = fields[11]
    if version not in {2, 3}:
        raise Qcow2Error(f"its qcow2 version is {version}")
    if bits not in _CLUSTER_BITS:
        raise Qcow2Error(f"its cluster size 2^{bits} is not one of qcow2")
    if encryption > 2:
        raise Qcow2Error(f"its encryption method {encryption} is unknown")
    features, header_bytes = _features(data, version, 1 << bits)
    _check_sizes(virtual, bits, l1_entries, l1_at, extended=bool(features & _EXTENDED_L2))
    cluster = data[: 1 << bits]
    extensions = _extensions(cluster, header_bytes, backing_at)
    return Header(
        version=version,
        virtual_size_bytes=virtual,
        cluster_bits=bits,
        encryption=encryption,
        internal_snapshots=snapshots,
        backing=_backing(cluster, backing_at, backing_bytes),
        backing_format=_text(extensions.get(_BACKING_FORMAT), "backing format"),
        external_data=bool(features & _EXTERNAL_DATA),
        data_file=_text(extensions.get(_DATA_FILE), "external data file name"),
        dirty=bool(features & _DIRTY),
        corrupt=bool(features & _CORRUPT),
        bitmaps=_BITMAPS in extensions,
    )


def renamed_backing(cluster: bytes, name: str) -> bytes:
    """Return an image's first cluster with another name for its backing file, written where the old one stands.

    Raises ``Qcow2Error`` where the image has none, or the new name is longer than the old.
    """
    header = parse(cluster)
    at, length = struct.unpack_from(">QI", cluster, 8)
    new = name.encode()
    if header.backing is None or len(new) > length:
        raise Qcow2Error(f"there is no room for the backing file name {name!r} in its header")
    changed = bytearray(cluster)
    changed[at : at + length] = new.ljust(length, b"\0")
    struct.pack_into(">I", changed, 16, len(new))
    return bytes(changed)


def _features(data: bytes, version: int, cluster_bytes: int) -> tuple[int, int]:
    """Return the incompatible features and the length of the header."""
    if version == 2:
        return 0, _V2_BYTES
    if len(data) < _V3_BYTES:
        raise Qcow2Error("its header is cut short")
    incompatible, _, _, _, header_bytes = _V3.unpack_from(data, _V2_BYTES)
    if not _V3_BYTES <= header_bytes <= cluster_bytes or header_bytes % 8:
        raise Qcow2Error(f"its header claims a length of {header_bytes} bytes")
    if unknown := incompatible & ~_KNOWN:
        raise Qcow2Error(f"it needs features that are not known here (bits {unknown:#x})")
    return incompatible, header_bytes


def _check_sizes(virtual: int, bits: int, l1_entries: int, l1_at: int, *, extended: bool) -> None:
    if virtual > MAX_VIRTUAL_BYTES:
        raise Qcow2Error(f"it claims a virtual size of {virtual} bytes")
    if l1_entries * 8 > _MAX_L1_BYTES:
        raise Qcow2Error(f"its L1 table claims {l1_entries} entries")
    covered_bits = 2 * bits - (4 if extended else 3)  # one L1 entry: a cluster of L2 entries of 16 or 8 bytes
    needed = -(-virtual // (1 << covered_bits))
    if l1_entries < needed:
        raise Qcow2Error(f"its L1 table has {l1_entries} entries and needs {needed}")
    if l1_entries and (l1_at == 0 or l1_at % (1 << bits)):
        raise Qcow2Error("its L1 table is at an impossible place")


def _extensions(cluster: bytes, header_bytes: int, backing_at: int) -> dict[int, bytes]:
    """Return the header extensions by type. They end at type 0, at the backing file's name or with the cluster."""
    end = min(backing_at, len(cluster)) if backing_at else len(cluster)
    found: dict[int, bytes] = {}
    at = header_bytes
    while at + _EXTENSION.size <= end:
        kind, length = _EXTENSION.unpack_from(cluster, at)
        at += _EXTENSION.size
        if kind == 0:
            break
        if length > end - at:
            raise Qcow2Error(f"its header extension {kind:#x} claims {length} bytes")
        if kind in {_BACKING_FORMAT, _DATA_FILE, _BITMAPS}:
            if kind in found:
                raise Qcow2Error(f"its header extension {kind:#x} is there twice")
            found[kind] = cluster[at : at + length]
        at += -(-length // 8) * 8
    if len(found.get(_BACKING_FORMAT, b"")) > _MAX_FORMAT_BYTES:
        raise Qcow2Error("the name of its backing format is too long")
    return found


def _backing(cluster: bytes, at: int, length: int) -> str | None:
    if at == 0 or length == 0:
        return None
    if length > MAX_NAME_BYTES or at + length > len(cluster):
        raise Qcow2Error(f"its backing file name claims {length} bytes at offset {at}")
    return _text(cluster[at : at + length], "backing file name")


def _text(data: bytes | None, what: str) -> str | None:
    """Decode a name. A zero byte is refused: QEMU would stop reading there and see another name than we do."""
    if not data:
        return None
    if b"\0" in data:
        raise Qcow2Error(f"its {what} holds a zero byte")
    try:
        return data.decode()
    except UnicodeDecodeError as err:
        raise Qcow2Error(f"its {what} is not UTF-8") from err
