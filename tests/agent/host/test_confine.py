"""What a confined command can reach, tried by a real shell and a real qemu-img on images that an enemy prepared."""

import os
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.errors import QemuImgFailed, ToolTimeout
from agent.host import confine, process, qemu_img
from agent.host.confine import Bounds

MIB = 1 << 20


@pytest.fixture
def descriptor(tmp_path: Path) -> Iterator[int]:
    path = tmp_path / "given"
    path.write_text("given")
    opened = os.open(path, os.O_PATH)
    yield opened
    os.close(opened)


def make(path: Path, *options: str, size: int = 4 * MIB) -> Path:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *options, path, str(size)], check=True)
    return path


def write(path: Path) -> None:
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -z 0 64k", path], check=True, stdout=subprocess.DEVNULL)


async def shell(script: str, bounds: Bounds) -> str:
    """Return what a confined shell says, on one line."""
    done = await process.run(["sh", "-c", script], 20, bounds=bounds)
    return " ".join((done.stdout + b" " + done.stderr).decode().split())


@pytest.mark.case("S11")
async def test_a_command_opens_the_files_that_it_was_given_and_no_others(tmp_path: Path, descriptor: int) -> None:
    assert confine.landlock_version() > 0  # these tests need a kernel that has it
    other = tmp_path / "other"
    other.write_text("secret")
    script = f"cat {tmp_path}/given; cat {other} /etc/shadow; echo x > {tmp_path}/given; echo x > {tmp_path}/new"
    told = await shell(script, Bounds(readable=[descriptor]))
    assert told.startswith("given")
    assert told.count("Permission denied") == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["given", "other"]
    told = await shell(f"printf y > {tmp_path}/given; rm {tmp_path}/given", Bounds(writable=[descriptor], file_bytes=9))
    assert ("Permission denied" in told, (tmp_path / "given").read_text()) == (True, "y")


@pytest.mark.case("S11")
async def test_a_rule_is_about_the_file_and_not_about_its_name(tmp_path: Path, descriptor: int) -> None:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "given").rename(tmp_path / "moved")
    (tmp_path / "given").symlink_to(tmp_path / "secret")
    told = await shell(f"cat {tmp_path}/given; cat {tmp_path}/moved", Bounds(readable=[descriptor]))
    assert ("Permission denied" in told, "secret" in told.split(), "given" in told.split()) == (True, False, True)


@pytest.mark.parametrize("name", ["nbd://127.0.0.1:9/x", "nbd+unix:///x?socket=/run/x", "http://127.0.0.1:9/x"])
async def test_a_name_that_is_a_protocol_leads_nowhere(name: str) -> None:
    done = await process.run(["qemu-img", "info", name], bounds=Bounds())
    assert done.returncode == 1
    assert b"Permission denied" in done.stderr or b"Unknown protocol" in done.stderr  # http is a package of its own


@pytest.mark.parametrize("name", ["tcp", "udp"])
async def test_a_command_gets_no_socket(name: str) -> None:
    done = await process.run(["bash", "-c", f"echo x >/dev/{name}/127.0.0.1/9"], bounds=Bounds())
    assert b"Permission denied" in done.stderr


async def test_a_command_keeps_one_power_of_root_and_cannot_gain_any() -> None:
    script = "while read -r key value; do case $key in Cap*|NoNewPrivs:) echo $key $value;; esac; done </proc/$$/status"
    opened = os.open("/proc", os.O_PATH)
    try:
        told = (await shell(script, Bounds(readable=[opened]))).split()
    finally:
        os.close(opened)
    found = dict(zip(told[::2], told[1::2], strict=True))
    assert {key: int(found[key], 16) for key in ("CapPrm:", "CapEff:", "CapInh:", "CapAmb:")} == {
        "CapPrm:": 2,
        "CapEff:": 2,
        "CapInh:": 0,
        "CapAmb:": 0,
    }
    assert found["NoNewPrivs:"] == "1"


async def test_a_command_is_held_to_its_memory_its_file_sizes_and_dumps_no_core(
    tmp_path: Path, descriptor: int
) -> None:
    bounds = Bounds(writable=[descriptor], memory_bytes=200 * MIB, file_bytes=3 * MIB)
    told = await shell("ulimit -v; ulimit -c; ulimit -f", bounds)
    assert told == f"{200 * 1024} 0 {3 * MIB // 512}"
    done = await process.run(["dd", "if=/dev/urandom", f"of={tmp_path}/given", "bs=1M", "count=9"], bounds=bounds)
    assert (done.returncode, (tmp_path / "given").stat().st_size) == (-25, 3 * MIB)
    assert done.error_text.endswith("ended by SIGXFSZ")
    done = await process.run(["dd", "if=/dev/urandom", "of=/dev/null", "bs=300M", "count=1"], bounds=bounds)
    assert b"memory exhausted" in done.stderr


async def test_confining_a_command_leaves_the_agent_as_it_was(tmp_path: Path) -> None:
    before = Path("/proc/thread-self/status").read_text().split("CapInh")[1].split("Cpus")[0]
    await shell("true", Bounds())
    assert Path("/proc/thread-self/status").read_text().split("CapInh")[1].split("Cpus")[0] == before
    (tmp_path / "x").write_text("the agent writes where it likes")
    socket.socket().close()


