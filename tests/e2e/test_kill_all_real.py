"""F1 and F2 with real daemons and tools: controller and agent are killed at every point of each kind of operation.

The points come from a run that nothing happens to. After each death whoever died is started again, and all is looked
over: the operation has ended, the guest's bytes are the old or the new, no guard stands, the doctor finds nothing.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from threading import Thread
from uuid import uuid4

import pytest

from tests.controller.strike import ROUNDS
from tests.e2e.conftest import change_at_rest, seen
from tests.lab.host import LabHost
from tests.lab.mortal_agent import MortalAgent
from tests.lab.mortal_controller import MortalController
from tests.lab.mortal_fleet import LEASE_S, MortalFleet
from tests.lab.waiting import wait_until
from tests.visits import Visit

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(3_600)]

KEPT, ARCHIVE, POLICY = "kept", "kept.coldframe", "thin"
LABELLED = ["--label", "thin=yes"]
#: For whoever works on a kind: one of so many of its points. All by default.
EVERY = int(os.environ.get("STRIKE_EVERY", "1"))
#: What followers and the engine do by the clock: it is struck once, and a run in which it did not come is no failure.
BY_THE_CLOCK = (*ROUNDS, "message events", "message host", "message vms", "events._record_look", "events.work_off")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of operation: the command for a round, by its label, and what must be there before."""

    words: Sequence[str]
    takes: bool = False  # whether each round works on a snapshot of its own, which goes afterwards
    waits: bool = False  # the command knows no --no-wait
    thins: bool = False  # its snapshot is superfluous by the policy, for the sake of a newer one
    #: The parts of the guest that are as the kept snapshot has them when it succeeded; None: all.
    puts_back: tuple[str, ...] | None = ()

    def command(self, fleet: MortalFleet, label: str) -> list[str]:
        values = {"vm": fleet.id, "name": fleet.guest.name, "label": label, "owner": str(uuid4())}
        values["file"] = str(fleet.controller.root / f"{label}.coldframe")
        values |= {"archive": str(fleet.controller.root / ARCHIVE), "host": fleet.host.name}
        return [word.format(**values) for word in self.words]


KINDS: dict[str, Kind] = {
    "create": Kind(words=["snapshot", "create", "{vm}", "{label}"], takes=True),
    "revert": Kind(words=["snapshot", "revert", f"{{name}}/{KEPT}"], puts_back=None),
    "delete": Kind(words=["snapshot", "delete", "{name}/{label}"], takes=True),
    "clone": Kind(words=["snapshot", "clone", f"{{name}}/{KEPT}", "clone-{label}"]),
    "sync": Kind(words=["vm", "sync", "{vm}"]),
    "ungroup": Kind(words=["snapshot", "ungroup", "{name}/{label}"], takes=True),
    "verify": Kind(words=["snapshot", "verify", f"{{name}}/{KEPT}"], waits=True),
    "backup": Kind(words=["backup", "create", "{vm}", "--owner", "{owner}"]),
    "restore": Kind(
        words=["vm", "restore-host-files", "{vm}", "--from", f"{{name}}/{KEPT}", "--type", "nvram", "--type", "tpm"],
        waits=True,
        puts_back=("nvram", "tpm"),
    ),
    # Who waits for an archive gets it from the controller that he asked, so its death ends the operation.
    "export": Kind(words=["snapshot", "export", f"{{name}}/{KEPT}", "{file}"], waits=True),
    "import": Kind(
        words=["snapshot", "import", "{archive}", "--host", "{host}", "--as-new", "import-{label}"], waits=True
    ),
    "retention": Kind(words=["retention", "apply", POLICY], takes=True, thins=True),
}
#: tests/e2e/test_kill_real.py has the agent in a snapshot and a revert.
OF_THE_AGENT = ["delete", "clone", "restore", "export", "import", "retention"]


