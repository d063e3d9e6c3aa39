"""The kernel kills a qemu-img at work, as it does where memory is short: an error that says so, and nothing lost."""

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Awaitable, Callable
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


async def killed(command: str, percent: float, begin: Callable[[Callable[[float], None]], Awaitable[object]]) -> bool:
    """Kill what does the work once it has come so far; it must be told as that. False where it was done before."""
    told: asyncio.Queue[float] = asyncio.Queue()
    doing = asyncio.ensure_future(begin(told.put_nowait))
    pid = None
    while not doing.done() and pid is None:
        await asyncio.sleep(0)
        while not told.empty():
            percent = 0 if told.get_nowait() >= percent else percent
        pid = None if percent else at_work(command)
    if pid is None:
        await doing
        return False
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(QemuImgFailed, match=rf"qemu-img {command} failed .*ended by SIGKILL, as the kernel does"):
        await doing
    return True


@pytest.mark.case("F5")
async def test_each_command_killed_at_work_loses_nothing_and_can_be_repeated(tmp_path: Path) -> None:
    within, base, top, expected, copy = ([tmp_path], *(tmp_path / name for name in ("base", "top", "expected", "copy")))
    make(base)
    await qemu_img.create_overlay(top, base, "qcow2", SIZE_MIB << 20)
    io(top, f"write -P 2 0 {SIZE_MIB // 2}M")
    await qemu_img.convert(top, "qcow2", expected, within=within)

    async def reads_as_before() -> bool:
        return await qemu_img.compare(top, "qcow2", expected, "qcow2", within=within)

    while not await killed(
        "convert", 30, lambda hear: qemu_img.convert(top, "qcow2", copy, "qcow2", hear, within=within)
    ):
        copy.unlink()
    assert not copy.exists()
    while not await killed("check", 0, lambda _: qemu_img.check(top, within=within)):
        pass
    while not await killed("commit", 30, lambda hear: qemu_img.commit(top, base, hear, within=within)):
        pass
    assert await reads_as_before()
    await qemu_img.commit(top, base, within=within)
    assert await qemu_img.compare(base, "qcow2", expected, "qcow2", within=within)
    await killed("rebase", 30, lambda hear: qemu_img.rebase(top, None, on_percent=hear, within=within))
    assert await reads_as_before()
    if read_header(top).backing is not None:  # else it was killed in its last moment, or not at all
        await qemu_img.rebase(top, None, within=within)
    assert await reads_as_before()
    assert (await qemu_img.check(top, within=within)).errors == 0
