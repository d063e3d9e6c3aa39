"""F1 and F2 of a move between two real hosts on one storage: controller and agents are killed at every point of it.

After each death the guest is defined somewhere, with its own NVRAM and TPM state; placed again where it was to go it is
there and nowhere else, whole.
"""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from tests.e2e.conftest import change_at_rest, run_once, seen
from tests.e2e.test_kill_all_real import in_turn, sampled
from tests.lab.guest import Guest
from tests.lab.host import LabHost
from tests.lab.mortal_agent import MortalAgent
from tests.lab.mortal_controller import MortalController
from tests.lab.mortal_fleet import LEASE_S
from tests.lab.waiting import wait_until
from tests.visits import Visit

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(3_600)]

LEFT, RIGHT = "left", "right"


class Moves:
    """Two hosts, their agents and the controller, all mortal, and a guest that goes from left to right."""

    def __init__(self, hosts: dict[str, LabHost], agents: dict[str, MortalAgent], controller: MortalController) -> None:
        self.hosts, self.agents, self.controller = hosts, agents, controller
        self.guest = run_once(hosts[LEFT].define_guest("mover"))
        self.id = str(self.guest.uuid)
        self.rounds = self.moves = 0
        self.restart_controller()

    def on(self, name: str) -> Guest:
        """Return the guest as it is on a host."""
        return Guest(self.hosts[name], self.guest.shape, self.guest.uuid)

    @property
    def places(self) -> list[str]:
        """Name the hosts that define it."""
        return [
            name for name, host in self.hosts.items() if host.virsh("dominfo", self.id, check=False).returncode == 0
        ]

    def restart_controller(self, dies: str | None = None) -> None:
        """Start it anew, and let it die at a point from now on."""
        self.controller.stop()
        self.controller.strikes_at(dies)
        self.controller.start()
        wait_until("the guest at the controller", self._is_known, 60, every_s=0.1)
        self.controller.arm()

    def _is_known(self) -> bool:
        return self.controller.coldframe("vm", "show", self.id, check=False).returncode == 0

    def place(self, host: str) -> None:
        """Move it, which must succeed."""
        assert self.controller.json("vm", "place", self.id, host)["state"] == "succeeded"

    def ask(self) -> None:
        """Ask for the move to the right; whoever dies of it may not answer."""
        self.controller.coldframe("vm", "place", self.id, RIGHT, "--no-wait", check=False)

    def begin(self) -> dict[str, str]:
        """Have the guest on the left in a state of its own, and return it."""
        if self.places != [LEFT]:
            self.place(LEFT)
        self.rounds += 1
        self.moves = len([1 for one in self.controller.json("operation", "list")["items"] if one["kind"] == "vm-place"])
        change_at_rest(self.on(LEFT), f"{self.rounds:06}".encode())
        # Without a start nobody knows that they changed, and a host that is lost gives the copies that are held.
        assert self.controller.json("vm", "sync", self.id)["state"] == "succeeded"
        return seen(self.on(LEFT))

    def ended(self) -> str:
        """Wait until every operation has ended; return how the move did, or nothing where it was not begun."""
        found: list[Any] = []

        def look() -> bool:
            found[:] = self.controller.json("operation", "list")["items"]
            return {one["state"] for one in found} <= {"succeeded", "failed", "cancelled"}

        wait_until("the end of all operations", look, 90, every_s=0.2)
        moves = [one["state"] for one in found if one["kind"] == "vm-place"]
        return moves[0] if len(moves) > self.moves else ""

    def judge(self, before: dict[str, str], point: str) -> None:
        """Hold what must be true after any death."""
        state, places = self.ended(), self.places
        assert places, point
        assert state != "succeeded" or RIGHT in places, point  # who died may still define it, and the move says so
        if LEFT in places:
            assert seen(self.on(LEFT)) == before, point
        wait_until(f"no guard after {point}", lambda: not any(map(self._guards, self.agents.values())), 60, every_s=0.2)
        self.place(RIGHT)
        assert self.places == [RIGHT], point
        assert seen(self.on(RIGHT)) == before, point
        found = self.controller.json("doctor")["items"]
        assert [one for one in found if one["severity"] != "info"] == [], point

    @staticmethod
    def _guards(agent: MortalAgent) -> list[Path]:
        return list((agent.state_dir / "guards").iterdir())

    def starts(self) -> None:
        """Start the guest where it is now."""
        guest = self.on(RIGHT)
        guest.start()
        guest.destroy()
        guest.wait_off()


@pytest.fixture(scope="module")
def moves(lab_ready: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Moves]:
    with TemporaryDirectory(prefix="cf-", dir="/tmp") as root:
        Path(root).chmod(0o711)  # QEMU's user passes through
        images = Path(root) / "images"
        images.mkdir()
        with LabHost(LEFT, images=images) as left, LabHost(RIGHT, images=images) as right:
            agents = {LEFT: MortalAgent(left), RIGHT: MortalAgent(right)}
            for agent in agents.values():
                agent.dies_at(None)
            controller = MortalController(tmp_path_factory.mktemp("moved"), lease_s=LEASE_S)
            controller.strikes_at()
            with agents[LEFT], agents[RIGHT], controller:
                for agent in agents.values():
                    controller.add_host(agent)
                yield Moves({LEFT: left, RIGHT: right}, agents, controller)


@pytest.mark.case("F2")
@pytest.mark.case("P1")
def test_the_controller_killed_at_every_point_of_a_move(moves: Moves, visit: Visit) -> None:
    before = moves.begin()
    moves.restart_controller()
    moves.ask()
    assert moves.ended() == "succeeded"
    points = in_turn(moves.controller.points())
    moves.judge(before, "unharmed")
    struck = []
    for point in sampled(points):
        before = moves.begin()
        moves.restart_controller(dies=point)
        moves.ask()
        process = moves.controller.process
        assert process is not None
        wait_until(f"the end at {point}", lambda: not process.alive() or _is_done(moves), 60, every_s=0.2)  # noqa: B023 - called here
        died = not process.alive()
        moves.restart_controller()
        moves.judge(before, point)
        if died:
            struck.append(point)
            visit(point.rpartition(" #")[0])
    assert len(struck) > len(sampled(points)) // 2, struck
    moves.starts()


def _is_done(moves: Moves) -> bool:
    """Tell that a point which comes by the clock did not come."""
    done = moves.controller.coldframe("operation", "list", "--json", check=False)
    return done.returncode == 0 and '"queued"' not in done.stdout and '"running"' not in done.stdout


@pytest.mark.case("F1")
@pytest.mark.case("P1")
@pytest.mark.parametrize("name", [LEFT, RIGHT])
def test_an_agent_killed_at_every_point_of_a_move(moves: Moves, name: str, visit: Visit) -> None:
    moves.restart_controller()
    agent = moves.agents[name]
    before = moves.begin()
    agent.stop()
    agent.dies_at(None)
    agent.start()
    moves.ask()
    assert moves.ended() == "succeeded"
    points = list(dict.fromkeys(agent.points()))
    assert len(points) > 8
    moves.judge(before, "unharmed")
    for point in sampled(points):
        before = moves.begin()
        agent.stop()
        agent.dies_at(point)
        agent.start()
        moves.ask()
        agent.wait_gone()
        agent.dies_at(None)
        agent.start()
        moves.judge(before, point)
        visit(point)
    moves.starts()
