"""Transactions on storage that fills up, turns read-only or fails: ``python -m tests.integration.scarce``.

Run it in a mount namespace of its own. Each of the agent's places (its state, the images, NVRAM, TPM state) is a
small tmpfs. For every point of a transaction one of them fails until the transaction has been tried; or, with
``--failing``, one call of a group does, and those after it too or not. Then all works again, the same
agent goes on by itself, the host is looked over, and an agent that starts anew must find nothing to do. Prints one
JSON line with how the transactions ended.
"""

import argparse
import asyncio
import errno
import os
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from uuid import UUID

import msgspec

from agent.host.threads import started_pool
from agent.transactions.manager import Manager
from agent.web.checkpoint import Checkpoint, no_checkpoint
from agent.web.errors import Error
from agent.wire.transaction import ENDED, DeleteRequest
from tests.agent.transactions import story
from tests.agent.transactions.rig import VM, Rig, raw_sha256
from tests.agent.transactions.test_kill import Prepared, build, check, points_of
from tests.integration.faulty import Calls, Page

PLACES = ("state", "images", "nvram", "swtpm")
FAULTS = ("full", "read-only")


@dataclass(frozen=True)
class Failing:
    """A group of calls that fail, with what they fail; by ``error`` 0 their process is killed."""

    calls: Calls
    error: int
    program: str = ""


FAILING = {
    "io-errors": Failing(Calls.CHANGES, errno.EIO),
    "descriptors": Failing(Calls.DESCRIPTORS, errno.EMFILE),
    "processes": Failing(Calls.PROCESSES, errno.EAGAIN),
    "killed-tool": Failing(Calls.CHANGES, 0, "qemu-img"),
}
#: More than a transaction on the rig ever needs, in each place.
ROOM = "64m"
#: The agent looks again once a second; here it is asked to.
LOOKS = 5
#: How long to wait for a deletion that cannot get on while the fault lasts.
PATIENCE_S = 1.0


def mount(path: Path, *options: str) -> None:
    """Mount a tmpfs, or change the one that is there."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", path], check=True)


@contextmanager
def places(root: Path) -> Iterator[None]:
    """Give each place a file system of its own."""
    for place in PLACES:
        (root / place).mkdir(parents=True)
        mount(root / place, f"size={ROOM}", "mode=0700" if place == "state" else "mode=0755")
    try:
        yield
    finally:
        for place in PLACES:
            subprocess.run(["umount", "-l", root / place], check=True)


class Fault(Protocol):
    """What goes wrong; where it is, is the trial's affair."""

    def begin(self, root: Path) -> None: ...

    def end(self, root: Path) -> None: ...


@dataclass(frozen=True)
class Scarcity:
    """One place is full or read-only."""

    place: str
    fault: str

    def begin(self, root: Path) -> None:
        path = root / self.place
        if self.fault == "full":
            stat = os.statvfs(path)
            used = (stat.f_blocks - stat.f_bfree) * stat.f_frsize
            mount(path, "remount", f"size={max(used, 1)}")  # none at all would mean no limit
        else:  # laid over the place, since a file system with files open for writing cannot be made read-only
            subprocess.run(["mount", "--bind", path, path], check=True)
            subprocess.run(["mount", "-o", "remount,bind,ro", path], check=True)

    def end(self, root: Path) -> None:
        if self.fault == "full":
            mount(root / self.place, "remount", f"size={ROOM}")
        else:
            subprocess.run(["umount", "-l", root / self.place], check=True)


@dataclass(frozen=True)
class CallFault:
    """Call number ``at`` of a group fails, and the later ones too where it is ``lasting``."""

    page: Page
    failing: Failing
    at: int
    lasting: bool

    def begin(self, root: Path) -> None:
        failing = self.failing
        self.page.arm(
            root, self.at, lasting=self.lasting, calls=failing.calls, error=failing.error, program=failing.program
        )

    def end(self, root: Path) -> None:
        del root
        self.page.disarm()

    def __str__(self) -> str:
        return f"call {self.at}{' and later' if self.lasting else ''}: {self.page.failed}"


