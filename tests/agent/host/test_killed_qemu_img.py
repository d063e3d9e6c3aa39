"""The kernel kills a qemu-img at work, as it does where memory is short: an error that says so, and nothing lost."""

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Awaitable
from pathlib import Path

import pytest

from agent.errors import QemuImgFailed
from agent.host import qemu_img
from agent.host.qcow2 import read_header

SIZE_MIB = 48


def io(path: Path, command: str) -> None:
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", command, path], check=True, stdout=subprocess.DEVNULL)


def make(path: Path) -> None:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, f"{SIZE_MIB}M"], check=True)
    io(path, f"write -P 1 0 {SIZE_MIB}M")


def at_work(command: str) -> int | None:
    """Return the process id of our own qemu-img of a subcommand; prlimit becomes it before."""
    for path in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):  # threads and processes come and go
            for pid in path.read_text().split():
                if Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:2] == [b"qemu-img", command.encode()]:
                    return int(pid)
    return None


async def kill_at(command: str, percent: float, told: "asyncio.Queue[float]", work: Awaitable[object]) -> None:
    """Kill what does the work once it has come so far; it must be told as that."""
    doing = asyncio.ensure_future(work)
    while percent and await told.get() < percent:
        pass
    while (pid := at_work(command)) is None:
        await asyncio.sleep(0)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(QemuImgFailed, match=rf"qemu-img {command} failed .*ended by SIGKILL, as the kernel does"):
        await doing


@pytest.mark.case("F5")
async def test_each_command_killed_at_work_loses_nothing_and_can_be_repeated(tmp_path: Path) -> None:
    within, base, top, expected, copy = ([tmp_path], *(tmp_path / name for name in ("base", "top", "expected", "copy")))
    make(base)
    await qemu_img.create_overlay(top, base, "qcow2", SIZE_MIB << 20)
    io(top, f"write -P 2 0 {SIZE_MIB // 2}M")
    await qemu_img.convert(top, "qcow2", expected, within=within)

    async def reads_as_before() -> bool:
        return await qemu_img.compare(top, "qcow2", expected, "qcow2", within=within)

    told: asyncio.Queue[float] = asyncio.Queue()
    hear = told.put_nowait
    await kill_at("convert", 30, told, qemu_img.convert(top, "qcow2", copy, "qcow2", hear, within=within))
    assert not copy.exists()
    await kill_at("check", 0, told, qemu_img.check(top, within=within))
    await kill_at("commit", 30, told, qemu_img.commit(top, base, hear, within=within))
    assert await reads_as_before()
    await kill_at("rebase", 70, told, qemu_img.rebase(top, None, on_percent=hear, within=within))
    assert read_header(top).backing == str(base)
    assert await reads_as_before()
    await qemu_img.commit(top, base, within=within)
    await qemu_img.rebase(top, None, within=within)
    assert await qemu_img.compare(base, "qcow2", expected, "qcow2", within=within)
    assert await reads_as_before()
    assert (await qemu_img.check(top, within=within)).errors == 0
