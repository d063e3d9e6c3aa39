"""Outside commands: an argument list in, what it printed out, and never a process left behind.

Each command runs in a session of its own with nothing on stdin, a small fixed environment (``LC_ALL=C``, so that
messages can be read) and no inherited descriptors. When its time is up, or the caller is cancelled, the whole
process group gets SIGTERM, two seconds later SIGKILL, and is reaped before the call returns. With ``Bounds`` it is held
to the files, memory and powers that it needs, and dumps no core.
"""

import asyncio
import contextlib
import errno
import math
import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO

from agent.errors import ToolFailed, ToolTimeout
from agent.host import confine
from agent.host.confine import Bounds

OUTPUT_LIMIT_BYTES = 4 << 20  # of each stream: `qemu-img map` of a large disk is the longest we know, below 1 MiB
_GRACE_S = 2.0
_CHUNK_BYTES = 64 << 10
_PERCENT = re.compile(rb"\(\s*(\d+(?:\.\d+)?)/100%\)")  # qemu-img -p, util/qemu-progress.c
_UNFINISHED = re.compile(rb"\([\d ./]{0,16}%?\Z")
_ENVIRONMENT = ("PATH", "HOME", "TMPDIR")
#: One heap for all threads of a command (mallopt(3)): each of its own would reserve 64 MiB of what it is allowed.
_FIXED = {"LC_ALL": "C", "MALLOC_ARENA_MAX": "1"}


@dataclass(frozen=True)
class Completed:
    """How a command ended. ``returncode`` is negative for a signal, as in ``subprocess``."""

    stdout: bytes
    stderr: bytes
    returncode: int

    @property
    def error_text(self) -> str:
        """What it wrote on stderr, as one line of at most 500 characters, and what ended it if not itself."""
        told = " ".join(self.stderr.decode(errors="replace").split())[:500]
        if self.returncode >= 0:
            return told or f"exit status {self.returncode}"
        ended = f"ended by {_signal_name(-self.returncode)}"
        if self.returncode == -signal.SIGKILL:
            ended += ", as the kernel does where memory is short"
        return f"{told} ({ended})" if told else ended


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"  # a real-time one


async def run(
    argv: Sequence[str],
    timeout_s: float = 60.0,
    umask: int = 0o077,
    output_limit_bytes: int = OUTPUT_LIMIT_BYTES,
    bounds: Bounds | None = None,
) -> Completed:
    """Run a command to its end. A non-zero exit is for the caller to judge.

    Raises ``ToolTimeout`` after ``timeout_s``, and ``ToolFailed`` where the command cannot be run or prints more than
    ``output_limit_bytes`` on one of its streams.
    """
    return await _run(argv, _Start(umask, timeout_s, bounds), output_limit_bytes, None)


async def run_with_progress(
    argv: Sequence[str],
    on_percent: Callable[[float], None],
    timeout_s: float = 86_400.0,
    umask: int = 0o077,
    bounds: Bounds | None = None,
) -> Completed:
    """Like ``run`` for ``qemu-img -p``: ``on_percent`` gets each new figure (0 to 100) as it is printed.

    The figures are not kept in ``stdout`` and do not count against its limit.
    """
    return await _run(argv, _Start(umask, timeout_s, bounds), OUTPUT_LIMIT_BYTES, _Percents(on_percent))


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


