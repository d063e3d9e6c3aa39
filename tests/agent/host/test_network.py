"""The host's network, in network namespaces that the tests make."""

import asyncio
import ctypes
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from pyroute2 import AsyncIPRoute, netns

from agent.host.network import Network, NetworkChange, NetworkFacts, differences
from agent.wire.host import Address, Link


def make_network() -> None:
    if ctypes.CDLL(None, use_errno=True).unshare(netns.CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "unshare(2) was refused; run the tests as root")


def in_own_network(test: Callable[[Any], Awaitable[None]]) -> None:
    """Run ``test(netlink)`` in a thread, and event loop, whose network is a new one with a veth pair in it.

    ``unshare`` holds for the calling thread alone, and the namespace ends with that thread.
    """
    failures: list[BaseException] = []

    async def body() -> None:
        async with AsyncIPRoute() as netlink:
            await netlink.link("add", ifname="up0", kind="veth", peer="far0")
            for name in ("lo", "up0", "far0"):
                await set_link(netlink, name, "up")
            await set_address(netlink, "add", "192.0.2.7")
            await until_up()
            await test(netlink)

    def enter() -> None:
        try:
            make_network()
            asyncio.run(body())
        except BaseException as err:  # noqa: BLE001 - raised again below, in the test's own thread
            failures.append(err)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join(30)
    if failures:
        raise failures[0]


async def until_up() -> None:
    """The kernel tells of a carrier a moment after the link was set up."""
    async with asyncio.timeout(10):
        while not all(link.up for link in (await Network().facts()).links):
            await asyncio.sleep(0.01)


async def set_link(netlink: Any, name: str, state: str) -> None:
    (index,) = await netlink.link_lookup(ifname=name)
    await netlink.link("set", index=index, state=state)


async def set_address(netlink: Any, action: str, address: str) -> None:
    (index,) = await netlink.link_lookup(ifname="up0")
    await netlink.addr(action, index=index, address=address, prefixlen=24)


async def find(changes: AsyncIterator[NetworkChange], wanted: Callable[[NetworkChange], bool]) -> NetworkChange:
    async with asyncio.timeout(10):
        while True:
            change = await anext(changes)
            if wanted(change):
                return change


def test_addresses_and_links_are_told() -> None:
    async def look(netlink: Any) -> None:
        facts = await Network().facts()

        assert Address(interface="up0", address="192.0.2.7", prefix_length=24, family="ipv4") in facts.addresses
        assert {link.name: link.up for link in facts.links} == {"lo": True, "up0": True, "far0": True}
        assert all(link.mtu and link.mac for link in facts.links)

    in_own_network(look)


def test_a_link_that_is_down_or_has_no_carrier_is_not_up() -> None:
    wanted = {"lo": True, "up0": False, "far0": False}

    async def look(netlink: Any) -> None:
        await set_link(netlink, "far0", "down")

        async with asyncio.timeout(10):  # the other end of the cable notices a moment later
            while {link.name: link.up for link in (await Network().facts()).links} != wanted:
                await asyncio.sleep(0.01)

    in_own_network(look)


def test_guests_taps_are_left_out() -> None:
    async def look(netlink: Any) -> None:
        await netlink.link("add", ifname="vnet12", kind="veth", peer="vnetwork0")

        names = {link.name for link in (await Network().facts()).links}

        assert "vnet12" not in names
        assert "vnetwork0" in names

    in_own_network(look)


def test_the_route_names_the_source_address_towards_a_destination() -> None:
    async def look(netlink: Any) -> None:
        await netlink.route("add", dst="198.51.100.0/24", gateway="192.0.2.1")
        near, far = await Network().route_to("192.0.2.9"), await Network().route_to("198.51.100.5")
        none = await Network().route_to("203.0.113.5")

        assert (near.interface, near.source, near.gateway) == ("up0", "192.0.2.7", None)
        assert (far.interface, far.source, far.gateway) == ("up0", "192.0.2.7", "192.0.2.1")
        assert (none.destination, none.interface, none.source) == ("203.0.113.5", None, None)
        assert (await Network().route_to("::1")).source == "::1"

    in_own_network(look)


@pytest.mark.case("P7")
def test_an_address_that_moves_and_a_link_that_goes_and_comes_back_are_told() -> None:
    async def look(netlink: Any) -> None:
        network = Network()
        await network.facts()
        changes = network.changes()
        first = asyncio.ensure_future(find(changes, lambda change: change.type == "host.address"))
        await asyncio.sleep(0)

        await set_address(netlink, "add", "192.0.2.8")
        assert "up0 192.0.2.8/24" in (await first).data["added"]

        await set_address(netlink, "del", "192.0.2.8")
        gone = await find(changes, lambda change: bool(change.data.get("removed")))
        assert gone.data["removed"] == ["up0 192.0.2.8/24"]

        await set_link(netlink, "far0", "down")
        down = await find(changes, lambda change: change.data.get("interface") == "up0")
        assert (down.type, down.data["present"], down.data["up"]) == ("host.link", True, False)

        await set_link(netlink, "far0", "up")
        up = await find(changes, lambda change: change.data.get("interface") == "up0" and change.data["up"])
        assert up.type == "host.link"

    in_own_network(look)


def test_what_changed_while_nobody_listened_is_told_to_the_next_listener() -> None:
    async def look(netlink: Any) -> None:
        network = Network()
        await network.facts()
        changes = network.changes()
        listening = asyncio.ensure_future(find(changes, lambda change: change.type == "host.address"))
        await asyncio.sleep(0)
        await set_address(netlink, "add", "192.0.2.8")
        await listening
        await changes.aclose()

        await set_address(netlink, "add", "192.0.2.9")

        change = await find(network.changes(), lambda change: "up0 192.0.2.9/24" in change.data.get("added", []))
        assert change.type == "host.address"

    in_own_network(look)


def test_a_link_that_is_gone_is_told_as_not_present() -> None:
    link = Link(name="br0", mac=None, mtu=1500, up=True)

    (change,) = differences(NetworkFacts(links=[link]), NetworkFacts())

    assert (change.data["interface"], change.data["present"], change.data["up"]) == ("br0", False, False)
    assert differences(NetworkFacts(links=[link]), NetworkFacts(links=[link])) == []
