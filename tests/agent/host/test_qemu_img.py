"""The real qemu-img, with odd names, full disks and interruptions."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent.errors import QemuImgFailed, StorageFailed
from agent.host import images, process, qemu_img
from agent.host.image_locks import ImageLock
from agent.host.qcow2 import read_header

MIB = 1 << 20
ODD = [
    "a:b.qcow2",
    "-rf",
    "json:{}.qcow2",
    "nbd:x",
    "a,b=c,,d",
    "\"'`$(id) ü",
    "new\nline",
    "%s%d{}",
    "a\\b#?",
    "x" * 255,
]


def make(path: Path, size: int = 4 * MIB, image_format: str = "qcow2") -> Path:
    subprocess.run(["qemu-img", "create", "-q", "-f", image_format, path, str(size)], check=True)
    return path


def io(path: Path, command: str) -> None:
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", command, path], check=True, stdout=subprocess.DEVNULL)


def entries(directory: Path, pattern: str = "*") -> list[str]:
    return sorted(path.name for path in directory.glob(pattern))


async def overlay(path: Path, backing: Path, size: int = 4 * MIB) -> Path:
    await qemu_img.create_overlay(path, backing, "qcow2", size)
    return path


@pytest.mark.case("S13")
async def test_an_overlay_is_private_and_records_size_and_backing_format(tmp_path: Path) -> None:
    base = make(tmp_path / "base.qcow2")
    base.chmod(0o644)
    before = os.umask(0)
    try:
        top = await overlay(tmp_path / "top.qcow2", base, 5 * MIB)
    finally:
        os.umask(before)
    header = read_header(top)
    assert top.stat().st_mode & 0o7777 == 0o600
    assert (header.virtual_size_bytes, header.backing, header.backing_format) == (5 * MIB, str(base), "qcow2")


@pytest.mark.case("X8")
@pytest.mark.parametrize("name", ODD)
async def test_every_subcommand_works_on_odd_names(tmp_path: Path, name: str) -> None:
    (tmp_path / "tops").mkdir()
    base = make(tmp_path / name)
    top = await overlay(tmp_path / "tops" / name, base)
    io(top, "write -P 7 0 64k")
    assert [image.path for image in images.read_chain("vda", top, "qcow2", [tmp_path], 9)] == [str(top), str(base)]
    await qemu_img.commit(top, base, within=[tmp_path])
    assert await qemu_img.compare(top, "qcow2", base, "qcow2", within=[tmp_path])
    await qemu_img.rebase(top, None, within=[tmp_path])
    await qemu_img.rebase(top, base, within=[tmp_path])
    assert (await qemu_img.check(top, within=[tmp_path])).errors == 0
    assert (await qemu_img.measure(top, within=[tmp_path])).required_bytes > 0
    copy = tmp_path / "tops" / ("copy" + name)[:255]
    await qemu_img.convert(top, "qcow2", copy, within=[tmp_path])
    assert await qemu_img.compare(copy, "qcow2", base, "qcow2", within=[tmp_path])
    assert len(entries(tmp_path, "**/*")) == 4


async def test_qemu_agrees_with_the_header_that_was_written(tmp_path: Path) -> None:
    base = make(tmp_path / 'json:{"driver": "nbd"}')
    top = await overlay(tmp_path / "top", base)
    done = await process.run(["qemu-img", "info", "--backing-chain", str(top)])
    assert done.stdout.count(b"\nfile format: qcow2") == 2


async def test_an_existing_file_is_left_alone(tmp_path: Path) -> None:
    base = make(tmp_path / "base")
    (tmp_path / "top").write_bytes(b"precious")
    with pytest.raises(QemuImgFailed, match="the file exists"):
        await overlay(tmp_path / "top", base)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(QemuImgFailed, match="the file exists"):
        await qemu_img.convert(base, "qcow2", tmp_path / "link", within=[tmp_path])
    assert (tmp_path / "top").read_bytes() == b"precious"
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    ("backing", "backing_format", "size", "reason"),
    [
        ("base", "qcow2", MIB, "not an absolute path"),
        ("/base", "vmdk", MIB, "format 'vmdk' is not supported"),
        ("/base", "qcow2", -1, "create failed"),
        ("/base", "qcow2", 1 << 60, "create failed"),
        ("/" + "x/" * 512, "qcow2", MIB, "above 1023 bytes"),
    ],
)
async def test_a_refused_overlay_leaves_nothing(
    tmp_path: Path, backing: str, backing_format: str, size: int, reason: str
) -> None:
    with pytest.raises(QemuImgFailed, match=reason):
        await qemu_img.create_overlay(tmp_path / "top", Path(backing), backing_format, size)
    assert entries(tmp_path) == []


async def test_a_relative_name_never_reaches_qemu_img(tmp_path: Path) -> None:
    with pytest.raises(QemuImgFailed, match="not an absolute path"):
        await qemu_img.check(Path("nbd:x"), within=[tmp_path])
    with pytest.raises(StorageFailed, match="creating"):
        await overlay(tmp_path / "no" / "such", tmp_path / "base")


async def test_a_cancelled_creation_leaves_nothing(tmp_path: Path) -> None:
    base = make(tmp_path / "base")
    for rounds in range(12):
        work = asyncio.create_task(overlay(tmp_path / "top", base))
        for _ in range(rounds):
            await asyncio.sleep(0)
        work.cancel()
        await asyncio.wait([work])
        if work.cancelled():
            assert entries(tmp_path) == ["base"]
        else:
            (tmp_path / "top").unlink()


def test_a_disk_that_is_full_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    (tmp_path / "source").write_bytes(b"x" * MIB)
    script = f"""
