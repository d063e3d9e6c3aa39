"""The host's addresses, links and routes, by netlink (rtnetlink(7))."""

import asyncio
import re
import socket
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any, Literal

from pyroute2 import AsyncIPRoute
from pyroute2.netlink import rtnl
from pyroute2.netlink.exceptions import NetlinkError

from agent.wire.host import Address, Link, Route

_GROUPS = rtnl.RTMGRP_LINK | rtnl.RTMGRP_IPV4_IFADDR | rtnl.RTMGRP_IPV6_IFADDR
_IFF_RUNNING = 0x40  # <net/if.h>
#: A link that comes up sends half a dozen messages within milliseconds; an IPv6 address settles within a second or
#: two and is then told on its own.
_QUIET_S = 0.2
_LONGEST_S = 2.0
#: libvirt's names for guests' taps: they come and go with every start and say nothing of how the host is reached.
_GUEST_TAP = re.compile(r"vnet\d+")


@dataclass(frozen=True)
class NetworkFacts:
    """Addresses and links, sorted."""

    addresses: list[Address] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)


@dataclass(frozen=True)
class NetworkChange:
    """What became different.

    ``host.address``: ``data`` is ``{"added": […], "removed": […]}``, each like ``eth0 192.0.2.7/24``.
    ``host.link``: ``{"interface", "present", "up", "mtu", "mac"}``, the link as it is now.
    """

    type: Literal["host.address", "host.link"]
    data: dict[str, Any]


class Network:
    """The network namespace that the agent runs in. Raises OSError where the kernel refuses a netlink socket."""

    def __init__(self) -> None:
        self._last: NetworkFacts | None = None

    async def facts(self) -> NetworkFacts:
        """Return the present addresses and links; guests' taps are left out."""
        async with AsyncIPRoute() as netlink:
            names = {}
            links = []
            async for message in await netlink.get_links():
                names[message["index"]] = message.get_attr("IFLA_IFNAME")
                links.append(_link(message))
            addresses = [_address(message, names) async for message in await netlink.get_addr()]
        found = NetworkFacts(
            addresses=sorted(
                (one for one in addresses if not _GUEST_TAP.fullmatch(one.interface)),
                key=lambda one: (one.interface, one.family, one.address),
            ),
            links=sorted((link for link in links if not _GUEST_TAP.fullmatch(link.name)), key=lambda link: link.name),
        )
        self._last = self._last or found
        return found

    async def route_to(self, address: str) -> Route:
        """Return the way to an IP address; all of it is None where there is none."""
        async with AsyncIPRoute() as netlink:
            try:
                (message,) = await netlink.route("get", dst=address)
            except NetlinkError:  # the kernel's answer for a destination without a route, or a forbidden one
                return Route(destination=address, interface=None, source=None, gateway=None)
            (link,) = [found async for found in await netlink.get_links(message.get_attr("RTA_OIF"))]
        return Route(
            destination=address,
            interface=link.get_attr("IFLA_IFNAME"),
            source=message.get_attr("RTA_PREFSRC"),
            gateway=_gateway(message),
        )

    async def changes(self) -> AsyncGenerator[NetworkChange, None]:
        """Yield changes since the first look, without an end; called again, those in between too.

        The kernel's messages only say when to look: what is told is the difference between two looks, so a message
        that was lost, or a link that went and came back within 0.2 s, leads to no wrong answer.
        """
        async with AsyncIPRoute() as netlink:
            await netlink.bind(_GROUPS)
            stirred = asyncio.Event()
            listener = asyncio.create_task(_listen(netlink, stirred), name="netlink")
            try:
                while True:
                    now = await self.facts()
                    before, self._last = self._last or now, now
                    for change in differences(before, now):
                        yield change
                    await _settle(stirred, listener)
            finally:
                listener.cancel()
                await asyncio.wait([listener])


def differences(before: NetworkFacts, now: NetworkFacts) -> list[NetworkChange]:
    """Say what became different, links first."""
    old, new = {link.name: link for link in before.links}, {link.name: link for link in now.links}
    changes = [
        _link_change(new.get(name), old.get(name)) for name in sorted({*old, *new}) if old.get(name) != new.get(name)
    ]
    had, has = {_spell(address) for address in before.addresses}, {_spell(address) for address in now.addresses}
    if had != has:
        data = {"added": sorted(has - had), "removed": sorted(had - has)}
        changes.append(NetworkChange("host.address", data))
    return changes


def _link_change(now: Link | None, before: Link | None) -> NetworkChange:
    link = now or before
    if link is None:
        raise ValueError("a link that is neither there now nor was before cannot have changed")
    up = now is not None and now.up
    data = {"interface": link.name, "present": now is not None, "up": up, "mtu": link.mtu, "mac": link.mac}
    return NetworkChange("host.link", data)


def _spell(address: Address) -> str:
    return f"{address.interface} {address.address}/{address.prefix_length}"


async def _listen(netlink: Any, stirred: asyncio.Event) -> None:
    while True:
        async for _ in netlink.get():  # one batch of messages
            stirred.set()


async def _settle(stirred: asyncio.Event, listener: "asyncio.Task[None]") -> None:
    """Wait for a message, then until none has come for a moment. Raises what ended the listener."""
    waiting = asyncio.create_task(stirred.wait())
    try:
        await asyncio.wait([waiting, listener], return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
    if listener.done():
        listener.result()
    until = asyncio.get_running_loop().time() + _LONGEST_S
    while stirred.is_set() and asyncio.get_running_loop().time() < until:
        stirred.clear()
        try:
            await asyncio.wait_for(stirred.wait(), _QUIET_S)
        except TimeoutError:
            return
    stirred.clear()


def _link(message: Any) -> Link:
    state, flags = message.get_attr("IFLA_OPERSTATE"), message["flags"]
    return Link(
        name=message.get_attr("IFLA_IFNAME"),
        mac=message.get_attr("IFLA_ADDRESS"),
        mtu=message.get_attr("IFLA_MTU"),
        # Drivers without an operational state, such as the loopback's, leave it UNKNOWN.
        up=state == "UP" or (state == "UNKNOWN" and bool(flags & _IFF_RUNNING)),
    )


def _address(message: Any, names: dict[int, str]) -> Address:
    # On a point-to-point link IFA_ADDRESS is the peer's address and IFA_LOCAL ours; elsewhere they agree.
    return Address(
        interface=names.get(message["index"], str(message["index"])),
        address=message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS"),
        prefix_length=message["prefixlen"],
        family="ipv4" if message["family"] == socket.AF_INET else "ipv6",
    )


def _gateway(message: Any) -> str | None:
    """Return the gateway; one of the other family travels in RTA_VIA."""
    via = message.get_attr("RTA_VIA")
    gateway: str | None = message.get_attr("RTA_GATEWAY") or (via and via.get("addr"))
    return gateway or None
