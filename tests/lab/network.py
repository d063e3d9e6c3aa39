"""Network cables between private hosts: veth pairs made, cut and renumbered through netlink."""

import ipaddress
import os
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from pyroute2 import IPRoute, netns

from tests.lab.errors import LabError
from tests.lab.namespace import Namespace

T = TypeVar("T")


def in_network(process: int, work: Callable[[Any], T]) -> T:
    """Run ``work(ipr)`` in the network namespace of a process.

    A thread of its own enters the namespace and ends there: pyroute2's synchronous client refuses to work in a
    thread whose event loop runs, and no other thread may find itself in a strange network.
    """
    results: list[T] = []
    failures: list[BaseException] = []

    def enter_and_work() -> None:
        try:
            with open(f"/proc/{process}/ns/net") as namespace:  # noqa: PTH123 - a namespace's file is only a handle
                netns.setns(namespace.fileno())
            with IPRoute() as ipr:
                results.append(work(ipr))
        except BaseException as err:  # noqa: BLE001 - raised again below, in the caller's thread
            failures.append(err)

    thread = threading.Thread(target=enter_and_work, name="lab-netlink")
    thread.start()
    thread.join()
    if failures:
        raise LabError(f"netlink: {failures[0]}") from failures[0]
    return results[0]


class End:
    """One end of a link: an interface with one address, in the network of ``namespace`` or of this process."""

    def __init__(self, namespace: Namespace | None, interface: str, address: str) -> None:
        self.namespace, self.interface = namespace, interface
        self._address = ipaddress.IPv4Interface(address)

    @property
    def address(self) -> str:
        """The address without its prefix length."""
        return str(self._address.ip)

    @property
    def process(self) -> int:
        """A process in this end's network."""
        return os.getpid() if self.namespace is None else self.namespace.pid

    def set_up(self) -> None:
        """Give the new interface its address and set it up."""
        self._change_address("add")
        self.up()

    def up(self) -> None:
        """Set the interface up."""
        self._set_state("up")

    def down(self) -> None:
        """Set the interface down; the other end loses its carrier."""
        self._set_state("down")

    def set_address(self, address: str) -> None:
        """Replace the address by another, such as ``10.77.0.9/24``."""
        self._change_address("del")
        self._address = ipaddress.IPv4Interface(address)
        self._change_address("add")

    def _set_state(self, state: str) -> None:
        in_network(self.process, lambda ipr: ipr.link("set", index=_index(ipr, self.interface), state=state))

    def _change_address(self, command: str) -> None:
        address, prefix = self.address, self._address.network.prefixlen
        in_network(
            self.process,
            lambda ipr: ipr.addr(command, index=_index(ipr, self.interface), address=address, prefixlen=prefix),
        )


class Link:
    """A cable with two ends, ``a`` and ``b``."""

    def __init__(self, a: End, b: End) -> None:
        self.a, self.b = a, b

    def cut(self) -> None:
        """Pull the cable: packets are lost, connections hang."""
        self.a.down()

    def restore(self) -> None:
        """Plug it in again. Addresses and routes of both ends are as before."""
        self.a.up()

    def remove(self) -> None:
        """Remove both interfaces. They also go with either network."""
        in_network(self.a.process, lambda ipr: ipr.link("del", index=_index(ipr, self.a.interface)))


def link(
    a: Namespace | None, b: Namespace, address_a: str = "10.77.0.1/24", address_b: str = "10.77.0.2/24", name: str = ""
) -> Link:
    """Connect two networks and return the link, up. ``a=None`` is the network of this process.

    Interfaces are named after the other end, or both ``name`` when it is given; at most 15 bytes.
    """
    at_a = End(a, name or f"to-{b.name}"[:15], address_a)
    at_b = End(b, name or f"to-{a.name if a else 'test'}"[:15], address_b)
    peer = {"ifname": at_b.interface, "net_ns_pid": at_b.process}
    in_network(at_a.process, lambda ipr: ipr.link("add", ifname=at_a.interface, kind="veth", peer=peer))
    at_a.set_up()
    at_b.set_up()
    return Link(at_a, at_b)


def _index(ipr: Any, interface: str) -> int:
    found = ipr.link_lookup(ifname=interface)
    if not found:
        raise LabError(f"no interface {interface}")
    return int(found[0])
