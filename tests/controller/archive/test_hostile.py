"""X7: archives that an enemy, a bad disk or a cut line has made. Each is refused by name."""

import io
import tarfile
import tracemalloc
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
import zstandard

from controller.archive.unpack import Unpacking
from controller.errors import SnapshotArchiveRefused
from tests.controller.archive import forge

Parts = list[tuple[tarfile.TarInfo, bytes]]


@dataclass(frozen=True)
class Harm:
    """What is done to the members of a sound archive, and the words that refuse it."""

    name: str
    do: Callable[[Parts], bytes]
    words: str


def reheaded(member: str, /, **facts: Any) -> Callable[[Parts], bytes]:
    def do(parts: Parts) -> bytes:
        for info, _ in parts:
            if info.name == member:
                for key, value in facts.items():
                    setattr(info, key, value)
        return forge.put_together(parts)

    return do


def rewritten(name: str, data: bytes) -> Callable[[Parts], bytes]:
    def do(parts: Parts) -> bytes:
        for number, (info, _) in enumerate(parts):
            if info.name == name:
                info.size = len(data)
                parts[number] = (info, data)
        return forge.put_together(parts)

    return do


def flipped(name: str) -> Callable[[Parts], bytes]:
    def do(parts: Parts) -> bytes:
        for number, (info, data) in enumerate(parts):
            if info.name == name:
                parts[number] = (info, bytes([data[0] ^ 1]) + data[1:])
        return forge.put_together(parts)

    return do


def manifested(change: Callable[[dict[str, Any]], object]) -> Callable[[Parts], bytes]:
    def do(parts: Parts) -> bytes:
        found = msgspec.json.decode(parts[0][1])
        change(found)
        return rewritten("manifest.json", msgspec.json.encode(found))(parts)

    return do


def listed(change: Callable[[Parts], object]) -> Callable[[Parts], bytes]:
    def do(parts: Parts) -> bytes:
        change(parts)
        return forge.put_together(parts)

    return do


def position(parts: Parts, name: str) -> int:
    return [info.name for info, _ in parts].index(name)


def more_sums(part: tuple[tarfile.TarInfo, bytes]) -> tuple[tarfile.TarInfo, bytes]:
    info, data = part
    data += b"0" * 64 + b"  more\n"
    info.size = len(data)
    return info, data


def wide(parts: Parts) -> bytes:
    """Compress with a window of 128 MiB, which a reader would have to hold."""
    data = b"".join(forge.blocks(*one) for one in parts)
    parameters = zstandard.ZstdCompressionParameters(window_log=27)
    made = io.BytesIO()
    with zstandard.ZstdCompressor(compression_params=parameters).stream_writer(made, closefd=False) as writer:
        writer.write(data)
    return made.getvalue()


