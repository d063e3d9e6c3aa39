"""Outside commands that fail, hang, flood and leave children."""

import asyncio
import os
import select
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.errors import ToolFailed, ToolTimeout
from agent.host import process
from agent.host.confine import Bounds
from tests.agent.host.used_up import no_descriptors, no_threads


async def shell(
    script: str,
    timeout_s: float = 20,
    umask: int = 0o077,
    output_limit_bytes: int = process.OUTPUT_LIMIT_BYTES,
    bounds: Bounds | None = None,
) -> process.Completed:
    return await process.run(["sh", "-c", script], timeout_s, umask, output_limit_bytes, bounds)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def reaped(pid: int) -> bool:
    """Unlike a grandchild, which init reaps when it likes, our own child must not even be a zombie."""
    return not Path(f"/proc/{pid}").exists()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.to_thread(select.select, [], [], [], 0.01)


async def noted(path: Path) -> int:
    """Wait for a child to write its process id."""
    await until(lambda: path.exists() and path.read_text().endswith("\n"))
    return int(await asyncio.to_thread(path.read_text))


async def gone(pid: int) -> bool:
    await until(lambda: not alive(pid))
    return True


async def test_output_and_exit_status_come_back_and_nothing_is_raised() -> None:
    done = await shell("echo out; echo 'two\n lines' >&2; exit 3")
    assert (done.stdout, done.stderr, done.returncode) == (b"out\n", b"two\n lines\n", 3)
    assert done.error_text == "two lines"
    assert (await shell("kill -9 $$")).error_text.startswith("ended by SIGKILL, as the kernel does")


@pytest.mark.case("X8")
async def test_arguments_never_meet_a_shell() -> None:
    odd = ["$(id)", "a b", "\"'`", "-n", "ü\n", "*"]
    done = await process.run([sys.executable, "-c", "import sys; print(sys.argv[1:])", *odd])
    assert done.stdout.decode().strip() == str(odd)


async def test_a_command_sees_only_what_it_needs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COLDFRAME_TOKEN", "secret")
    with (tmp_path / "inherited").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        script = (
            f"umask; cat; echo $LC_ALL [$COLDFRAME_TOKEN]; pwd; test -e /proc/self/fd/{file.fileno()} || echo closed"
        )
        done = await shell(script)
    assert done.stdout == b"0077\nC []\n/\nclosed\n"
    assert (await shell("umask", umask=0o022)).stdout == b"0022\n"


@pytest.mark.parametrize("argv", [["/no/such/tool"], ["/etc/passwd"], ["sh", "-c", "a\0b"]])
async def test_a_command_that_cannot_be_run_is_named(argv: list[str]) -> None:
    with pytest.raises(ToolFailed, match=argv[0]):
        await process.run(argv)


async def test_a_command_that_hangs_is_stopped_with_its_children(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    with pytest.raises(ToolTimeout, match=r"sh -c did not end within 0.5 s"):
        await shell(f"sleep 1000 & echo $! > {note}; wait", timeout_s=0.5)
    assert await gone(await noted(note))


async def test_a_child_that_keeps_the_output_open_does_not_outlive_the_deadline(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    with pytest.raises(ToolTimeout):
        await shell(f"sleep 1000 & echo $! > {note}", timeout_s=0.5)
    assert await gone(await noted(note))


async def test_a_child_that_left_the_group_keeps_no_pipe_of_ours_open(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    before = open_files()
    with pytest.raises(ToolTimeout):
        await shell(f"setsid sh -c 'echo $$ > {note}; exec sleep 1000' &", timeout_s=0.5)
    after = open_files()
    os.kill(await noted(note), signal.SIGKILL)
    assert after == before


async def test_a_command_that_ignores_sigterm_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_GRACE_S", 0.2)
    note = tmp_path / "pid"
    with pytest.raises(ToolTimeout):
        await shell(f"trap '' TERM; echo $$ > {note}; while :; do sleep 0.1; done", timeout_s=0.5)
    assert reaped(await noted(note))


async def test_a_cancelled_call_leaves_nothing_running(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    call = asyncio.create_task(shell(f"echo $$ > {note}; sleep 1000", timeout_s=1000))
    pid = await noted(note)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert reaped(pid)


async def test_a_call_cancelled_twice_still_kills(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    call = asyncio.create_task(shell(f"trap '' TERM; echo $$ > {note}; while :; do sleep 0.1; done", timeout_s=1000))
    pid = await noted(note)
    call.cancel()
    await asyncio.sleep(0.05)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert reaped(pid)


@pytest.mark.parametrize("stream", ["", ">&2"])
async def test_a_flood_of_output_is_cut_off(stream: str) -> None:
    before = open_files()
    with pytest.raises(ToolFailed, match="printed more than 65536 bytes"):
        await shell(f"exec yes {stream}", output_limit_bytes=65_536)
    assert open_files() == before


async def test_a_command_has_a_session_of_its_own() -> None:
    done = await process.run([sys.executable, "-c", "import os; print(os.getsid(0) == os.getpid())"])
    assert done.stdout == b"True\n"


async def test_progress_is_read_in_whatever_pieces_it_comes() -> None:
    seen: list[float] = []
    script = (
        "import sys, time\n"
        "pieces = [' (0.00/100%)\\r', ' (12', '.34/10', '0%)\\r  (12.34/100%)\\r', 'done (', 'x)\\n', '(100.0/100%)']\n"
        "for piece in pieces:\n"
        "    sys.stdout.write(piece); sys.stdout.flush(); time.sleep(0.02)\n"
    )
    done = await process.run_with_progress([sys.executable, "-c", script], seen.append, timeout_s=20)
    assert seen == [0.0, 12.34, 100.0]
    assert done.stdout.split() == [b"done", b"(x)"]


async def test_an_error_of_the_listener_stops_the_command(tmp_path: Path) -> None:
    note = tmp_path / "pid"

    def fail(percent: float) -> None:
        raise RuntimeError(percent)

    argv = ["sh", "-c", f"echo $$ > {note}; printf '(5.00/100%%)'; sleep 1000"]
    with pytest.raises(RuntimeError, match=r"5\.0"):
        await process.run_with_progress(argv, fail, timeout_s=20)
    assert reaped(await noted(note))


async def test_a_command_for_which_there_is_no_thread_or_descriptor_left_is_not_begun(tmp_path: Path) -> None:
    before = open_files()
    for lack, reason in ((no_threads, "no thread can be started"), (no_descriptors, "Too many open files")):
        with lack(), pytest.raises(ToolFailed, match=reason):
            await shell(f"touch {tmp_path}/begun")
    assert not (tmp_path / "begun").exists()
    assert open_files() == before
