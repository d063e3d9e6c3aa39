"""Outside commands: an argument list in, what it printed out, and never a process left behind.

Each command runs in a session of its own with nothing on stdin, a small fixed environment (``LC_ALL=C``, so that
messages can be read) and no inherited descriptors. When its time is up, or the caller is cancelled, the whole
process group gets SIGTERM, two seconds later SIGKILL, and is reaped before the call returns.
"""

import asyncio
import contextlib
import os
import re
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from agent.errors import ToolFailed, ToolTimeout

OUTPUT_LIMIT_BYTES = 4 << 20  # of each stream: `qemu-img map` of a large disk is the longest we know, below 1 MiB
_GRACE_S = 2.0
_CHUNK_BYTES = 64 << 10
_PERCENT = re.compile(rb"\(\s*(\d+(?:\.\d+)?)/100%\)")  # qemu-img -p, util/qemu-progress.c
_UNFINISHED = re.compile(rb"\([\d ./]{0,16}%?\Z")
_ENVIRONMENT = ("PATH", "HOME", "TMPDIR")


@dataclass(frozen=True)
class Completed:
    """How a command ended. ``returncode`` is negative for a signal, as in ``subprocess``."""

    stdout: bytes
    stderr: bytes
    returncode: int

    @property
    def error_text(self) -> str:
        """What it wrote on stderr, as one line of at most 500 characters."""
        return " ".join(self.stderr.decode(errors="replace").split())[:500] or f"exit status {self.returncode}"


async def run(
    argv: Sequence[str], timeout_s: float = 60.0, umask: int = 0o077, output_limit_bytes: int = OUTPUT_LIMIT_BYTES
) -> Completed:
    """Run a command to its end. A non-zero exit is for the caller to judge.

    Raises ``ToolTimeout`` after ``timeout_s``, and ``ToolFailed`` where the command cannot be run or prints more than
    ``output_limit_bytes`` on one of its streams.
    """
    return await _run(argv, timeout_s, umask, output_limit_bytes, None)


async def run_with_progress(
    argv: Sequence[str], on_percent: Callable[[float], None], timeout_s: float = 86_400.0, umask: int = 0o077
) -> Completed:
    """Like ``run`` for ``qemu-img -p``: ``on_percent`` gets each new figure (0 to 100) as it is printed.

    The figures are not kept in ``stdout`` and do not count against its limit.
    """
    return await _run(argv, timeout_s, umask, OUTPUT_LIMIT_BYTES, _Percents(on_percent))


class _Percents:
    """Cuts progress figures out of a stream that arrives in arbitrary pieces."""

    def __init__(self, on_percent: Callable[[float], None]) -> None:
        self._on_percent = on_percent
        self._rest = b""
        self._last = -1.0

    def feed(self, chunk: bytes) -> bytes:
        """Report what the piece completes and return the bytes that cannot belong to a figure."""
        data = self._rest + chunk
        for match in _PERCENT.finditer(data):
            percent = min(100.0, float(match[1]))
            if percent != self._last:
                self._last = percent
                self._on_percent(percent)
        data = _PERCENT.sub(b"", data).replace(b"\r", b"")
        unfinished = _UNFINISHED.search(data)
        self._rest = unfinished[0] if unfinished else b""
        return data[: len(data) - len(self._rest)]


async def _run(argv: Sequence[str], timeout_s: float, umask: int, limit: int, percents: _Percents | None) -> Completed:
    transport, process = await _start(argv, umask)
    try:
        async with asyncio.timeout(timeout_s):
            stdout, stderr, returncode = await asyncio.gather(
                _collect(process.stdout, limit, argv, percents),
                _collect(process.stderr, limit, argv, None),
                process.wait(),
            )
    except TimeoutError as err:
        await _stop(process)
        raise ToolTimeout(command=_title(argv), timeout_s=timeout_s) from err
    except BaseException:
        await _stop(process)
        raise
    finally:
        transport.close()  # also pipes that a child which left the group still holds
        await asyncio.sleep(0)  # the loop closes them in its next round
    return Completed(stdout, stderr, returncode)


async def _start(argv: Sequence[str], umask: int) -> tuple[asyncio.SubprocessTransport, asyncio.subprocess.Process]:
    """Do what ``asyncio.create_subprocess_exec`` does, but keep hold of the transport, which alone can be closed."""
    loop = asyncio.get_running_loop()
    environment = {key: os.environ[key] for key in _ENVIRONMENT if key in os.environ}
    try:
        transport, protocol = await loop.subprocess_exec(
            lambda: asyncio.subprocess.SubprocessStreamProtocol(limit=_CHUNK_BYTES, loop=loop),
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**environment, "LC_ALL": "C"},
            cwd="/",
            umask=umask,
            start_new_session=True,
            close_fds=True,
        )
    except (OSError, ValueError) as err:  # ValueError: a zero byte in an argument
        raise ToolFailed(command=_title(argv), reason=getattr(err, "strerror", None) or str(err)) from err
    return transport, asyncio.subprocess.Process(transport, protocol, loop)


async def _collect(
    stream: asyncio.StreamReader | None, limit: int, argv: Sequence[str], percents: _Percents | None
) -> bytes:
    assert stream is not None  # noqa: S101 - both streams are pipes, see _start
    data = bytearray()
    while chunk := await stream.read(_CHUNK_BYTES):
        data += percents.feed(chunk) if percents else chunk
        if len(data) > limit:
            raise ToolFailed(command=_title(argv), reason=f"it printed more than {limit} bytes and was stopped")
    return bytes(data)


async def _stop(process: asyncio.subprocess.Process) -> None:
    """End the process group and reap its leader, also when the caller is cancelled a second time meanwhile.

    A process that the kernel cannot end (storage that does not answer) is given up on: the event loop reaps it when
    it ends, and the caller gets its answer now.
    """
    _signal(process, signal.SIGTERM)
    try:
        await _ended(process)
    finally:
        _signal(process, signal.SIGKILL)  # also what the leader left behind in its group
        await _ended(process)


async def _ended(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_GRACE_S):
            await process.wait()


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _title(argv: Sequence[str]) -> str:
    return " ".join(argv[:2])
