"""F5 and F6 on a real host: libvirtd that restarts in the middle, connections that only wait, no descriptor left."""

import os
import resource
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from signal import SIGCONT
from threading import Thread

import pytest

from tests.e2e.conftest import change_at_rest, seen
from tests.lab.daemons import Daemon, healthy
from tests.lab.guest import Guest
from tests.lab.mortal_fleet import LEASE_S, MortalFleet
from tests.lab.waiting import wait_until

pytestmark = [pytest.mark.real, pytest.mark.timeout(580)]

SWITCH = "switch-disks vda vdb"
#: Where libvirtd is gone and comes back, in every kind of work; `make test` does one.
MOMENTS = [
    ("revert", f"before {SWITCH}"),
    *(
        pytest.param(kind, point, marks=pytest.mark.slow)
        for kind, point in (
            ("snapshot", "before raise-guard"),
            ("snapshot", f"before {SWITCH}"),
            ("snapshot", "before capture nvram"),
            ("snapshot", "before journal commit"),
            ("snapshot", f"after {SWITCH}"),
            ("revert", "before raise-guard"),
            ("revert", "before journal prepared"),
            ("revert", f"after {SWITCH}"),
            ("delete", "before raise-guard"),
            ("delete", "before journal commit"),
            ("delete", "after journal commit"),
            ("delete", "before journal ended"),
        )
    ),
]
#: A commit waits for libvirt and is tried once a second; the lease is 5 s.
IN_TIME_S = 60


@pytest.fixture(scope="module")
def other(fleet: MortalFleet) -> Guest:
    """Another VM of the host, which is to be served all the while."""
    guest = fleet.host.define_guest("unconcerned", disks=1, uefi=False, tpm=False)

    def known() -> bool:
        return fleet.controller.coldframe("vm", "show", str(guest.uuid), check=False).returncode == 0

    wait_until("the other guest at the controller", known, 60)
    return guest


def ask(fleet: MortalFleet, kind: str) -> tuple[Callable[[], None], dict[str, str]]:
    """Bring the guest to the moment before the work; return what asks for it, and what is seen once it is done."""
    if kind == "snapshot":
        return lambda: fleet.ask("snapshot", "create", fleet.id, f"restart-{time.monotonic_ns()}"), seen(fleet.guest)
    snapshot = fleet.json("snapshot", "create", fleet.id, f"{kind}-{time.monotonic_ns()}")["uuid"]
    frozen = seen(fleet.guest)
    change_at_rest(fleet.guest, b"restart")
    return lambda: fleet.ask("snapshot", kind, snapshot), frozen if kind == "revert" else seen(fleet.guest)


@pytest.mark.case("F6")
@pytest.mark.parametrize(("kind", "point"), MOMENTS)
def test_libvirtd_that_restarts_in_the_middle_leaves_the_old_state_or_the_new(
    fleet: MortalFleet, other: Guest, kind: str, point: str
) -> None:
    fleet.restart_controller()
    asking, done = ask(fleet, kind)
    before = seen(fleet.guest)
    fleet.agent.stop()
    fleet.agent.stops_at(point)
    fleet.agent.start()
    process = fleet.agent.process
    assert process is not None
    try:
        asking()
        wait_until("the point", lambda: point in fleet.agent.points(), 30, every_s=0.05)
        fleet.host.kill_libvirtd()
    finally:
        process.send(SIGCONT)
    try:
        time.sleep(1)
        assert healthy(fleet.agent.connection(timeout_s=5))
    finally:
        began = time.monotonic()
        fleet.host.start_libvirtd()
    ended = fleet.ended()[0]
    assert time.monotonic() - began < IN_TIME_S
    assert ended["state"] == "succeeded" or ended["error"]["code"].startswith(("hypervisor-", "lease-")), ended
    fleet.json("snapshot", "create", str(other.uuid), f"after-{time.monotonic_ns()}")
    assert seen(fleet.guest) == (done if ended["state"] == "succeeded" else before)
    wait_until("no guard", lambda: not list((fleet.agent.state_dir / "guards").iterdir()), 30)
    fleet.sound()
    fleet.starts()