class Rounds:
    """A fleet, the guest as its kept snapshot has it, and one round after the other."""

    def __init__(self, fleet: MortalFleet) -> None:
        self.fleet, self.number = fleet, 0
        fleet.restart_controller()
        fleet.json("snapshot", "create", fleet.id, KEPT)
        self.kept = seen(fleet.guest)
        fleet.json("snapshot", "export", f"{fleet.guest.name}/{KEPT}", str(fleet.controller.root / ARCHIVE))

    def begin(self, kind: Kind) -> str:
        """Bring the guest to a state of its own, and the snapshot that a round works on."""
        self.number += 1
        label = f"r{self.number:05}"
        change_at_rest(self.fleet.guest, label.encode())
        if kind.takes and "create" not in kind.words:
            self.fleet.json("snapshot", "create", self.fleet.id, label, *(LABELLED if kind.thins else []))
        if kind.thins:  # in force only now: it is applied after each snapshot, too, and a minute after a start
            self.fleet.restart_controller()
            policy = ["retention", "set", POLICY, "--vm", self.fleet.id, *LABELLED, "--keep-last", "1"]
            self.fleet.json(*policy, "--disabled")
            self.fleet.json("snapshot", "create", self.fleet.id, f"{label}-newer", *LABELLED)
            self.fleet.json(*policy)
        return label

    def ask(self, kind: Kind, label: str) -> None:
        self.fleet.controller.coldframe(
            *kind.command(self.fleet, label), *([] if kind.waits else ["--no-wait"]), check=False
        )

    def ask_until_death(self, kind: Kind, label: str) -> Thread:
        """Return once there is an answer or the controller is dead: who waits bears with one that is restarted."""
        process = self.fleet.controller.process
        assert process is not None
        asking = Thread(target=self.ask, args=(kind, label))
        asking.start()
        wait_until("an answer", lambda: not (asking.is_alive() and process.alive()), 60, every_s=0.1)
        return asking

    def judge(self, kind: Kind, label: str, before: dict[str, str], point: str) -> None:
        """Hold what must be true after any death, and end the round."""
        operation = self.fleet.ended()[0]
        after, parts = seen(self.fleet.guest), self.kept if kind.puts_back is None else kind.puts_back
        new = {**before, **{part: self.kept[part] for part in parts}}
        assert after in (before, new), point
        self.fleet.sound()
        found = self.fleet.controller.get("/v1/doctor")["items"]
        told = {"retention-failing"} if kind.thins and point != "unharmed" else set()  # and tried again in an hour
        assert [one for one in found if one["severity"] != "info" and one["code"] not in told] == [], point
        if operation["state"] == "failed":
            assert operation["error"]["detail"], point
        for name in [label, f"{label}-newer"] if kind.takes else []:
            self.fleet.controller.coldframe("snapshot", "delete", f"{self.fleet.guest.name}/{name}", check=False)


@pytest.fixture(scope="module")
def rounds(lab_ready: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rounds]:
    with LabHost("killed") as host:
        agent = MortalAgent(host)
        agent.dies_at(None)
        controller = MortalController(tmp_path_factory.mktemp("killed"), lease_s=LEASE_S)
        controller.strikes_at()
        with agent, controller:
            controller.add_host(agent)
            yield Rounds(MortalFleet(host, agent, controller))


def in_turn(points: Sequence[str]) -> list[str]:
    """Leave out what came again by the clock."""
    return [one for one in points if one.endswith(" #1") or not one.partition(" #")[0].endswith(BY_THE_CLOCK)]


def sampled(points: Sequence[str]) -> list[str]:
    """Take one of ``EVERY``."""
    return list(points[::EVERY])


def gone_or_done(fleet: MortalFleet) -> Callable[[], bool]:
    """Return what tells that the controller died, or that a point which comes by the clock did not come."""

    def look() -> bool:
        process = fleet.controller.process
        assert process is not None
        if not process.alive():
            return True
        with suppress(OSError, HTTPException):
            items = fleet.controller.get("/v1/operations")["items"]
            return all(one["state"] not in {"queued", "running"} for one in items)
        return False

    return look


@pytest.mark.case("F2")
@pytest.mark.parametrize("name", KINDS)
def test_the_controller_killed_at_every_point(rounds: Rounds, name: str, visit: Visit) -> None:
    fleet, kind = rounds.fleet, KINDS[name]
    fleet.restart_controller()
    label = rounds.begin(kind)
    fleet.restart_controller()
    before = seen(fleet.guest)
    rounds.ask(kind, label)
    assert fleet.ended()[0]["state"] == "succeeded"
    points = fleet.controller.points()
    rounds.judge(kind, label, before, "unharmed")
    struck = []
    for point in sampled(in_turn(points)):
        label = rounds.begin(kind)
        before = seen(fleet.guest)
        fleet.restart_controller(dies=point)
        asking = rounds.ask_until_death(kind, label)
        wait_until(f"the end at {point}", gone_or_done(fleet), 60, every_s=0.2)
        died = fleet.controller.process is not None and not fleet.controller.process.alive()
        fleet.restart_controller()
        asking.join()
        rounds.judge(kind, label, before, point)
        if died:
            struck.append(point)
            visit(point.rpartition(" #")[0])
    assert len(struck) > len(sampled(in_turn(points))) // 2, struck
    fleet.starts()


@pytest.mark.case("F1")
@pytest.mark.parametrize("name", OF_THE_AGENT)
def test_the_agent_killed_at_every_point_under_a_controller(rounds: Rounds, name: str, visit: Visit) -> None:
    fleet, kind = rounds.fleet, KINDS[name]
    fleet.restart_controller()
    label = rounds.begin(kind)
    before = seen(fleet.guest)
    fleet.agent.dies_at(None)
    fleet.agent.restart()
    rounds.ask(kind, label)
    assert fleet.ended()[0]["state"] == "succeeded"
    points = fleet.agent.points()
    rounds.judge(kind, label, before, "unharmed")
    assert len(points) > 8
    first = label
    for passed in sampled(list(dict.fromkeys(points))):
        label = rounds.begin(kind)
        point = passed.replace(first, label)  # what is made is named after the round
        before = seen(fleet.guest)
        fleet.agent.stop()
        fleet.agent.dies_at(point)
        fleet.agent.start()
        asking = Thread(target=rounds.ask, args=(kind, label))  # whoever waits gets no answer before the host is back
        asking.start()
        fleet.agent.wait_gone()
        fleet.agent.dies_at(None)
        fleet.agent.start()
        asking.join()
        rounds.judge(kind, label, before, point)
        visit(point)
    fleet.starts()
