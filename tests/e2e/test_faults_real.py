"""F2, F3, F4 and F6 on a real host: controller and agent as processes, killed, stopped and cut off where it hurts."""

import json
import time
from signal import SIGCONT, SIGSTOP
from typing import Any

import pytest

from tests.e2e.conftest import change_at_rest, seen
from tests.lab.mortal_fleet import LEASE_S, MortalFleet
from tests.lab.waiting import wait_until
from tests.visits import Visit

pytestmark = [pytest.mark.real, pytest.mark.timeout(580)]

#: A few of each in ``make test``; tests/controller/operations/test_faults.py has every point, with an agent in memory.
CREATE = ["after message put_transaction", "after message commit"]
REVERT = ["before message commit"]


def killed(fleet: MortalFleet, point: str, *words: str) -> dict[str, Any]:
    """Ask for an operation, let the controller die in it, start another; return how it ended."""
    fleet.restart_controller(dies=f"{point} #1")
    fleet.ask(*words)
    fleet.controller.wait_gone()
    fleet.restart_controller()
    return fleet.ended()[0]


@pytest.mark.case("F2")
def test_controller_killed_in_the_middle_resumes_and_the_guest_starts(fleet: MortalFleet, visit: Visit) -> None:
    for number, point in enumerate(CREATE):
        before = seen(fleet.guest)
        assert killed(fleet, point, "snapshot", "create", fleet.id, f"c{number}")["state"] == "succeeded", point
        assert seen(fleet.guest) == before
        fleet.sound()
        visit(point)
    frozen = seen(fleet.guest)
    newest = fleet.json("snapshot", "list", fleet.id)["items"][0]["uuid"]
    for number, point in enumerate(REVERT):
        change_at_rest(fleet.guest, f"{number:06}".encode())
        assert killed(fleet, point, "snapshot", "revert", newest)["state"] == "succeeded", point
        assert seen(fleet.guest) == frozen
        fleet.sound()
        visit(point)
    fleet.starts()


@pytest.mark.case("F3")
def test_host_that_reboots_in_a_commit_does_not_autostart_the_guest_before_recovery(fleet: MortalFleet) -> None:
    fleet.restart_controller()
    snapshot = fleet.json("snapshot", "create", fleet.id, "before-reboot")["uuid"]
    frozen = seen(fleet.guest)
    change_at_rest(fleet.guest, b"reboot")
    fleet.host.virsh("autostart", fleet.id)
    fleet.agent.stop()
    fleet.agent.dies_at("before switch-disks vda vdb")
    fleet.agent.start()
    fleet.restart_controller()
    fleet.ask("snapshot", "revert", snapshot)
    fleet.agent.wait_gone()
    fleet.controller.kill()
    fleet.host.reboot()
    assert fleet.guest.state() == "shut off"
    assert list((fleet.agent.state_dir / "guards").iterdir())
    refused = fleet.host.virsh("start", fleet.id, check=False)
    assert refused.returncode != 0
    assert "revert" in refused.stderr
    fleet.agent.dies_at(None)
    fleet.agent.start()
    fleet.restart_controller()
    assert fleet.ended()[0]["state"] == "succeeded"
    assert seen(fleet.guest) == frozen
    fleet.sound()
    fleet.host.virsh("autostart", "--disable", fleet.id)
    fleet.starts()


@pytest.mark.case("F4")
def test_controller_that_is_gone_after_prepare_blocks_the_guest_no_longer_than_the_lease(fleet: MortalFleet) -> None:
    fleet.restart_controller(stops="after message put_transaction #1")
    fleet.ask("snapshot", "create", fleet.id, "stalled")
    guards = fleet.agent.state_dir / "guards"
    wait_until("the guard", lambda: bool(list(guards.iterdir())), 20, every_s=0.02)
    began = time.monotonic()
    wait_until("the end of the lease", lambda: not list(guards.iterdir()), 5 * LEASE_S, every_s=0.1)
    assert time.monotonic() - began < 2 * LEASE_S + 2
    fleet.starts()
    process = fleet.controller.process
    assert process is not None
    process.send(SIGCONT)
    assert fleet.ended()[0]["state"] in {"failed", "succeeded"}
    fleet.sound()


@pytest.mark.case("F6")
def test_libvirtd_that_hangs_is_a_clear_error_in_time_and_the_health_page_answers(fleet: MortalFleet) -> None:
    fleet.restart_controller()
    fleet.host.pause_libvirtd()
    try:
        began = time.monotonic()
        done = fleet.controller.coldframe("snapshot", "create", fleet.id, "hung", "--json", check=False, timeout_s=90)
        assert time.monotonic() - began < 60
        assert json.loads(done.stdout)["code"].startswith("hypervisor-")
        connection = fleet.agent.connection(timeout_s=2)
        connection.request("GET", "/healthz")
        assert connection.getresponse().status == 200
        connection.close()
    finally:
        fleet.host.resume_libvirtd()
    fleet.json("snapshot", "create", fleet.id, "after the hang")
    fleet.sound()


@pytest.mark.case("F6")
def test_agent_that_hangs_leaves_the_controller_answering_and_goes_on_when_it_is_back(fleet: MortalFleet) -> None:
    fleet.restart_controller()
    process = fleet.agent.process
    assert process is not None
    process.send(SIGSTOP)
    try:
        fleet.ask("snapshot", "create", fleet.id, "patience")
        for _ in range(3):
            began = time.monotonic()
            assert fleet.json("vm", "show", fleet.id)["uuid"] == fleet.id
            assert time.monotonic() - began < 10
    finally:
        process.send(SIGCONT)
    assert fleet.ended()[0]["state"] == "succeeded"
    fleet.sound()


@pytest.mark.case("F4")
@pytest.mark.parametrize(
    ("point", "ends"), [("after journal prepared", "failed"), ("before switch-disks vda vdb", "succeeded")]
)
def test_agent_that_sleeps_past_the_lease_undoes_what_was_not_committed_and_finishes_what_was(
    fleet: MortalFleet, point: str, ends: str
) -> None:
    fleet.restart_controller()
    before = seen(fleet.guest)
    fleet.agent.stop()
    fleet.agent.stops_at(point)
    fleet.agent.start()
    try:
        fleet.ask("snapshot", "create", fleet.id, f"asleep {ends}")
        wait_until("the point", lambda: point in fleet.agent.points(), 30, every_s=0.05)
        time.sleep(LEASE_S + 1)
        assert fleet.json("operation", "list")["items"][0]["state"] == "running"
        assert fleet.host.virsh("start", fleet.id, check=False).returncode != 0
    finally:
        assert fleet.agent.process is not None
        fleet.agent.process.send(SIGCONT)
    ended = fleet.ended()[0]
    assert ended["state"] == ends, ended
    assert ends == "succeeded" or ended["error"]["code"] == "lease-expired"
    assert seen(fleet.guest) == before
    fleet.sound()
    fleet.starts()


@pytest.mark.case("F4")
def test_an_agent_that_is_restarted_fails_no_operation(fleet: MortalFleet) -> None:
    fleet.restart_controller()
    fleet.agent.stop()
    fleet.agent.dies_at(None)
    fleet.ask("snapshot", "create", fleet.id, "while it restarts")
    fleet.agent.start()
    assert fleet.ended()[0]["state"] == "succeeded"
    fleet.sound()