@pytest.mark.case("S11")
@pytest.mark.parametrize("backing_format", ["raw", "qcow2"])
async def test_a_backing_name_that_leads_out_is_not_read(tmp_path: Path, backing_format: str) -> None:
    pool = tmp_path / "pool"
    pool.mkdir()
    secret = tmp_path / "secret"
    secret.write_bytes(b"s" * MIB)
    top = make(pool / "top", "-u", "-b", str(secret), "-F", backing_format)
    with pytest.raises(QemuImgFailed, match="lies outside"):
        await qemu_img.convert(top, "qcow2", pool / "copy", "raw", within=[pool])
    with pytest.raises(QemuImgFailed, match="lies outside"):
        await qemu_img.rebase(top, None, within=[pool])
    link = pool / "link"
    link.symlink_to(secret)
    with pytest.raises(QemuImgFailed, match="not a regular file"):
        await qemu_img.measure(link, "raw", within=[pool])
    assert not (pool / "copy").exists()


async def use(command: str, top: Path, base: Path) -> None:
    pool = top.parent
    match command:
        case "create":
            await qemu_img.create_overlay(top, base, "qcow2", MIB, like=base)
        case "convert":
            await qemu_img.convert(base, "qcow2", top, "raw", within=[pool], like=base)
        case "rebase":
            await qemu_img.rebase(top, None, within=[pool])
        case "measure":
            await qemu_img.measure(top, within=[pool])
        case "commit":
            await qemu_img.commit(top, base, within=[pool])


@pytest.mark.case("S11")
async def test_an_image_that_changes_between_our_look_and_qemus_gets_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Let the enemy strike at the last moment: when all was judged and qemu-img is being started."""
    pool, tools = tmp_path / "pool", tmp_path / "bin"
    pool.mkdir()
    tools.mkdir()
    secret = tmp_path / "secret"
    secret.write_bytes(b"s" * MIB)
    base = make(pool / "base")
    make(tools / "evil", "-u", "-b", str(secret), "-F", "raw")
    evil = (tools / "evil").read_bytes()
    start = process._Start.__call__

    def strike(self: process._Start, argv: list[str]) -> "subprocess.Popen[bytes]":
        with top.open("r+b") as file:
            file.write(evil)  # the same file, with another header
        return start(self, argv)

    monkeypatch.setattr(process._Start, "__call__", strike)  # where the world stands still for the enemy
    for work in ("convert", "rebase", "measure", "commit"):
        top = make(pool / f"top-{work}", "-b", str(base), "-F", "qcow2")
        with pytest.raises(QemuImgFailed, match=r"Permission denied|not found|Could not open"):
            await (use("convert", pool / "copy", top) if work == "convert" else use(work, top, base))
    assert not (pool / "copy").exists()
    assert all(b"s" * 512 not in path.read_bytes() for path in pool.iterdir())


@pytest.mark.case("S11")
async def test_a_new_file_whose_name_is_taken_by_a_link_meanwhile_is_not_written_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = tmp_path / "pool"
    pool.mkdir()
    victim = tmp_path / "victim"
    victim.write_text("precious")
    base = make(pool / "base")
    start = process._Start.__call__

    def strike(self: process._Start, argv: list[str]) -> "subprocess.Popen[bytes]":
        (pool / "new").unlink()
        (pool / "new").symlink_to(victim)
        return start(self, argv)

    monkeypatch.setattr(process._Start, "__call__", strike)  # where the world stands still for the enemy
    os.chown(base, 1234, 1234)
    for kind in ("create", "convert"):
        with pytest.raises(QemuImgFailed, match="Permission denied"):
            await use(kind, pool / "new", base)
        assert (victim.read_text(), victim.stat().st_uid, victim.stat().st_mode & 0o777) == ("precious", 0, 0o644)
        (pool / "new").unlink()


@pytest.mark.case("S11")
async def test_a_huge_sparse_image_does_not_take_the_hosts_memory(tmp_path: Path) -> None:
    path = make(tmp_path / "image", "-o", "cluster_size=512")
    os.truncate(path, 512 << 30)  # check keeps a count for each cluster: 2 GiB of them
    with pytest.raises(QemuImgFailed, match=r"allocate|SIGABRT|SIGTRAP"):
        await qemu_img.check(path, within=[tmp_path])


@pytest.mark.case("S11")
async def test_an_image_that_takes_for_ever_is_given_up_on(tmp_path: Path) -> None:
    path = make(tmp_path / "image", size=1 << 40)
    write(path)
    data = bytearray(path.read_bytes())
    (l1_at,) = struct.unpack_from(">Q", data, 40)
    entries = (1 << 40) >> 29
    data[l1_at : l1_at + entries * 8] = data[l1_at : l1_at + 8] * entries  # every entry names the one L2 table
    path.write_bytes(data)
    with pytest.raises(ToolTimeout):
        await qemu_img.check(path, timeout_s=0.05, within=[tmp_path])
