"""The suite forbids what production must not do: a call on the event loop that blocks it.

Python announces nearly all such calls as audit events (sys.audit). One that comes from our own packages, in a thread
whose event loop is running, fails the test that made it. Tests themselves may block: they own their loop.
"""

import asyncio
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any, SupportsIndex

FORBIDDEN = frozenset({"time.sleep", "sqlite3.connect", "socket.getaddrinfo", "subprocess.Popen", "os.system"})
ROOT = Path(__file__).parents[1]
OURS = (f"{ROOT}/agent/", f"{ROOT}/controller/")
#: asyncio starts processes through subprocess.Popen; it waits for them without blocking, so it may.
ALLOWED = f"{Path(asyncio.__file__).parent}/"


class BlockingCallError(AssertionError):
    """Our code blocked the event loop."""


def forbid() -> None:
    """Watch this process from now on; an audit hook cannot be taken away again."""
    sys.addaudithook(_hook)
    sleep = time.sleep

    def watched(seconds: float | SupportsIndex) -> None:
        _hook("time.sleep", ())
        sleep(seconds)

    time.sleep = watched  # Python announces sleeping from 3.13 on only


def _hook(event: str, _args: tuple[Any, ...]) -> None:
    if event in FORBIDDEN and asyncio._get_running_loop() is not None:
        caller = _caller(sys._getframe(1))
        if caller:
            raise BlockingCallError(f"{event} on the event loop, from {caller}")


def _caller(frame: FrameType | None) -> str | None:
    """Return our nearest line, or None when asyncio or nobody of ours made the call."""
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(ALLOWED):
            return None
        if name.startswith(OURS):
            return f"{name}:{frame.f_lineno}"
        frame = frame.f_back
    return None
