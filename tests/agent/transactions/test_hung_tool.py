"""A qemu-img that hangs: ended at its deadline with its children, and the transaction undone."""

import asyncio
import os
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import pytest

from agent.errors import ToolTimeout
from agent.host import qemu_img
from agent.transactions.manager import Manager
from tests.agent.transactions import story
from tests.agent.transactions.rig import Rig

#: A time that no other process sleeps for.
ASLEEP = f"600.{os.getpid()}"


@pytest.mark.case("F6")
async def test_qemu_img_that_hangs_is_ended_with_its_children_and_the_snapshot_undone(
    rig: Rig, manager: Manager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, files = rig.contents(), rig.files()
    tool = tmp_path / "bin" / "qemu-img"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\nsleep {ASLEEP} &\nwait\n")
    tool.chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{tool.parent}:/usr/bin:/bin")
        patch.setattr(qemu_img, "QUICK_S", 2.0)
        work = asyncio.create_task(manager.put(uuid4(), story.snapshot_request()))
        started: set[str] = set()
        while not work.done():
            started |= await asyncio.to_thread(asleep)
        with pytest.raises(ToolTimeout):
            await work
    assert len(started) == len(rig.targets)
    assert asleep() == set()
    assert rig.guards.all() == {}
    assert rig.contents() == seen
    assert rig.files() - files == {"bin/qemu-img"} - files
    assert (await story.snapshot(manager))[0].state == "committed"


def asleep() -> set[str]:
    """Return the children of the hanging tools that are alive; those can write nothing that would tell of them."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(FileNotFoundError, ProcessLookupError):
            if path.read_bytes() == f"sleep\0{ASLEEP}\0".encode():
                found.add(path.parent.name)
    return found
