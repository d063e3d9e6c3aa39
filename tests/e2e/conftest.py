"""The whole product on one private host: agent, controller and the coldframe command, shared by a process's tests."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agent.client import AgentClient
from tests.lab.daemons import AgentDaemon, ControllerDaemon
from tests.lab.guest import Guest
from tests.lab.host import LabHost


@dataclass
class Stack:
    """One host with its agent, and a controller that has it enrolled."""

    host: LabHost
    agent: AgentDaemon
    controller: ControllerDaemon

    def coldframe(self, *words: str) -> Any:
        """Run ``coldframe … --json`` and return the document."""
        return self.controller.json(*words)

    def refused(self, *words: str) -> tuple[int, dict[str, Any]]:
        """Run a command that must fail; return its exit code and Problem."""
        import json

        done = self.controller.coldframe(*words, "--json", check=False)
        assert done.returncode != 0, done.stdout
        return done.returncode, json.loads(done.stdout)

    def forget(self, guest: Guest) -> None:
        """Take a guest's records away, as far as there are any."""
        self.controller.coldframe("vm", "forget", guest.name, "--yes", check=False)


@pytest.fixture(scope="session")
def stack(lab_host: LabHost, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with (
        AgentDaemon(lab_host) as agent,
        ControllerDaemon(tmp_path_factory.mktemp("controller")) as controller,
    ):
        controller.add_host(agent)
        yield Stack(lab_host, agent, controller)


@pytest.fixture
async def agent_client(stack: Stack) -> AsyncIterator[AgentClient]:
    async with AgentClient(stack.agent.url, stack.agent.token) as client:
        yield client


def seen(guest: Guest) -> dict[str, str]:
    """Hash all that belongs to a guest that is off: what it reads from its disks, its NVRAM, its TPM state."""
    import hashlib

    host = guest.host
    state = host.path(guest.tpm_dir) / "tpm2" / "tpm2-00.permall"
    parts = {target: guest.disk(target).sha256() for target in guest.targets}
    parts["nvram"] = hashlib.sha256(host.path(guest.nvram).read_bytes()).hexdigest()
    parts["tpm"] = hashlib.sha256(state.read_bytes()).hexdigest()
    return parts


async def in_thread(call: Callable[..., Any], *args: Any) -> Any:
    """Run one of the lab's blocking calls beside the loop."""
    return await asyncio.to_thread(call, *args)


def settle(path: Path) -> Path:
    return path
