"""An archive is written and read as a stream, and is an ordinary tar file inside zstd."""

import hashlib
import subprocess
import tracemalloc
from collections.abc import AsyncGenerator
from pathlib import Path

import msgspec
import pytest

from controller.archive import tar
from controller.archive.manifest import Image
from controller.archive.pack import pack
from controller.archive.unpack import Unpacking
from controller.errors import ArchiveSourceChanged, SnapshotArchiveRefused
from tests.controller.archive import forge


def shell(directory: Path, command: str) -> str:
    """Run the commands that a user without Coldframe has."""
    return subprocess.run(["sh", "-ec", command], cwd=directory, capture_output=True, text=True, check=True).stdout


async def test_what_was_packed_is_read_again_byte_for_byte() -> None:
    unpacking, images = await forge.unpack(await forge.packed(), piece_bytes=7)
    assert images == forge.IMAGES
    assert unpacking.manifest == forge.manifest()
    assert unpacking.domain_xml().encode() == forge.XML
    assert unpacking.host_files() == {"nvram": forge.SMALL["nvram"], "tpm": forge.SMALL["tpm.tar"]}
    first = next(unpacking.manifest.images())
    assert unpacking.digest(first) == hashlib.sha256(forge.IMAGES[first.name]).hexdigest()


async def test_tar_zstd_and_sha256sum_alone_unpack_and_check_it(tmp_path: Path) -> None:
    (tmp_path / "a.tar.zst").write_bytes(await forge.packed())
    command = "zstd -q -d -c a.tar.zst | tar -x && sha256sum --quiet -c SHA256SUMS && find . -type f | sort"
    found = shell(tmp_path, command)
    names = ["SHA256SUMS", "a.tar.zst", *forge.IMAGES, *forge.SMALL, "manifest.json"]
    assert found.split() == sorted(f"./{name}" for name in names)
    assert (tmp_path / "disks/vda.1.qcow2").read_bytes() == forge.IMAGES["disks/vda.1.qcow2"]


async def test_an_archive_packed_again_with_tar_and_zstd_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.tar.zst").write_bytes(await forge.packed())
    names = " ".join(["manifest.json", *forge.SMALL, *forge.IMAGES, "SHA256SUMS"])
    command = f"zstd -q -d -c a.tar.zst | tar -x && tar -c {names} | zstd -q -19 -c > again"
    shell(tmp_path, command)
    _, images = await forge.unpack((tmp_path / "again").read_bytes())
    assert images == forge.IMAGES


def test_a_file_of_eight_gibibytes_and_more_has_a_header_that_is_read() -> None:
    header = tar.header("disks/vda.qcow2", 9 << 40, forge.manifest().created_at)
    assert len(header) == tar.BLOCK
    assert tar.parse(header) == ("disks/vda.qcow2", 9 << 40)


async def test_memory_stays_flat_however_large_a_disk_is() -> None:
    size = 256 << 20
    made = forge.manifest({"disks/vda.qcow2": b"x"})
    disk = made.disks[0].images[0]
    whole = Image(name=disk.name, size_bytes=size, virtual_size_bytes=size)

    async def read(_: Image) -> AsyncGenerator[bytes, None]:
        for _number in range(size >> 20):
            yield bytes(1 << 20)

    made = msgspec.structs.replace(made, disks=[msgspec.structs.replace(made.disks[0], images=[whole])])
    tracemalloc.start()
    unpacking = await Unpacking.open(pack(made, forge.SMALL, read, "kvm1"), forge.LIMIT_BYTES)
    seen = 0
    async for _, pieces in unpacking.images():
        async for piece in pieces:
            seen += len(piece)
    await unpacking.finish()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seen == size
    assert peak < 100 << 20


@pytest.mark.parametrize("data", [b"", b"short", b"x" * 15_001])
async def test_a_host_that_sends_more_or_less_than_it_said_makes_no_archive(data: bytes) -> None:
    async def read(_: Image) -> AsyncGenerator[bytes, None]:
        yield data

    made: list[bytes] = []

    async def export() -> None:
        made.extend([piece async for piece in pack(forge.manifest(), forge.SMALL, read, "kvm1")])

    with pytest.raises(ArchiveSourceChanged, match="kvm1"):
        await export()
    with pytest.raises(SnapshotArchiveRefused):
        await forge.unpack(b"".join(made))
