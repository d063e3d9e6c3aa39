"""F5 on a real host: memory runs out in the agent or the controller, in the middle of the work.

A daemon may die of it, which is a crash, or go on. In both cases the operation ends with a reason or is done, nothing
is lost and nothing left behind, and a daemon that lives on works as before.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from http.client import HTTPException

import pytest

from tests.e2e.conftest import change_at_rest, seen
from tests.e2e.test_clocks_real import MOMENTS
from tests.lab.daemons import Daemon
from tests.lab.errors import LabError
from tests.lab.mortal_fleet import MortalFleet
from tests.lab.preloaded import Memory
from tests.lab.waiting import wait_until
from tests.visits import Struck

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(3_000)]

#: How many allocations fail: one, some, or all until it is over.
COUNTS = (1, 20, 1_000_000_000)
#: So many allocations from the point on; a small step makes some thousands.
AFTER = (0, 71, 1_013, 7_019)
PATIENCE_S = 4.0


class Short:
    """A fleet of which one daemon runs out of memory."""

    def __init__(self, fleet: MortalFleet, daemon: Daemon, memory: Memory) -> None:
        self.fleet, self.daemon, self.memory = fleet, daemon, memory
        self.died = self.lived = self.number = 0
        self.kept = str(fleet.json("snapshot", "create", fleet.id, f"kept by {daemon.name}")["uuid"])
        self.frozen = seen(fleet.guest)

    def operations(self) -> set[str]:
        return {one["uuid"] for one in self.fleet.controller.get("/v1/operations?limit=1000")["items"]}

    def ask(self, kind: str, target: str) -> None:
        """Ask; whoever runs out of memory may not answer."""
        ways = {
            "create": ("POST", f"/v1/vms/{self.fleet.id}/snapshots", {"name": f"short {self.number}"}),
            "revert": ("POST", f"/v1/snapshots/{self.kept}/revert", {"undo_point": False}),
            "delete": ("DELETE", f"/v1/snapshots/{target}", None),
        }
        with suppress(OSError, HTTPException, LabError):
            self.fleet.controller.ask(*ways[kind], timeout_s=PATIENCE_S)

    def strike(self, kind: str, point: str, after: int, count: int) -> None:
        """Do one thing, with memory running out on the way; then look over all."""
        fleet, self.number = self.fleet, self.number + 1
        change_at_rest(fleet.guest, f"{self.number:06}".encode())
        target = "" if kind != "delete" else fleet.json("snapshot", "create", fleet.id, f"t{self.number}")["uuid"]
        before, known = seen(fleet.guest), self.operations()
        self.memory.fail_at(point, after, count)
        self.ask(kind, target)
        with suppress(LabError):
            wait_until("the end of it", self.is_over, PATIENCE_S, every_s=0.1)
        failed, died = self.memory.suffice(), self.died
        try:
            wait_until("the end of it and of what it was asked before", self.has_ended, 60, every_s=0.2)
        except LabError as err:
            raise LabError(f"{kind}, {point} + {after}, {count}, {failed}: {self.daemon.log()[-9000:]}") from err
        self.lived += failed > 0 and died == self.died
        ended = [one for one in fleet.ended() if one["uuid"] not in known]
        done = bool(ended) and ended[0]["state"] == "succeeded"
        where = f"{kind}, {point} + {after}, {count} fail, {failed} did: {ended}"
        assert seen(fleet.guest) == (self.frozen if kind == "revert" and done else before), where
        guards = fleet.agent.state_dir / "guards"
        wait_until(f"no guard after {where}", lambda: not list(guards.iterdir()), 30, every_s=0.1)
        fleet.sound()

    def is_over(self) -> bool:
        process = self.daemon.process
        assert process is not None
        return not process.alive() or (self.memory.was_passed and self.memory.number(1) <= 0 < self.memory.number(2))

    def has_ended(self) -> bool:
        """Whether no operation is open; a daemon that is dead is started again, as systemd does."""
        process = self.daemon.process
        assert process is not None
        if not process.alive():
            self.died += 1
            self.daemon.start()
        with suppress(OSError, HTTPException, LabError):
            items = self.fleet.controller.get("/v1/operations")["items"]
            return all(one["state"] in {"succeeded", "failed", "cancelled"} for one in items)
        return False


@pytest.fixture(params=["agent", "controller"])
def short(fleet: MortalFleet, request: pytest.FixtureRequest) -> Iterator[Short]:
    """The fleet, one daemon of which takes each object from the C library, where a test lets it fail."""
    fleet.restart_controller()
    daemon: Daemon = fleet.agent if request.param == "agent" else fleet.controller
    believed, memory = daemon.machine, Memory(fleet.controller.root, daemon.name)
    fleet.agent.dies_at(None)
    daemon.machine = (*believed, memory)
    daemon.env = {**daemon.env, "PYTHONMALLOC": "malloc"}
    daemon.restart()
    wait_until("the guest at the controller", fleet.knows_guest, 60, every_s=0.1)
    yield Short(fleet, daemon, memory)
    memory.suffice()
    daemon.machine = believed
    fleet.agent.dies_at(None)
    fleet.restart_controller()
    fleet.agent.restart()


@pytest.mark.case("F5")
def test_memory_that_runs_out_loses_nothing_and_leaves_nothing(
    short: Short, struck: Struck, record_property: Callable[[str, object], None]
) -> None:
    whose = "agent" if short.daemon is short.fleet.agent else "controller"
    for kind, moments in MOMENTS.items():
        for moment in moments:
            if moment[0] != whose:
                continue
            for after in AFTER:
                for count in COUNTS:
                    short.strike(kind, moment[1], after, count)
                    struck(1)
            short.fleet.follows(within_s=40)  # what runs beside the operations goes on too
    record_property("figure", f"{whose} out of memory: it died {short.died} times, lived on {short.lived} times")
