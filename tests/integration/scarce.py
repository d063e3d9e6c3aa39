"""Transactions on file systems that fill up or turn read-only in the middle: ``python -m tests.integration.scarce``.

Run it in a mount namespace of its own. Each of the agent's places (its state, the images, NVRAM, TPM state) is a
small tmpfs. For every point of a transaction one of them fails until the transaction has been tried; then it works
again, the same agent goes on by itself, and the host is looked over. Prints one JSON line with what happened.
"""

import argparse
import asyncio
import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import msgspec

from agent.transactions.manager import Manager
from agent.web.errors import Error
from agent.wire.transaction import ENDED
from tests.agent.transactions import story
from tests.agent.transactions.rig import VM, Rig
from tests.agent.transactions.test_kill import Prepared, build, check, points_of

PLACES = ("state", "images", "nvram", "swtpm")
FAULTS = ("full", "read-only")
#: More than a transaction on the rig ever needs, in each place.
ROOM = "64m"
#: The agent looks again once a second; here it is asked to.
LOOKS = 5
#: How long to wait for a deletion that cannot get on while the fault lasts.
PATIENCE_S = 1.0


def mount(path: Path, *options: str) -> None:
    """Mount a tmpfs, or change the one that is there."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", path], check=True)


@dataclass
class Places:
    """The file systems below one rig."""

    root: Path

    def make(self) -> None:
        for place in PLACES:
            (self.root / place).mkdir(parents=True)
            mount(self.root / place, f"size={ROOM}", "mode=0700" if place == "state" else "mode=0755")

    def fail(self, place: str, fault: str) -> None:
        if fault == "full":
            stat = os.statvfs(self.root / place)
            mount(self.root / place, "remount", f"size={(stat.f_blocks - stat.f_bfree) * stat.f_frsize}")
        else:  # laid over the place, since a file system with files open for writing cannot be made read-only
            subprocess.run(["mount", "--bind", self.root / place, self.root / place], check=True)
            subprocess.run(["mount", "-o", "remount,bind,ro", self.root / place], check=True)

    def mend(self, place: str, fault: str) -> None:
        if fault == "full":
            mount(self.root / place, "remount", f"size={ROOM}")
        else:
            subprocess.run(["umount", "-l", self.root / place], check=True)

    def take_away(self) -> None:
        for place in PLACES:
            subprocess.run(["umount", "-l", self.root / place], check=True)


@dataclass(frozen=True)
class Trial:
    """One fault at one point of a transaction, on a host of its own."""

    places: Places
    kind: str
    at: int
    name: str
    fault: tuple[str, str]

    async def run(self) -> str:
        """Return how the transaction ended; whatever it is, the host must be in one state or the other."""
        self.places.make()
        try:
            rig, prepared = await build(self.places.root, self.kind)
            old, before = rig.contents(), rig.files()
            outcome = await self.attempt(rig, prepared)
            check(rig, self.kind, f"{self.fault} {self.name}", old, before)
            if outcome != "committed" and self.kind != "revert":  # a revert's request is of the state before it
                await self.again(rig, prepared)
            return outcome
        finally:
            self.places.take_away()

    async def attempt(self, rig: Rig, prepared: Prepared) -> str:
        """Let the fault begin at its point, and end when the transaction has been tried."""
        heard = 0

        def checkpoint(_name: str) -> None:
            nonlocal heard
            if heard == self.at:
                self.places.fail(*self.fault)
            heard += 1

        manager = rig.manager(checkpoint)
        outcome = "committed"
        try:
            await asyncio.wait_for(story.run(manager, self.kind, *prepared), PATIENCE_S)
        except Error as err:
            outcome = err.code
        except TimeoutError:  # a deletion goes on by itself, and waits
            outcome = "waited"
        self.places.mend(*self.fault)
        await settle(manager)
        return outcome

    async def again(self, rig: Rig, prepared: Prepared) -> None:
        """What failed can simply be tried again, and then works."""
        manager = rig.manager()
        await story.run(manager, self.kind, *prepared)
        assert [(item.state, item.error) for item in manager.all()] == [("committed", None)]
        assert rig.guards.get(VM) is None


async def settle(manager: Manager) -> None:
    """Do what the controller and the agent's watch do next, with the fault gone."""
    for item in manager.all():
        if item.state == "prepared":
            await manager.abort(item.id)  # as the controller does when commit is refused
    for _ in range(LOOKS):
        await manager.tick()
    assert [item for item in manager.all() if item.state not in ENDED] == []


async def every(root: Path, kind: str, faults: list[tuple[str, str]], step: int) -> Counter[str]:
    """Try each fault at every ``step``-th point."""
    found: Counter[str] = Counter()
    points = await points_of(root / "points", kind)
    for number, name in list(enumerate(points))[::step]:
        if name.startswith("after") and number + 1 < len(points):
            continue  # the same moment as before the next one
        for fault in faults:
            places = Places(root / f"{number}-{'-'.join(fault)}")
            found[await Trial(places, kind, number, name, fault).run()] += 1
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("root", type=Path)
    parser.add_argument("kind")
    parser.add_argument("--step", type=int, default=1)
    args = parser.parse_args()
    faults = [(place, fault) for place in PLACES for fault in FAULTS]
    found = asyncio.run(every(args.root, args.kind, faults, args.step))
    sys.stdout.write(msgspec.json.encode(dict(found)).decode())


if __name__ == "__main__":
    main()
