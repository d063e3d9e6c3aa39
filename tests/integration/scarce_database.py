"""Operations on a database whose disk is full or fails: ``python -m tests.integration.scarce_database``.

Run it in a mount namespace of its own, with the environment of ``faulty``. The controller's database is on a small
tmpfs. At each commit of an operation the disk is full, or every write of the database fails, for a moment; then it is
well again, the same controller goes on by itself, and records and host are compared. Prints one JSON line with how the
operations ended.
"""

import argparse
import asyncio
import logging
import sys
import threading
from collections import Counter
from pathlib import Path

import msgspec

from controller.models import database
from tests.controller.databases import SqliteFiles
from tests.controller.operations.test_faults import attempt, good_run, mended
from tests.controller.scenarios import SCENARIOS
from tests.controller.strike import Stage, Striker, staged
from tests.integration.faulty import Page
from tests.integration.scarce import FAILING, CallFault, Fault, Scarcity, mount

#: For how long it lasts: the engine of these tests tries to record an end every millisecond.
LASTS_S = 0.05
PLACE = "database"


class Clumsy(Striker):
    """Where another strikes at once, this one lets a fault of the disk begin, which ends by itself.

    ``bit``: whether the commit failed that it struck.
    """

    def __init__(self, root: Path, fault: Fault) -> None:
        super().__init__()
        self.root, self.fault = root, fault
        self.over = threading.Event()
        self.bit = True
        self._unharmed: str | None = None  # what is heard next if the commit goes through

    def __call__(self, point: str) -> None:
        self.bit &= point != self._unharmed
        self._unharmed = None
        super().__call__(point)

    def _strike(self, name: str, number: int) -> None:
        del number
        self._unharmed = name.replace("before", "after", 1)
        self.fault.begin(self.root)
        threading.Timer(LASTS_S, self._end).start()

    def _end(self) -> None:
        self.fault.end(self.root)
        self.over.set()


async def trial(stage: Stage, kind: str, point: str, root: Path, fault: Fault) -> str:
    """Return how the operation ended, or that the caller was refused; records and host agree in the end."""
    scenario, clumsy = SCENARIOS[kind], Clumsy(root, fault)
    stage.striker = clumsy
    async with stage.world() as one:
        await one.db.run(lambda: database.execute_sql("PRAGMA synchronous = full"))
        clumsy.begin(point)
        operation = await attempt(one, scenario)
        assert clumsy.struck, point
        await asyncio.to_thread(clumsy.over.wait, 10)
        await mended(one, scenario)
        assert (await one.sync()).state == "succeeded"
        await one.check()
    if not clumsy.bit:
        return "unharmed"
    if operation is None:
        return "refused"
    return operation.state if operation.error is None else operation.error.code


async def every(root: Path, kind: str, step: int) -> Counter[str]:
    """Let each fault begin at every ``step``-th commit."""
    found: Counter[str] = Counter()
    (root / PLACE).mkdir(parents=True)
    mount(root / PLACE, "size=64m")
    faults: list[Fault] = [Scarcity(PLACE, "full"), CallFault(Page.found(), FAILING["io-errors"], 0, lasting=True)]
    async with staged(SqliteFiles(root / PLACE), SCENARIOS[kind].begin) as stage:
        points = [point for point in (await good_run(stage, SCENARIOS[kind]))[0] if point.startswith("before database")]
        pairs = [(point, fault) for point in points for fault in faults]
        for point, fault in pairs[::step]:
            found[await trial(stage, kind, point, root, fault)] += 1
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("root", type=Path)
    parser.add_argument("kind")
    parser.add_argument("--step", type=int, default=1)
    args = parser.parse_args()
    logging.disable()  # what fails again and again is told again and again
    found = asyncio.run(every(args.root, args.kind, args.step))
    sys.stdout.write(msgspec.json.encode(dict(found)).decode())


if __name__ == "__main__":
    main()
