"""The watch over blocking calls sees our code and leaves everybody else's alone."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from tests.blocking import ROOT, BlockingCallError


def as_if_in(path: Path, body: str) -> Any:
    """Return a function ``work()`` that looks as if it stood in that file."""
    names: dict[str, Any] = {}
    exec(compile(f"import socket, sqlite3, subprocess, time\ndef work():\n    {body}\n", str(path), "exec"), names)  # noqa: S102 - our own text
    return names["work"]


@pytest.mark.parametrize(
    "body",
    [
        "time.sleep(0)",
        "sqlite3.connect(':memory:').close()",
        "subprocess.run(['true'])",
        "socket.getaddrinfo('::1', 1)",
    ],
)
async def test_a_blocking_call_of_ours_on_the_loop_fails(body: str) -> None:
    work = as_if_in(ROOT / "agent" / "somewhere.py", body)
    with pytest.raises(BlockingCallError, match=r"agent/somewhere\.py:3"):
        work()
    await asyncio.to_thread(work)


async def test_tests_may_block_and_asyncio_may_start_processes() -> None:
    time.sleep(0)  # noqa: ASYNC251 - that is the point
    as_if_in(ROOT / "tests" / "somewhere.py", "time.sleep(0)")()
    process = await asyncio.create_subprocess_exec("true")
    assert await process.wait() == 0


def test_without_a_loop_our_code_may_block() -> None:
    as_if_in(ROOT / "controller" / "somewhere.py", "time.sleep(0)")()