@dataclass(frozen=True)
class _Start:
    """How a command is started."""

    umask: int
    timeout_s: float
    bounds: Bounds | None

    def __call__(self, argv: Sequence[str]) -> "subprocess.Popen[bytes]":
        """Start it from a thread that ends with the call, since what confines the command confines the thread.

        The caller waits for fork and exec. Raises ``OSError``, ``ValueError`` (a zero byte in an argument).
        """
        result: list[subprocess.Popen[bytes] | BaseException] = []

        def start() -> None:
            try:
                if self.bounds is not None:
                    confine.this_thread(argv[0], self.bounds)
                result.append(self._popen(argv))
            except (OSError, ValueError) as err:
                result.append(err)

        thread = threading.Thread(target=start, name=f"start {argv[0]}")
        try:
            thread.start()
        except RuntimeError as err:  # neither Python nor the caller has any other word for it
            raise OSError(errno.EAGAIN, "no thread can be started for it") from err
        thread.join()
        (started,) = result
        if isinstance(started, BaseException):
            raise started
        return started

    def _limits(self, command: str, bounds: Bounds) -> list[str]:
        """Return prlimit(1) with what it sets before it becomes the command: nobody else can, between fork and exec."""
        if shutil.which(command) is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), command)
        cpu_s = 2 * math.ceil(self.timeout_s)  # should the agent die, it ends all the same
        limits = (f"--as={bounds.memory_bytes}", f"--fsize={bounds.file_bytes}", f"--cpu={cpu_s}", "--core=0")
        return ["prlimit", *limits, "--"]

    def _popen(self, argv: Sequence[str]) -> "subprocess.Popen[bytes]":
        environment = {key: os.environ[key] for key in _ENVIRONMENT if key in os.environ}
        return subprocess.Popen(  # noqa: S603 - an argument list of ours, never a shell
            argv if self.bounds is None else [*self._limits(argv[0], self.bounds), *argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env={**environment, **_FIXED},
            cwd="/",
            umask=self.umask,
            start_new_session=True,
        )


class _Child:
    """A command that runs, as the event loop sees it: its end by a descriptor of the process, its output by pipes."""

    def __init__(self, popen: "subprocess.Popen[bytes]") -> None:
        self._popen = popen
        self._pipes: list[asyncio.ReadTransport] = []
        self._ended = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._descriptor = os.pidfd_open(popen.pid)
        self._loop.add_reader(self._descriptor, self._reap)

    @classmethod
    def of(cls, popen: "subprocess.Popen[bytes]", argv: Sequence[str]) -> "_Child":
        """Follow a process that was just started; without a descriptor left it is ended, and ToolFailed raised."""
        try:
            return cls(popen)
        except OSError as err:
            os.killpg(popen.pid, signal.SIGKILL)
            popen.communicate()
            raise ToolFailed(command=_title(argv), reason=err.strerror or str(err)) from err

    def _reap(self) -> None:
        self._loop.remove_reader(self._descriptor)
        self._popen.wait()  # it has ended: this does not block
        self._ended.set()

    async def open(self, pipe: IO[bytes] | None) -> asyncio.StreamReader:
        """Read one of its streams through the loop."""
        reader = asyncio.StreamReader(limit=_CHUNK_BYTES)
        transport, _ = await self._loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
        self._pipes.append(transport)
        return reader

    async def wait(self) -> int:
        """Return the exit status once it has ended."""
        await self._ended.wait()
        return int(self._popen.returncode)

    def signal(self, number: signal.Signals) -> None:
        """Signal the whole group, also what its leader left behind in it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._popen.pid, number)

    def close(self) -> None:
        """Let go of its pipes, also where a child of it that left the group still holds them."""
        for pipe in self._pipes:
            pipe.close()
        for stream in (self._popen.stdout, self._popen.stderr):
            if stream is not None:
                stream.close()
        self._loop.remove_reader(self._descriptor)
        os.close(self._descriptor)


async def _run(argv: Sequence[str], start: _Start, limit: int, percents: _Percents | None) -> Completed:
    try:
        popen = start(argv)
    except (OSError, ValueError) as err:
        raise ToolFailed(command=_title(argv), reason=getattr(err, "strerror", None) or str(err)) from err
    child = _Child.of(popen, argv)
    try:
        async with asyncio.timeout(start.timeout_s):
            stdout, stderr = await child.open(popen.stdout), await child.open(popen.stderr)
            out, err_, returncode = await asyncio.gather(
                _collect(stdout, limit, argv, percents), _collect(stderr, limit, argv, None), child.wait()
            )
    except TimeoutError as err:
        await _stop(child)
        raise ToolTimeout(command=_title(argv), timeout_s=start.timeout_s) from err
    except BaseException:
        await _stop(child)
        raise
    finally:
        child.close()
        await asyncio.sleep(0)  # the loop closes the pipes in its next round
    return Completed(out, err_, returncode)


async def _collect(stream: asyncio.StreamReader, limit: int, argv: Sequence[str], percents: _Percents | None) -> bytes:
    data = bytearray()
    while chunk := await stream.read(_CHUNK_BYTES):
        data += percents.feed(chunk) if percents else chunk
        if len(data) > limit:
            raise ToolFailed(command=_title(argv), reason=f"it printed more than {limit} bytes and was stopped")
    return bytes(data)


async def _stop(child: _Child) -> None:
    """End the process group and reap its leader, also when the caller is cancelled a second time meanwhile.

    A process that the kernel cannot end (storage that does not answer) is given up on: Python reaps it when another
    command is started after its end, and the caller gets its answer now.
    """
    child.signal(signal.SIGTERM)
    try:
        await _ended(child)
    finally:
        child.signal(signal.SIGKILL)  # also what the leader left behind in its group
        await _ended(child)


async def _ended(child: _Child) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_GRACE_S):
            await child.wait()


def _title(argv: Sequence[str]) -> str:
    return " ".join(argv[:2])