@contextmanager
def limit_of_children(descriptors: int) -> Iterator[None]:
    """Let processes that are started meanwhile have so many descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def open_files(daemon: Daemon) -> int:
    process = daemon.process
    assert process is not None
    return int(process.namespace.run(["sh", "-c", f"ls /proc/{process.pid}/fd | wc -l"]).stdout)


def limit(daemon: Daemon, descriptors: int) -> None:
    process = daemon.process
    assert process is not None
    process.namespace.run(["prlimit", f"--pid={process.pid}", f"--nofile={descriptors}:"])


@pytest.mark.slow
@pytest.mark.case("F5")
def test_a_controller_without_descriptors_fails_by_name_or_waits_and_goes_on_by_itself(fleet: MortalFleet) -> None:
    """Idle connections, event streams, callers that wait and callers at work; then none left for anything new."""
    fleet.restart_controller()
    fleet.controller.stop()
    with limit_of_children(256):
        fleet.controller.start()
    wait_until("the guest at the controller", fleet.knows_guest, 60, every_s=0.1)
    at_rest = open_files(fleet.controller)
    for spare in (0, 1, 3, 6, 12):
        with ExitStack() as stack:
            for number in range(60):
                waiting = stack.enter_context(socket.socket())
                waiting.connect(("127.0.0.1", int(fleet.controller.url.rpartition(":")[2])))
                if number % 3 == 0:
                    asked = (
                        f"GET /v1/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {fleet.controller.token}\r\n\r\n"
                    )
                    waiting.sendall(asked.encode())
            fleet.json("snapshot", "create", fleet.id, f"in spite of them {spare}")
            before = seen(fleet.guest)
            limit(fleet.controller, open_files(fleet.controller) + spare)
            try:
                asking = [
                    Thread(target=fleet.ask, args=("snapshot", "create", fleet.id, f"{spare} {n}")) for n in range(3)
                ]
                for one in asking:
                    one.start()
                time.sleep(3)
            finally:
                limit(fleet.controller, 256)
        for one in asking:
            one.join()
        codes = {one["error"]["code"] for one in fleet.ended() if one["error"]}
        assert "internal-error" not in codes, codes
        assert seen(fleet.guest) == before
        fleet.json("snapshot", "create", fleet.id, f"well again {spare}")
        fleet.sound()
    wait_until("its connections to be closed", lambda: open_files(fleet.controller) <= at_rest + 8, 30)
    assert "internal-error" not in fleet.controller.log()


@pytest.mark.slow
@pytest.mark.case("F5")
def test_connections_that_only_wait_and_descriptors_that_run_out_stop_nothing_for_good(fleet: MortalFleet) -> None:
    fleet.restart_controller()
    fleet.agent.stop()
    fleet.agent.dies_at(None)
    with limit_of_children(512):
        fleet.agent.start()
    with ExitStack() as stack:
        for _ in range(300):
            waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
            waiting.connect(os.fspath(fleet.agent.socket_path))
        fleet.json("snapshot", "create", fleet.id, "in spite of them")
        assert open_files(fleet.agent) < 200
    limit(fleet.agent, open_files(fleet.agent) + 4)
    try:
        fleet.ask("snapshot", "create", fleet.id, "without descriptors")
        time.sleep(3)
    finally:
        limit(fleet.agent, 512)
    ended = fleet.ended()[0]
    assert ended["state"] == "succeeded" or ended["error"]["code"] != "internal-error", ended
    guards = fleet.agent.state_dir / "guards"  # it could not hear of the abort
    wait_until("no guard", lambda: not list(guards.iterdir()), 3 * LEASE_S, every_s=0.1)
    fleet.json("snapshot", "create", fleet.id, "well again")
    fleet.sound()
