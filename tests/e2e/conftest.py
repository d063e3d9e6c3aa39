"""The whole product on one private host: agent, controller and the coldframe command, shared by a process's tests."""

import hashlib
import json
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

import pytest

from agent.client import AgentClient
from tests.lab.daemons import AgentDaemon, ControllerDaemon
from tests.lab.fleet import Fleet
from tests.lab.guest import Guest
from tests.lab.host import LabHost
from tests.lab.mortal_fleet import MortalFleet, mortal_fleet
from tests.lab.waiting import wait_until

_NUMBERS = count(1)


@dataclass
class Stack:
    """One host with its agent, and a controller that has it enrolled."""

    host: LabHost
    agent: AgentDaemon
    controller: ControllerDaemon

    def coldframe(self, *words: str) -> Any:
        """Run ``coldframe GROUP VERB --json …`` and return the document; words may follow a ``--``."""
        return json.loads(self.controller.coldframe(*words[:2], "--json", *words[2:]).stdout)

    def refused(self, *words: str) -> tuple[int, dict[str, Any]]:
        """Run a command that must fail; return its exit code and Problem."""
        done = self.controller.coldframe(*words[:2], "--json", *words[2:], check=False)
        assert done.returncode != 0, done.stdout
        return done.returncode, json.loads(done.stdout)

    def known(self, guest: Guest) -> None:
        """Wait until the controller has seen a guest."""
        wait_until(
            f"{guest.name} at the controller",
            lambda: self.controller.coldframe("vm", "show", str(guest.uuid), check=False).returncode == 0,
            20,
            every_s=0.2,
        )

    def events(self, guest: Guest, type_: str) -> list[dict[str, Any]]:
        """List the host's events of one type about a guest, from the agent's own log."""
        log = [
            json.loads(line)
            for path in sorted((self.agent.state_dir / "events").iterdir())
            for line in path.read_text().splitlines()
        ]
        return [line for line in log if line.get("type") == type_ and line.get("vm") == str(guest.uuid)]


@pytest.fixture(scope="session")
def stack(lab_ready: None, worker_id: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A host of its own: tests of the bare hook must not meet an agent that drains the spool."""
    with (
        LabHost(f"stack-{worker_id}") as host,
        AgentDaemon(host) as agent,
        ControllerDaemon(tmp_path_factory.mktemp("controller")) as controller,
    ):
        controller.add_host(agent)
        yield Stack(host, agent, controller)


@dataclass(frozen=True)
class Pair:
    """A fleet of two hosts; ``a`` and ``b`` are its stacks, which share the controller."""

    fleet: Fleet
    a: Stack
    b: Stack

    def coldframe(self, *words: str) -> Any:
        """Run a command as ``Stack.coldframe`` does."""
        return self.a.coldframe(*words)

    def host(self, name: str) -> dict[str, Any]:
        """Return a host as it is shown."""
        shown: dict[str, Any] = self.fleet.get(f"/v1/hosts/{name}")
        return shown

    def vm(self, guest: Guest) -> dict[str, Any]:
        """Return a VM as it is shown."""
        shown: dict[str, Any] = self.fleet.get(f"/v1/vms/{guest.uuid}")
        return shown

    def told(self, type_: str, **data: Any) -> bool:
        """Say whether the controller's log has an event with these data."""
        events = [{**one["data"], **one} for one in self.fleet.events() if one["type"] == type_]
        return any(all(one.get(key) == value for key, value in data.items()) for one in events)

    def soon(self, what: str, probe: Callable[[], bool], timeout_s: float = 30) -> None:
        """Wait for what the controller learns by itself."""
        wait_until(what, probe, timeout_s, every_s=0.1)


@pytest.fixture(scope="session")
def pair(lab_ready: None) -> Iterator[Pair]:
    """Two hosts with one image directory between them, under one controller."""
    with Fleet() as fleet:
        stacks = [Stack(one.host, one.agent, fleet.controller) for one in (fleet.a, fleet.b)]
        yield Pair(fleet, *stacks)


@pytest.fixture(scope="session")
def fleet(lab_ready: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MortalFleet]:
    """A host whose agent and controller die and stop where a test says."""
    with mortal_fleet(tmp_path_factory.mktemp("faults")) as made:
        yield made


@pytest.fixture
def moving(pair: Pair) -> Iterator[Callable[..., Guest]]:
    """A factory for guests on host a that the controller knows; they are gone from both hosts after the test."""
    made: list[Guest] = []

    def define(name: str = "", **shape: Any) -> Guest:
        made.append(pair.a.host.define_guest(name or f"moving-{next(_NUMBERS)}", **shape))
        pair.a.known(made[-1])
        return made[-1]

    yield define
    for one in made:
        pair.b.host.virsh("destroy", str(one.uuid), check=False)
        pair.b.host.virsh("undefine", "--nvram", "--managed-save", str(one.uuid), check=False)
        one.remove()


@pytest.fixture
def vm(stack: Stack) -> Iterator[Callable[..., Guest]]:
    """A factory for guests that the controller knows; names are made unique, and guests are gone after the test."""
    made: list[Guest] = []

    def define(name: str = "", **shape: Any) -> Guest:
        made.append(stack.host.define_guest(name or f"vm-{next(_NUMBERS)}", **shape))
        stack.known(made[-1])
        return made[-1]

    yield define
    for one in made:
        one.remove()


@pytest.fixture
async def agent_client(stack: Stack) -> AsyncIterator[AgentClient]:
    async with AgentClient(stack.agent.url, stack.agent.token) as client:
        yield client


def run_once(guest: Guest) -> Guest:
    """Let a guest have NVRAM and TPM state: both come into being at its first start."""
    guest.start()
    guest.destroy()
    guest.wait_off()
    return guest


def seen(guest: Guest) -> dict[str, str]:
    """Hash all that belongs to a guest that is off: what it reads from its disks, its NVRAM, its TPM state."""
    state = guest.host.path(guest.tpm_dir) / "tpm2-00.permall"
    parts = {target: guest.disk(target).sha256() for target in targets(guest)}
    parts["nvram"] = hashlib.sha256(guest.host.path(guest.nvram).read_bytes()).hexdigest()
    parts["tpm"] = hashlib.sha256(state.read_bytes()).hexdigest()
    return parts


def targets(guest: Guest) -> list[str]:
    """List the guest's disks."""
    return [f"vd{chr(ord('a') + number)}" for number in range(guest.shape.disks)]


def change_at_rest(guest: Guest, mark: bytes) -> None:
    """Change every part of a guest that is off: both disks, a byte of NVRAM's free space, a TPM index."""
    for target in targets(guest):
        guest.disk(target).write(1 << 20, mark)
    path = guest.host.path(guest.nvram)
    data = bytearray(path.read_bytes())
    data[-len(mark) :] = mark
    path.write_bytes(bytes(data))
    guest.tpm.write_index(0x1500016, mark)