import asyncio
from pathlib import Path
from agent.errors import Error
from agent.host import qemu_img
directory = Path({str(small)!r})
source = directory.parent / "source"
for work in [
    qemu_img.create_overlay(directory / "top", source, "raw", 100 << 30),
    qemu_img.convert(source, "raw", directory / "copy", within=[directory, source.parent]),
]:
    try:
        asyncio.run(work)
    except Error as err:
        print(err.code, "No space left" in str(err), list(directory.iterdir()))
"""
    shell = 'mount -t tmpfs -o size=64k none "$1" && exec "$2" -c "$3"'
    argv = ["unshare", "--mount", "sh", "-c", shell, "sh", str(small), sys.executable, script]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout == "qemu-img-failed True []\n" * 2


async def test_commit_and_rebase_keep_what_the_guest_reads_and_tell_how_far_they_are(tmp_path: Path) -> None:
    base = make(tmp_path / "base", 32 * MIB)
    io(base, "write -P 1 0 32M")
    middle = await overlay(tmp_path / "middle", base, 32 * MIB)
    io(middle, "write -P 2 0 16M")
    top = await overlay(tmp_path / "top", middle, 32 * MIB)
    io(top, "write -P 3 0 8M")
    await qemu_img.convert(top, "qcow2", tmp_path / "expected", within=[tmp_path])
    seen: list[float] = []
    await qemu_img.rebase(top, base, "qcow2", seen.append, within=[tmp_path])
    assert read_header(top).backing == str(base)
    assert await qemu_img.compare(top, "qcow2", tmp_path / "expected", "qcow2", within=[tmp_path])
    assert (seen[0], seen[-1], len(seen) > 5) == (0.0, 100.0, True)
    seen.clear()
    await qemu_img.commit(top, base, seen.append, within=[tmp_path])
    assert await qemu_img.compare(base, "qcow2", tmp_path / "expected", "qcow2", within=[tmp_path])
    assert await qemu_img.compare(top, "qcow2", tmp_path / "expected", "qcow2", within=[tmp_path])
    assert seen == sorted(seen)
    assert seen[-1] == 100.0


async def test_an_image_that_we_hold_is_not_written_to(tmp_path: Path) -> None:
    base = make(tmp_path / "base")
    top = await overlay(tmp_path / "top", base)
    with ImageLock.take("vda", top):
        with pytest.raises(QemuImgFailed, match=r'rebase failed on .*Failed to get "write" lock'):
            await qemu_img.rebase(top, None, within=[tmp_path])
        with pytest.raises(QemuImgFailed, match="commit failed"):
            await qemu_img.commit(top, base, within=[tmp_path])
    assert read_header(top).backing == str(base)


async def test_a_cancelled_rebase_leaves_an_image_that_reads_the_same(tmp_path: Path) -> None:
    base = make(tmp_path / "base", 64 * MIB)
    io(base, "write -P 1 0 64M")
    top = await overlay(tmp_path / "top", base, 64 * MIB)
    await qemu_img.convert(top, "qcow2", tmp_path / "expected", within=[tmp_path])
    begun: asyncio.Queue[float] = asyncio.Queue()
    work = asyncio.create_task(qemu_img.rebase(top, None, on_percent=begun.put_nowait, within=[tmp_path]))
    while await begun.get() < 5:
        pass
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert await qemu_img.compare(top, "qcow2", tmp_path / "expected", "qcow2", within=[tmp_path])
    await qemu_img.rebase(top, None, within=[tmp_path])
    assert read_header(top).backing is None
    assert await qemu_img.compare(top, "qcow2", tmp_path / "expected", "qcow2", within=[tmp_path])


async def test_a_rebase_that_ends_when_the_name_has_changed_has_lost_nothing(tmp_path: Path) -> None:
    base = make(tmp_path / "base", 32 * MIB)
    io(base, "write -P 1 0 32M")
    for _ in range(3):
        top = await overlay(tmp_path / "top", base, 32 * MIB)
        work = asyncio.create_task(qemu_img.rebase(top, None, within=[tmp_path]))
        while read_header(top).backing is not None:
            await asyncio.sleep(0)
        work.cancel()  # QEMU has still to write what is in its cache, and to wait until that is on the disk
        await asyncio.wait([work])
        assert await qemu_img.compare(top, "qcow2", base, "qcow2", within=[tmp_path])
        top.unlink()


async def test_a_damaged_image_is_a_result_of_check_and_a_missing_one_an_error(tmp_path: Path) -> None:
    path = make(tmp_path / "image")
    io(path, "write 0 1M")
    with path.open("r+b") as file:
        file.seek(0x20000)  # the first refcount block: nothing is counted any more
        file.write(bytes(64))
    found = await qemu_img.check(path, within=[tmp_path])
    assert found.errors > 0
    with pytest.raises(QemuImgFailed, match="check failed"):
        await qemu_img.check(tmp_path / "absent", within=[tmp_path])
    assert (await qemu_img.check(make(tmp_path / "sound"), within=[tmp_path])) == qemu_img.CheckResult(
        errors=0, leaked_clusters=0
    )


async def test_different_images_are_told_apart(tmp_path: Path) -> None:
    a, b = make(tmp_path / "a"), make(tmp_path / "b")
    io(b, "write -P 9 1M 64k")
    assert not await qemu_img.compare(a, "qcow2", b, "qcow2", within=[tmp_path])
    with pytest.raises(QemuImgFailed, match="compare failed"):
        await qemu_img.compare(a, "qcow2", tmp_path / "absent", "qcow2", within=[tmp_path])


async def test_a_copy_is_whole_private_and_leaves_nothing_on_failure(tmp_path: Path) -> None:
    base = make(tmp_path / "base")
    io(base, "write -P 5 0 1M")
    top = await overlay(tmp_path / "top", base)
    copy = tmp_path / "copy.raw"
    await qemu_img.convert(top, "qcow2", copy, "raw", within=[tmp_path])
    assert copy.read_bytes() == b"\5" * MIB + bytes(3 * MIB)
    assert copy.stat().st_mode & 0o7777 == 0o600
    assert (await qemu_img.measure(top, within=[tmp_path])).required_bytes >= MIB
    with pytest.raises(QemuImgFailed, match="convert failed"):
        await qemu_img.convert(tmp_path / "absent", "qcow2", tmp_path / "none", within=[tmp_path])
    assert not (tmp_path / "none").exists()
