"""F4 and D1 on a real host while wall clocks are stepped: at rest, and between the steps of what is under way."""

import json
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from tests.e2e.conftest import change_at_rest, seen
from tests.lab.mortal_fleet import LEASE_S, MortalFleet
from tests.lab.preloaded import Clock
from tests.lab.waiting import wait_until
from tests.visits import Struck

pytestmark = [pytest.mark.real, pytest.mark.timeout(1_200)]

AHEAD, BEHIND, HOUR = timedelta(days=10), timedelta(days=-10), timedelta(hours=1)
STEPS = (AHEAD, BEHIND, HOUR, -HOUR)
#: In the middle of each kind of work: whose point it is, between prepare and commit, and in the commit.
MOMENTS = {
    "create": (
        ("controller", "after message put_transaction"),
        ("agent", "before journal commit"),
        ("agent", "before switch-disks vda vdb"),
        ("controller", "after message commit"),
    ),
    "revert": (
        ("agent", "before raise-guard"),
        ("agent", "before journal prepared"),
        ("controller", "before message commit"),
        ("agent", "after switch-disks vda vdb"),
    ),
    "delete": (
        ("controller", "before message put_transaction"),
        ("agent", "after journal commit"),
        ("agent", "before journal ended"),
    ),
}
#: Nothing here takes a second by itself; what waits for a clock would wait for hours.
IN_TIME_S = 40


class Days:
    """A fleet whose clocks are stepped, and what must stay true of it whatever they say."""

    def __init__(self, fleet: MortalFleet) -> None:
        self.fleet, self.number = fleet, 0
        agent, controller = (
            next(one for one in daemon.machine if isinstance(one, Clock)) for daemon in (fleet.agent, fleet.controller)
        )
        self.clocks = {"agent": agent, "controller": controller}
        self.who = {"agent": (agent,), "controller": (controller,), "both": (agent, controller)}
        self.taken: list[str] = self.listed()
        self.frozen: dict[str, dict[str, str]] = {}

    def post(self, path: str, body: Any = None) -> Any:
        return json.loads(self.fleet.controller.ask("POST", path, body or {})[1])

    def operation(self, kind: str) -> dict[str, Any]:
        """Do one thing to the newest snapshot, or take one; return how it ended."""
        self.number += 1
        change_at_rest(self.fleet.guest, f"{self.number:06}".encode())
        before, began = seen(self.fleet.guest), time.monotonic()
        target = self.taken[-1] if kind == "delete" else next(iter(self.frozen), "")
        if kind == "create":
            asked = self.post(f"/v1/vms/{self.fleet.id}/snapshots", {"name": f"day {self.number}"})
        elif kind == "revert":
            asked = self.post(f"/v1/snapshots/{target}/revert", {"undo_point": False})
        else:
            asked = json.loads(self.fleet.controller.ask("DELETE", f"/v1/snapshots/{target}")[1])
        ended = self.fleet.controller.get(f"/v1/operations/{asked['uuid']}?wait={IN_TIME_S}")
        assert time.monotonic() - began < IN_TIME_S, ended
        assert ended["state"] == "succeeded", ended
        if kind == "create":
            self.taken.append(ended["result"]["snapshot"])
            self.frozen[self.taken[-1]] = before
        elif kind == "delete":
            self.taken.remove(target)
            self.frozen.pop(target, None)
        assert seen(self.fleet.guest) == (self.frozen[target] if kind == "revert" else before)
        return dict(ended)

    def stepped(self, kind: str, moment: tuple[str, str], by: timedelta, who: str) -> None:
        """Do one thing, with clocks stepped in the middle of it."""
        its, point = self.clocks[moment[0]], moment[1]
        its.step_at(point, by, *self.who[who])
        self.operation(kind)
        assert its.was_passed, point

    def listed(self) -> list[str]:
        """Return the snapshots in the order of the API, page by page."""
        found: list[str] = []
        path = f"/v1/vms/{self.fleet.id}/snapshots?limit=2"
        page = self.fleet.controller.get(path)
        while True:
            found += [one["uuid"] for one in page["items"]]
            if page["next"] is None:
                return found
            page = self.fleet.controller.get(f"{path}&after={page['next']}")

    def all_is_well(self) -> None:
        """Hold what a clock has no say in."""
        self.fleet.sound()
        assert self.listed() == self.taken
        named = {"snapshot-dated-ahead", "clock-apart"}  # which is how it is, and a warning
        assert {one["code"] for one in self.fleet.controller.get("/v1/doctor")["items"]} <= named
        events = self.events()
        assert [one["seq"] for one in events] == sorted({one["seq"] for one in events})
        for daemon in (self.fleet.controller, self.fleet.agent):
            assert counted(daemon.connection(), daemon.token)

    def events(self) -> list[dict[str, Any]]:
        _, data = self.fleet.controller.ask("GET", "/v1/events?after=0&follow=false")
        lines = data.decode().splitlines()
        return [json.loads(line.removeprefix("data:")) for line in lines if line.startswith("data:")]