@dataclass(frozen=True)
class Trial:
    """One fault from one point of a transaction on, on a host of its own."""

    root: Path
    kind: str
    at: int
    fault: Fault

    async def run(self) -> str:
        """Return how the transaction ended; whatever it is, the host must be in one state or the other."""
        with places(self.root):
            rig, prepared = await build(self.root, self.kind)
            return await self._judged(rig, prepared)

    async def _judged(self, rig: Rig, prepared: Prepared) -> str:
        old, before = rig.contents(), rig.files()
        kept = kept_by(self.kind, prepared)
        earlier = endings(await started(rig))
        outcome, manager = await self._attempt(rig, prepared)
        check(rig, self.kind, f"{self.at} {self.fault}", old, before)
        assert kept == kept_by(self.kind, prepared), f"{self.at} {self.fault}: another snapshot"
        check_expected(rig)
        ended = endings(manager)
        anew = endings(await started(rig))
        # What could neither be begun nor taken out of the journal again is undone by who finds it there.
        told = [end for end in anew if end in ended or end[2] != "agent-restarted"]
        assert told == ended, f"{self.at} {self.fault}: {ended} became {anew}"
        check(rig, self.kind, f"{self.at} {self.fault}, started anew", old, before)
        new = [end[1:] for end in ended if end not in earlier]
        done = new == [("committed", None)]
        if not done and self.kind != "revert":  # a revert's request is of the state before it
            await again(rig, self.kind, prepared)
        # A deletion is not undone: what kept it from its end is told in it, unless its commit was refused.
        told_in_it = new[0][1] if new and self.kind.startswith("delete") else None
        return outcome if told_in_it in {None, "aborted"} else told_in_it

    async def _attempt(self, rig: Rig, prepared: Prepared) -> tuple[str, Manager]:
        """Let the fault begin at its point, and end when the transaction has been tried; return what was told."""
        heard = 0

        def checkpoint(_name: str) -> None:
            nonlocal heard
            if heard == self.at:
                self.fault.begin(self.root)
            heard += 1

        manager = await started(rig, checkpoint)
        outcome = "committed"
        try:
            await asyncio.wait_for(story.run(manager, self.kind, *prepared), PATIENCE_S)
        except Error as err:
            outcome = err.code
        except TimeoutError:  # a deletion goes on by itself, and waits
            outcome = "waited"
        self.fault.end(self.root)
        await settle(manager)
        return outcome, manager


async def started(rig: Rig, checkpoint: Checkpoint = no_checkpoint) -> Manager:
    """Start an agent's heart, which reads the journal."""
    manager = rig.manager(checkpoint)
    await manager.recover()
    return manager


def endings(manager: Manager) -> list[tuple[UUID, str, str | None]]:
    """Say how each transaction ended, with the code of its error."""
    return [(item.id, item.state, None if item.error is None else item.error.code) for item in manager.all()]


async def settle(manager: Manager) -> None:
    """Do what the controller and the agent's watch do next, with the fault gone."""
    for _ in range(LOOKS):
        while any(manager.running(item.id).lock.locked() for item in manager.all()):
            await asyncio.sleep(0.01)  # a deletion is still at it, or a machine that is busy was given up on
        for item in manager.all():
            if item.state == "prepared":
                await manager.abort(item.id)  # as the controller does when commit is refused
        await manager.tick()
    assert [item for item in manager.all() if item.state not in ENDED] == []


async def again(rig: Rig, kind: str, prepared: Prepared) -> None:
    """What failed can simply be tried again, and then works."""
    manager = rig.manager()
    await story.run(manager, kind, *prepared)
    (item,) = manager.all()
    assert item.error is None or kind == "export"  # which ends by being let go
    assert rig.guards.get(VM) is None


def kept_by(kind: str, prepared: Prepared) -> dict[str, str]:
    """Hash what the snapshots read that a deletion is not about."""
    if not kind.startswith("delete"):
        return {}
    asked = msgspec.json.decode(prepared[0], type=DeleteRequest)
    return {child: raw_sha256(Path(child)) for volume in asked.volumes for child in volume.children}


def check_expected(rig: Rig) -> None:
    """Hold that the hook knows of the host files of each domain that was defined (guarantee 3)."""
    made = [path.stem for path in rig.hypervisor.directory.glob("*.xml") if path.stem != str(VM)]
    assert [vm for vm in made if not (rig.state_dir / "expected" / vm).exists()] == []


async def scarcities(root: Path, kind: str, step: int) -> AsyncIterator[Trial]:
    """Yield every ``step``-th pair of a point and a fault."""
    points = await points_of(root / "points", kind)
    # Right after a point is the same moment as right before the next one.
    told = [n for n, name in enumerate(points) if name.startswith("before") or n + 1 == len(points)]
    pairs = [(n, Scarcity(place, fault)) for n in told for place in PLACES for fault in FAULTS]
    for n, fault in pairs[::step]:
        yield Trial(root / f"{n}-{fault.place}-{fault.fault}", kind, n, fault)


async def failing_calls(root: Path, kind: str, step: int, failing: Failing) -> AsyncIterator[Trial]:
    """Yield every ``step``-th call, failing alone and with all later ones in turn."""
    page = Page.found()
    rig, prepared = await build(root / "counted", kind)
    unharmed = CallFault(page, failing, -1, lasting=False)
    unharmed.begin(rig.root)
    await story.run(rig.manager(), kind, *prepared)
    for n in range(0, 2 * page.disarm(), step):
        yield Trial(root / str(n), kind, 0, CallFault(page, failing, n // 2, bool(n % 2)))


async def tried(trials: AsyncIterator[Trial]) -> Counter[str]:
    found: Counter[str] = Counter()
    asyncio.get_running_loop().set_default_executor(started_pool())  # as an agent that serves
    async for trial in trials:
        found[await trial.run()] += 1
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("root", type=Path)
    parser.add_argument("kind")
    parser.add_argument("--step", type=int, default=1)
    parser.add_argument("--failing", choices=FAILING)
    args = parser.parse_args()
    where = (args.root, args.kind, args.step)
    trials = failing_calls(*where, FAILING[args.failing]) if args.failing else scarcities(*where)
    found = asyncio.run(tried(trials))
    sys.stdout.write(msgspec.json.encode(dict(found)).decode())


if __name__ == "__main__":
    main()