VDA = "disks/vda.qcow2"
LINK, DEVICE, FIFO = tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE
HARMS = [
    Harm("an absolute path", reheaded(VDA, name="/etc/passwd"), "'/etc/passwd', which is no member"),
    Harm("a path that leads up", reheaded(VDA, name="../../x"), "'../../x', which is no member"),
    Harm("a path that leads down and up", reheaded(VDA, name="disks/../disks/vda.qcow2"), "no member"),
    Harm("a symbolic link", reheaded(VDA, type=LINK, linkname="/etc/shadow"), "is a symbolic link"),
    Harm("a hard link", reheaded(VDA, type=tarfile.LNKTYPE, linkname="nvram"), "is a hard link"),
    Harm("a device", reheaded(VDA, type=DEVICE), "is a device"),
    Harm("a pipe", reheaded(VDA, type=FIFO), "not a plain file"),
    Harm("a directory", reheaded("nvram", type=tarfile.DIRTYPE), "is a directory"),
    Harm("a pax header", reheaded("nvram", type=tarfile.XHDTYPE), "not a plain file"),
    Harm("a GNU sparse file", reheaded(VDA, type=b"S"), "not a plain file"),
    Harm("an unknown member", listed(lambda p: p.insert(3, (tarfile.TarInfo("more"), b""))), "'more', which is no"),
    Harm("a member twice", listed(lambda p: p.insert(3, p[2])), "holds nvram twice"),
    Harm("the manifest twice", listed(lambda p: p.insert(1, p[0])), "holds manifest.json twice"),
    Harm("a missing host file", listed(lambda p: p.pop(position(p, "nvram"))), "nvram is missing"),
    Harm("a missing disk", listed(lambda p: p.pop(position(p, VDA))), f"{VDA} is missing"),
    Harm("no hashes", listed(lambda p: p.pop()), "SHA256SUMS is missing"),
    Harm("no manifest", listed(lambda p: p.pop(0)), "begins with 'domain.xml'"),
    Harm("members in another order", listed(lambda p: p.insert(4, p.pop(5))), "is missing where"),
    Harm("a size that lies", rewritten(VDA, b"x" * 99), "has 99 bytes, and the manifest says 15000"),
    Harm("a wrong byte in a disk", flipped(VDA), f"{VDA} is damaged"),
    Harm("a wrong byte in the NVRAM", flipped("nvram"), "nvram does not have the hash"),
    Harm("a wrong byte in the domain XML", flipped("domain.xml"), "domain.xml does not have the hash"),
    Harm("a wrong byte in the hashes", flipped("SHA256SUMS"), "is damaged"),
    Harm("hashes of more files", listed(lambda p: p.append(more_sums(p.pop()))), "is not the list of its members"),
    Harm("a huge manifest", rewritten("manifest.json", b" " * (2 << 20)), "the limit is 1048576"),
    Harm("JSON without a bottom", rewritten("manifest.json", b"[" * 100_000), "cannot be read"),
    Harm("JSON of something else", rewritten("manifest.json", b"{}"), "not that of a snapshot"),
    Harm("not JSON", rewritten("manifest.json", b"\xff\xfe"), "cannot be read"),
    Harm("a later version", manifested(lambda m: m.update(version=2)), "version 2 of the format"),
    Harm("an unknown field", manifested(lambda m: m.update(run="x")), "unknown field"),
    Harm("a disk named upwards", manifested(lambda m: m["disks"][0].update(target="../x")), r"names a disk '\.\./x'"),
    Harm("a disk twice", manifested(lambda m: m["disks"][1].update(target="vda")), "twice"),
    Harm("a file named otherwise", manifested(lambda m: m["disks"][0]["images"][0].update(name="nvram")), "names a"),
    Harm("a chain in a flat archive", manifested(lambda m: m.update(disks_mode="flat")), "lists 2 files"),
    Harm("a disk without a file", manifested(lambda m: m["disks"][0].update(images=[])), "lists 0 files"),
    Harm("a negative size", manifested(lambda m: m["disks"][0]["images"][0].update(size_bytes=-1)), "cannot be"),
    Harm("a size beyond all", manifested(lambda m: m["disks"][0]["images"][0].update(size_bytes=1 << 60)), "cannot be"),
    Harm("a huge NVRAM", manifested(lambda m: m["host_files"]["nvram"].update(size_bytes=1 << 30)), "the limit is"),
    Harm("a huge domain XML", manifested(lambda m: m["domain_xml"].update(size_bytes=1 << 30)), "the limit is"),
    Harm("a renamed NVRAM", manifested(lambda m: m["host_files"]["nvram"].update(name="x")), "calls the nvram 'x'"),
    Harm("complete without a TPM", manifested(lambda m: m["host_files"].pop("tpm")), "calls the host files complete"),
    Harm(
        "a time without a zone", manifested(lambda m: m["snapshot"].update(created_at="2026-11-01T00:00:00")), "a time"
    ),
    Harm(
        "a time beyond all", manifested(lambda m: m["snapshot"].update(created_at="9999-12-31T23:59:59-12:00")), "time"
    ),
    Harm("something after its end", lambda p: forge.put_together(p, bytes(1024) + b"hello"), "something follows"),
    Harm("half an end", lambda p: forge.put_together(p, bytes(512) + b"x" * 512), "something follows"),
    Harm("no end", lambda p: forge.put_together(p, b""), "ends in the middle of its end"),
    Harm("zeros without an end", lambda p: forge.put_together(p, bytes(8 << 20)), "something follows"),
    Harm("another file after it", lambda p: forge.put_together(p) + forge.compressed(b"x"), "something follows"),
    Harm("garbage after it", lambda p: forge.put_together(p) + b"x", "something follows its end"),
    Harm("a last byte too few", lambda p: forge.put_together(p)[:-1], "cut short"),
    Harm("half of it", lambda p: forge.put_together(p)[:600], "cut short|ends in the middle"),
    Harm("nothing", lambda _: b"", "cut short"),
    Harm("not zstd", lambda _: b"PK\x03\x04" * 100, "cannot be decompressed"),
    Harm("a tar file that is not compressed", lambda p: b"".join(forge.blocks(*one) for one in p), "cannot be decom"),
    Harm("only a skippable frame", lambda _: b"\x50\x2a\x4d\x18\x04\0\0\0abcd", "cut short|ends in the middle"),
    Harm("a window of gigabytes", wide, "cannot be decompressed"),
    Harm("an empty tar file", lambda _: forge.compressed(bytes(10_240)), "manifest.json is missing"),
]


@pytest.mark.case("X7")
@pytest.mark.parametrize("harm", HARMS, ids=lambda harm: harm.name)
async def test_hostile_archive_is_refused_by_name(harm: Harm) -> None:
    archive = harm.do(forge.members(await forge.packed()))
    with pytest.raises(SnapshotArchiveRefused, match=harm.words):
        await forge.unpack(archive)


@pytest.mark.case("X7")
async def test_archive_cut_anywhere_is_refused() -> None:
    archive = await forge.packed()
    for length in range(0, len(archive), 17):
        with pytest.raises(SnapshotArchiveRefused):
            await forge.unpack(archive[:length])


@pytest.mark.case("X7")
async def test_bomb_of_gigabytes_in_a_few_kilobytes_is_refused_with_little_memory() -> None:
    compressor = zstandard.ZstdCompressor(level=19).compressobj()
    bomb = b"".join(compressor.compress(bytes(1 << 20)) for _ in range(2048)) + compressor.flush()
    assert len(bomb) < 100_000

    async def chunks() -> AsyncIterator[bytes]:
        yield bomb

    tracemalloc.start()
    with pytest.raises(SnapshotArchiveRefused, match=r"manifest\.json is missing"):
        await Unpacking.open(chunks(), forge.LIMIT_BYTES)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 150 << 20