def counted(connection: Any, token: str) -> bool:
    """Whether there are metrics and none is below zero."""
    connection.request("GET", "/metrics", headers={"Authorization": f"Bearer {token}"})
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    values = [float(line.rpartition(" ")[2]) for line in lines if line and not line.startswith("#")]
    return bool(values) and min(values) >= 0


@pytest.fixture
def days(fleet: MortalFleet) -> Iterator[Days]:
    """The fleet, with its clocks as wrong as a test makes them; put right afterwards."""
    fleet.restart_controller()
    fleet.agent.stop()
    fleet.agent.dies_at(None)
    fleet.agent.start()
    made = Days(fleet)
    yield made
    for clock in made.clocks.values():
        clock.put_right()
    for snapshot in reversed(made.taken):  # what later tests find is dated by a clock that is right
        if snapshot in made.frozen:
            fleet.json("snapshot", "delete", snapshot)


@pytest.mark.case("F4")
def test_clocks_stepped_in_the_middle_of_a_snapshot_change_nothing(days: Days, struck: Struck) -> None:
    days.stepped("create", MOMENTS["create"][0], AHEAD, "both")
    days.stepped("create", MOMENTS["create"][2], 2 * BEHIND, "agent")
    days.stepped("create", MOMENTS["create"][1], BEHIND, "controller")
    days.all_is_well()
    struck(3)


@pytest.mark.slow
@pytest.mark.case("F4")
def test_clocks_stepped_at_rest_and_in_the_middle_of_everything_change_nothing(days: Days, struck: Struck) -> None:
    days.operation("create")
    for by in STEPS:
        for who in days.who:
            for number in range(4):
                for kind in ("create", "revert", "delete"):
                    moments = MOMENTS[kind]
                    days.stepped(kind, moments[number % len(moments)], by, who)
                    struck(1)
            days.all_is_well()
    days.operation("create")
    assert days.listed() == days.taken


@pytest.mark.slow
@pytest.mark.case("F4")
def test_clocks_stepped_at_rest_leave_tags_pages_leases_hosts_and_recovery_as_they_were(
    days: Days, struck: Struck
) -> None:
    fleet, controller = days.fleet, days.fleet.controller
    for _ in range(3):
        days.operation("create")
    path = f"/v1/snapshots/{days.taken[-1]}"
    for who, clocks in days.who.items():
        for by in STEPS:
            tag = controller.ask("GET", path)[0].headers["ETag"]
            page = controller.get(f"/v1/vms/{fleet.id}/snapshots?limit=2")
            for clock in clocks:
                clock.step(by)
            assert controller.ask("GET", path, headers={"If-None-Match": tag})[0].status == 304
            controller.ask("PATCH", path, {"description": f"{who} {by}"}, {"If-Match": tag})
            rest = controller.get(f"/v1/vms/{fleet.id}/snapshots?limit=9&after={page['next']}")
            assert [one["uuid"] for one in page["items"] + rest["items"]] == days.taken
            fleet.follows(within_s=20)
            days.all_is_well()
            struck(1)
        fleet.agent.kill()
        fleet.agent.start()
        controller.kill()
        fleet.restart_controller()
        days.operation("revert")
        days.all_is_well()
        for clock in clocks:
            clock.put_right()


@pytest.mark.slow
@pytest.mark.case("F4")
@pytest.mark.parametrize("who", ["agent", "controller", "both"])
def test_a_lease_ends_when_it_is_over_whatever_the_clocks_say(days: Days, who: str, struck: Struck) -> None:
    """The controller sleeps with a transaction prepared, and clocks are stepped meanwhile."""
    fleet = days.fleet
    guards = fleet.agent.state_dir / "guards"
    for by in (AHEAD, BEHIND):
        fleet.restart_controller(stops="after message put_transaction #1")
        fleet.ask("snapshot", "create", fleet.id, "stalled")
        wait_until("the guard", lambda: bool(list(guards.iterdir())), 20, every_s=0.02)
        began = time.monotonic()
        for clock in days.who[who]:
            clock.step(by)
        wait_until("the end of the lease", lambda: not list(guards.iterdir()), 5 * LEASE_S, every_s=0.1)
        assert LEASE_S - 2 < time.monotonic() - began < 2 * LEASE_S + 2
        fleet.restart_controller()
        fleet.ended()
        days.taken = days.listed()
        days.all_is_well()
        struck(1)
