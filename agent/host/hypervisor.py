"""libvirt, for the event loop: each call in a thread with a deadline, on a connection that heals itself.

A call that libvirt does not answer cannot be ended from outside: its thread stays until libvirt answers or the
keep-alive gives the connection up. Calls about one domain take turns (agent.host.threads), so a domain that hangs, or
whose hook sleeps, costs one thread however often it is asked about, and others are served.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, TypeVar
from uuid import UUID

import libvirt

from agent.errors import DomainNotFound, EventsLost, HypervisorRefused, HypervisorTimeout, HypervisorUnavailable
from agent.host.libvirt_connection import Connection
from agent.host.libvirt_link import DomainEvent, is_transport_error
from agent.host.threads import Turns

T = TypeVar("T")
PowerState = Literal["running", "paused", "shut-off", "unknown"]

DEFAULT_THREADS = 4
#: Above the 4 s that libvirt takes where it asks QEMU for its capabilities anew.
DEFAULT_DEADLINE_S = 15.0
_EVENT_BACKLOG = 10_000
_KEEP_ALL = libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM | getattr(libvirt, "VIR_DOMAIN_UNDEFINE_KEEP_TPM", 0)

_POWER_STATES: dict[int, PowerState] = {
    libvirt.VIR_DOMAIN_RUNNING: "running",
    libvirt.VIR_DOMAIN_BLOCKED: "running",
    libvirt.VIR_DOMAIN_SHUTDOWN: "running",  # on its way down, QEMU still there
    libvirt.VIR_DOMAIN_PAUSED: "paused",
    libvirt.VIR_DOMAIN_PMSUSPENDED: "paused",
    libvirt.VIR_DOMAIN_SHUTOFF: "shut-off",
}


@dataclass(frozen=True, kw_only=True)
class DomainState:
    """What libvirt says of one domain. ``active``: QEMU is there, whether or not it is paused."""

    uuid: UUID
    name: str
    state: PowerState
    active: bool
    persistent: bool
    managed_save: bool
    autostart: bool

    @property
    def paused(self) -> bool:
        """Whether the guest is there and does not run."""
        return self.state == "paused"


@dataclass(frozen=True, kw_only=True)
class Versions:
    """Versions as ``9.0.0``; ``qemu`` is None where libvirt finds no QEMU."""

    libvirt: str
    qemu: str | None


class Hypervisor:
    """The libvirt of this host. An asynchronous context manager; calls connect by themselves where need be.

    Every method raises HypervisorUnavailable, HypervisorTimeout, and HypervisorRefused where libvirt said no;
    those about one domain DomainNotFound. Within the context the connection is kept up even while nobody calls, so
    that events arrive.
    """

    def __init__(self, uri: str, threads: int = DEFAULT_THREADS, deadline_s: float = DEFAULT_DEADLINE_S) -> None:
        self._uri = uri
        self._deadline_s = deadline_s
        self._turns = Turns(threads)
        self._connection = Connection(uri, deadline_s)
        self._keeper: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Hypervisor":
        self._keeper = asyncio.create_task(self._connection.keep(), name="libvirt-keeper")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
        await self._connection.stop()

    @property
    def connected(self) -> bool:
        """Whether there is a connection that is not known to be dead."""
        return self._connection.connected

    def on_event(self, callback: Callable[[DomainEvent], None]) -> Callable[[], None]:
        """Have ``callback`` called on the event loop for each event; returns what ends that."""
        return self._connection.on_event(callback)

    def on_connected(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Have ``callback`` called after each (re)connection: events before it may have been missed."""
        return self._connection.on_connected(callback)

    def events(self) -> AsyncIterator[DomainEvent]:
        """Return the events from this call on, in order, without an end.

        Raises EventsLost to a listener that fell 10,000 events behind; it has to list the domains and listen anew.
        """
        queue: asyncio.Queue[DomainEvent] = asyncio.Queue()
        return _drain(queue, self.on_event(queue.put_nowait))

    async def domains(self) -> list[DomainState]:
        """Return every domain of this host, by name."""
        return sorted(await self._host_call("domains", _list_domains), key=lambda domain: domain.name)

    async def domain(self, uuid: UUID) -> DomainState:
        """Return one domain."""
        return await self._domain_call("domain", uuid, _describe)

    async def state(self, uuid: UUID) -> PowerState:
        """Return one domain's state. A start that libvirt has not finished yet still shows as shut off."""
        return (await self.domain(uuid)).state

    async def inactive_xml(self, uuid: UUID, *, secure: bool = False) -> str:
        """Return the definition that the next start uses.

        With ``secure`` it holds passwords of graphics consoles: only for a text that goes straight back to
        ``define``, which would otherwise drop them. Never log, store or send it.
        """
        flags = libvirt.VIR_DOMAIN_XML_INACTIVE | (libvirt.VIR_DOMAIN_XML_SECURE if secure else 0)
        return await self._domain_call("inactive_xml", uuid, lambda domain: str(domain.XMLDesc(flags)))

    async def live_xml(self, uuid: UUID) -> str:
        """Return the running domain's definition, or the inactive one while it is shut off."""
        return await self._domain_call("live_xml", uuid, lambda domain: str(domain.XMLDesc(0)))

    async def define(self, xml: str) -> UUID:
        """Define a domain, or change the definition of the one with that UUID and name. Atomic."""
        # RNG validation is not asked for: it would refuse what libvirt itself gave us for some domains.
        return await self._host_call("define", lambda connection: UUID(connection.defineXML(xml).UUIDString()))

    async def undefine(self, uuid: UUID) -> None:
        """Take a definition away and leave every file; a domain that is not there is none."""
        try:
            await self._domain_call("undefine", uuid, lambda domain: domain.undefineFlags(_KEEP_ALL))
        except DomainNotFound:
            return

    async def has_secret(self, uuid: UUID) -> bool:
        """Return whether libvirt keeps a secret of this UUID."""
        return await self._host_call("has_secret", lambda connection: _has_secret(connection, uuid))

    async def versions(self) -> Versions:
        """Return the versions of libvirt and QEMU."""
        return await self._host_call("versions", _versions)

    async def _domain_call(self, what: str, uuid: UUID, work: Callable[[Any], T]) -> T:
        def find_and_work(connection: Any) -> T:
            return work(connection.lookupByUUIDString(str(uuid)))

        try:
            return await self._call(what, uuid, find_and_work)
        except libvirt.libvirtError as err:
            if err.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                raise DomainNotFound(vm=str(uuid)) from err
            raise HypervisorRefused(call=what, reason=str(err)) from err

    async def _host_call(self, what: str, work: Callable[[Any], T]) -> T:
        try:
            return await self._call(what, what, work)
        except libvirt.libvirtError as err:
            raise HypervisorRefused(call=what, reason=str(err)) from err

    async def _call(self, what: str, key: UUID | str, work: Callable[[Any], T]) -> T:
        """Call within the deadline; of libvirt's errors only those about what was asked get through."""
        try:
            async with asyncio.timeout(self._deadline_s):
                return await self._call_in_turn(key, work)
        except TimeoutError as err:
            raise HypervisorTimeout(uri=self._uri, call=what, timeout_s=self._deadline_s) from err
        except libvirt.libvirtError as err:
            if is_transport_error(err):
                raise HypervisorUnavailable(uri=self._uri, reason=str(err)) from err
            raise

    async def _call_in_turn(self, key: UUID | str, work: Callable[[Any], T]) -> T:
        """Call, and once more on a new connection: a restart of libvirtd may show only on the first call after it.

        Every call may be repeated: reading changes nothing, and defining the same text twice is defining it once.
        """
        async with self._turns.take(key) as turn:
            try:
                return await self._connection.use(turn, work)
            except libvirt.libvirtError as err:
                if not is_transport_error(err):
                    raise
            return await self._connection.use(turn, work)


