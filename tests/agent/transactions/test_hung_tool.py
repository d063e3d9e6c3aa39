"""A qemu-img that hangs: ended at its deadline with its children, and the transaction undone."""

from pathlib import Path
from uuid import uuid4

import pytest

from agent.errors import ToolTimeout
from agent.host import qemu_img
from agent.transactions.manager import Manager
from tests.agent.transactions import story
from tests.agent.transactions.rig import Rig


@pytest.mark.case("F6")
async def test_qemu_img_that_hangs_is_ended_with_its_children_and_the_snapshot_undone(
    rig: Rig, manager: Manager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, files = rig.contents(), rig.files()
    tool, pids = tmp_path / "bin" / "qemu-img", tmp_path / "pids"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\nsleep 600 &\necho $$ $! >> {pids}\nwait\n")
    tool.chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{tool.parent}:/usr/bin:/bin")
        patch.setattr(qemu_img, "QUICK_S", 0.5)
        with pytest.raises(ToolTimeout):
            await manager.put(uuid4(), story.snapshot_request())
    started = pids.read_text().split()
    assert len(started) == 2 * len(rig.targets)
    assert not [pid for pid in started if _runs(pid)]
    assert rig.guards.all() == {}
    assert rig.contents() == seen
    assert rig.files() - files == {"bin/qemu-img", "pids"} - files
    assert (await story.snapshot(manager))[0].state == "committed"


def _runs(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
