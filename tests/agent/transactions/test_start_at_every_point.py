"""A start that comes at any moment of any transaction: the hook refuses it, or it came first and the work is refused.

At every point that a transaction passes, in its own thread of control, the real hook is called as libvirt calls it.
"""

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import UUID

import msgspec
import pytest

from agent.errors import DomainStarting
from tests.agent.transactions import story
from tests.agent.transactions.rig import VM, Rig
from tests.agent.transactions.test_kill import Prepared, build
from tests.agent.transactions.test_place import emptied
from tests.hooks.hook import ENVIRONMENT, HOOK

#: With the domain that must not start meanwhile. An export only reads, and keeps nobody from starting.
KINDS = {
    **dict.fromkeys(("snapshot", "revert", "restore", "delete", "delete-down", "place", "depart"), VM),
    **dict.fromkeys(("clone", "full-clone", "import"), story.CLONE),
}


async def begun(root: Path, kind: str) -> tuple[Rig, Prepared]:
    """Bring a host to the moment before the transaction, and give the request."""
    if kind not in {"place", "depart"}:
        return await build(root, kind)
    rig = Rig(root).build()
    if kind == "depart":
        return rig, (b"", {})
    request, host_files = await emptied(rig)
    return rig, (msgspec.json.encode(request), host_files)


class Starter:
    """A checkpoint that tries a start at each point, and notes where the hook let it through.

    Such a start is given up again, but for one that was let through at the point ``goes_on``.
    """

    def __init__(self, rig: Rig, vm: UUID, goes_on: str = "") -> None:
        self.rig, self.vm, self.goes_on = rig, vm, goes_on
        self.let_through: list[str] = []
        self.refused: list[str] = []
        self._thread = ThreadPoolExecutor(1)  # libvirt is another process: the agent's loop does not run the hook
        self.hook = rig.root / "hooks" / "50-coldframe"
        self.hook.parent.mkdir()
        shutil.copy(HOOK, self.hook)
        self.hook.with_name("50-coldframe.conf").write_text(f"state_dir={rig.state_dir}\n")

    def call(self, operation: str) -> "subprocess.CompletedProcess[bytes]":
        """Call the hook as libvirt does at one moment of a start."""
        xml = f"<domain type='kvm'>\n  <name>win11</name>\n  <uuid>{self.vm}</uuid>\n</domain>\n"
        end = "end" if operation in {"stopped", "release"} else "begin"
        argv = [str(self.hook), "win11", operation, end, "-"]
        return subprocess.run(
            argv, input=xml.encode(), env=ENVIRONMENT, cwd="/", capture_output=True, timeout=30, check=False
        )

    def __call__(self, point: str) -> None:
        if self.goes_on not in self.let_through:  # libvirt begins no second start beside one that goes on
            self._thread.submit(self._try, point).result()

    def _try(self, point: str) -> None:
        done = self.call("prepare")
        if done.returncode == 0:
            self.let_through.append(point)
        else:
            assert b"transaction: " in done.stderr, done.stderr
            self.refused.append(point)
        for operation in ("stopped", "release") if point != self.goes_on else ():
            self.call(operation)


@pytest.mark.case("S8")
@pytest.mark.parametrize("kind", KINDS)
async def test_no_start_gets_past_the_hook_between_guard_and_end(tmp_path: Path, kind: str) -> None:
    rig, prepared = await begun(tmp_path / "host", kind)
    starter = Starter(rig, KINDS[kind])
    await story.run(rig.manager(starter), kind, *prepared)
    outside = {"before journal begin", "after journal begin", "before raise-guard", "after drop-guard"}
    assert {"before raise-guard", "after drop-guard"} <= set(starter.let_through) <= outside
    assert {"after raise-guard", "after journal commit", "before journal ended", "before drop-guard"} <= set(
        starter.refused
    )


@pytest.mark.case("S7")
@pytest.mark.parametrize("kind", KINDS)
async def test_work_is_refused_while_a_start_that_came_first_goes_on(tmp_path: Path, kind: str) -> None:
    rig, prepared = await begun(tmp_path / "host", kind)
    before = rig.files()
    starter = Starter(rig, KINDS[kind], goes_on="before raise-guard")
    with pytest.raises(DomainStarting):
        await story.run(rig.manager(starter), kind, *prepared)
    mark = f"state/starting/{KINDS[kind]}"
    assert {name for name in rig.files() - before if not name.startswith("hooks/")} == {mark}
    assert before <= rig.files()
