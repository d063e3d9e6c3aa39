"""A host with an agent and a controller that die and stop where a test says, and a guest that has run once."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from signal import SIGCONT
from typing import Any

from tests.lab.errors import LabError
from tests.lab.guest import Guest
from tests.lab.host import LabHost
from tests.lab.mortal_agent import MortalAgent
from tests.lab.mortal_controller import MortalController
from tests.lab.preloaded import Clock
from tests.lab.waiting import wait_until

LEASE_S = 5


class MortalFleet:
    """One host, its agent and controller, both mortal, and a guest that has run once."""

    def __init__(self, host: LabHost, agent: MortalAgent, controller: MortalController) -> None:
        self.host, self.agent, self.controller = host, agent, controller
        self.guest: Guest = host.define_guest("faulty")
        self.starts()
        self.id = str(self.guest.uuid)

    def json(self, *words: str) -> Any:
        return self.controller.json(*words)

    def ask(self, *words: str) -> None:
        """Ask for an operation without waiting for it; whoever dies of it may not even answer."""
        self.controller.coldframe(*words, "--no-wait", check=False)

    def restart_controller(self, dies: str | None = None, stops: str | None = None) -> None:
        if self.controller.process is not None:
            self.controller.process.send(SIGCONT)
        self.controller.stop()
        self.controller.strikes_at(dies, stops)
        self.controller.start()
        wait_until("the guest at the controller", self.knows_guest, 60, every_s=0.1)
        self.controller.arm()

    def knows_guest(self) -> bool:
        with suppress(OSError, HTTPException, LabError):
            self.controller.get(f"/v1/vms/{self.id}")
            return True
        return False

    def ended(self) -> list[dict[str, Any]]:
        """Wait until every operation has ended; newest first."""
        found: list[dict[str, Any]] = []

        def look() -> bool:
            found[:] = self.controller.get("/v1/operations")["items"]
            return all(one["state"] in {"succeeded", "failed", "cancelled"} for one in found)

        wait_until("the end of all operations", look, 60, every_s=0.2)
        return found

    def sound(self) -> None:
        """Hold that records and host agree, nothing lies about, no guard stands, and the guest starts."""
        assert not list((self.agent.state_dir / "guards").iterdir())
        assert [one for one in self.controller.get("/v1/doctor")["items"] if one["severity"] == "error"] == []
        taken = self.controller.get(f"/v1/vms/{self.id}/snapshots")["items"]
        assert all(one["state"] == "ready" for one in taken)

    def follows(self, within_s: float) -> None:
        """Hold that a start and a stop of the guest are heard of, and its new host files followed, each in time."""
        followed = self.host_files()
        self.guest.start()
        wait_until("the mark of its start", lambda: any(map(is_dirty, self.host_files())), within_s, every_s=0.1)
        self.guest.destroy()
        self.guest.wait_off()
        wait_until("its host files", lambda: not any(map(is_dirty, self.host_files())), within_s, every_s=0.1)
        assert len(followed) == len(self.host_files())

    def host_files(self) -> list[dict[str, Any]]:
        return list(self.controller.get(f"/v1/vms/{self.id}/host-files")["items"])

    def starts(self) -> None:
        self.guest.start()
        self.guest.destroy()
        self.guest.wait_off()


def is_dirty(host_file: dict[str, Any]) -> bool:
    """Whether the controller knows of a change of this host file that it does not have yet."""
    return host_file["dirty_since"] is not None


@contextmanager
def mortal_fleet(root: Path) -> Iterator[MortalFleet]:
    """Have one, with the controller's files below ``root``."""
    with LabHost("faults") as host:
        agent = MortalAgent(host)
        agent.dies_at(None)
        controller = MortalController(root, lease_s=LEASE_S)
        controller.strikes_at()
        agent.machine, controller.machine = (Clock(root, "agent"),), (Clock(root, "controller"),)
        with agent, controller:
            controller.add_host(agent)
            yield MortalFleet(host, agent, controller)
