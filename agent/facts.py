"""What the agent says of its host and of itself, gathered from those who know."""

import asyncio
import contextlib
import socket
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

from agent.errors import HypervisorRefused, HypervisorUnavailable
from agent.host import hook_file
from agent.host.hypervisor import Hypervisor, Versions
from agent.host.marks import boot_id
from agent.host.network import Network
from agent.keeper import Keepers
from agent.wire.base import utc_now
from agent.wire.health import AgentHealth
from agent.wire.host import HookState, HostFacts

VERSION = version("coldframe")


class Facts:
    """Facts as they are at the moment of asking."""

    def __init__(self, hypervisor: Hypervisor, network: Network, hook: Path, keepers: Keepers) -> None:
        self._hypervisor = hypervisor
        self._network = network
        self._hook = hook
        self._keepers = keepers
        self._started_at: datetime = utc_now()

    async def hook(self) -> HookState:
        """Say whether the hook is in force."""
        return await asyncio.to_thread(hook_file.state, self._hook)

    async def health(self) -> AgentHealth:
        """Say that the agent lives; asks neither libvirt nor the network, so it answers at once."""
        return AgentHealth(
            status="ok", version=VERSION, libvirt_connected=self._hypervisor.connected, hook=await self.hook()
        )

    async def host(self, controller: str | None) -> HostFacts:
        """Gather everything; what libvirt does not tell is null. ``controller`` is an IP address."""
        versions = await self._versions()
        network = await self._network.facts()
        return HostFacts(
            hostname=socket.gethostname(),
            machine_id=await asyncio.to_thread(_machine_id),
            agent_version=VERSION,
            libvirt_connected=self._hypervisor.connected,
            libvirt_version=versions.libvirt if versions else None,
            qemu_version=versions.qemu if versions else None,
            hook=await self.hook(),
            addresses=network.addresses,
            links=network.links,
            started_at=self._started_at,
            boot_id=await asyncio.to_thread(boot_id),
            route=await self._network.route_to(controller) if controller else None,
            keeper=await asyncio.to_thread(self._keepers.get),
            now=utc_now(),
        )

    async def _versions(self) -> Versions | None:
        with contextlib.suppress(HypervisorUnavailable, HypervisorRefused):
            return await self._hypervisor.versions()
        return None


def _machine_id() -> str:
    """Return machine-id(5), or nothing on a host without one."""
    try:
        return Path("/etc/machine-id").read_text().strip()
    except OSError:
        return ""
