"""A host's facts about itself."""

from datetime import UTC, datetime
from typing import Literal
from uuid import UUID

from agent.wire.base import Answer

HookState = Literal["ok", "missing", "not-executable", "different"]


class Address(Answer, kw_only=True, frozen=True):
    """One address of one interface, for example ``192.0.2.7/24`` on ``br0``."""

    interface: str
    address: str
    prefix_length: int
    family: Literal["ipv4", "ipv6"]


class Link(Answer, kw_only=True, frozen=True):
    """One network interface. ``up`` is the operational state, not the administrative one."""

    name: str
    mac: str | None
    mtu: int
    up: bool


class Route(Answer, kw_only=True, frozen=True):
    """The way to one destination: which interface, from which source address, over which gateway."""

    destination: str
    interface: str | None
    source: str | None
    gateway: str | None


class Keeper(Answer, frozen=True):
    """The controller that works with a host, by its own UUID, and since when."""

    controller: UUID
    since: datetime


class HostFacts(Answer, kw_only=True, frozen=True):
    """What an agent says of its host. ``hook`` is the state of the libvirt hook that guards starts.

    ``keeper``: no other controller may change anything there; null until one has. ``now``: the time there, to set its
    other times against; null from an agent of an older version.
    """

    hostname: str
    machine_id: str
    agent_version: str
    libvirt_connected: bool
    libvirt_version: str | None
    qemu_version: str | None
    hook: HookState
    addresses: list[Address]
    links: list[Link]
    started_at: datetime
    boot_id: str
    route: Route | None = None
    keeper: Keeper | None = None
    now: datetime | None = None

    @classmethod
    def example(cls) -> "HostFacts":
        """Return an example for documentation and tests."""
        return cls(
            hostname="kvm1.example.org",
            machine_id="3c6ee0a1b1d94c0fb5b0a1c7a5b8f2d1",
            agent_version="0.1.0",
            libvirt_connected=True,
            libvirt_version="9.0.0",
            qemu_version="7.2.17",
            hook="ok",
            addresses=[Address(interface="br0", address="192.0.2.7", prefix_length=24, family="ipv4")],
            links=[Link(name="br0", mac="52:54:00:00:00:01", mtu=1500, up=True)],
            started_at=datetime(2026, 11, 2, 9, 0, tzinfo=UTC),
            boot_id="f2b0c9f2-3b7a-4d45-9d5e-6d3e8f0f6a10",
            route=Route(destination="192.0.2.1", interface="br0", source="192.0.2.7", gateway=None),
            now=datetime(2026, 11, 2, 9, 30, tzinfo=UTC),
        )