async def _drain(queue: asyncio.Queue[DomainEvent], unsubscribe: Callable[[], None]) -> AsyncIterator[DomainEvent]:
    try:
        while queue.qsize() <= _EVENT_BACKLOG:
            yield await queue.get()
        raise EventsLost(count=queue.qsize())
    finally:
        unsubscribe()


def _list_domains(connection: Any) -> list[DomainState]:
    states = []
    for domain in connection.listAllDomains():
        try:
            states.append(_describe(domain))
        except libvirt.libvirtError as err:
            if err.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:  # undefined since it was listed
                raise
    return states


def _describe(domain: Any) -> DomainState:
    return DomainState(
        uuid=UUID(domain.UUIDString()),
        name=domain.name(),
        state=_POWER_STATES.get(domain.state()[0], "unknown"),
        active=bool(domain.isActive()),
        persistent=bool(domain.isPersistent()),
        managed_save=bool(domain.hasManagedSaveImage()),
        autostart=bool(domain.autostart()),
    )


def _has_secret(connection: Any, uuid: UUID) -> bool:
    try:
        connection.secretLookupByUUIDString(str(uuid))
    except libvirt.libvirtError as err:
        if err.get_error_code() == libvirt.VIR_ERR_NO_SECRET:
            return False
        raise
    return True


def _versions(connection: Any) -> Versions:
    try:
        qemu = _dotted(connection.getVersion())
    except libvirt.libvirtError as err:
        if is_transport_error(err):
            raise
        qemu = None
    return Versions(libvirt=_dotted(connection.getLibVersion()), qemu=qemu)


def _dotted(number: int) -> str:
    """Turn libvirt's 9001002 into 9.1.2."""
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"
