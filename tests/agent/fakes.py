"""The process boundary of the agent in memory: libvirt and the network. Everything behind them is real."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self
from uuid import UUID, uuid4
from xml.sax.saxutils import escape

from lxml import etree

from agent.errors import DomainNotFound, HypervisorUnavailable
from agent.host.hypervisor import DomainState, PowerState, Versions
from agent.host.libvirt_link import DomainEvent, DomainEventKind
from agent.host.network import NetworkChange, NetworkFacts
from agent.wire.host import HostFacts, Route


@dataclass
class FakeDomain:
    """One domain of FakeHypervisor; tests set its fields."""

    xml: str
    uuid: UUID
    name: str
    state: PowerState = "shut-off"
    persistent: bool = True
    managed_save: bool = False


@dataclass
class FakeHypervisor:
    """Hypervisor's methods over domains in memory. ``failure`` is raised by every call that would ask libvirt."""

    uri: str = "fake:///"
    failure: Exception | None = None
    connected: bool = True
    by_uuid: dict[UUID, FakeDomain] = field(default_factory=dict)
    defined: list[str] = field(default_factory=list)
    _listeners: list[Callable[[DomainEvent], None]] = field(default_factory=list)
    _on_connected: list[Callable[[], None]] = field(default_factory=list)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.connected = False

    def add(self, xml: str) -> FakeDomain:
        """Define a domain as an administrator does."""
        root = etree.fromstring(xml)
        domain = FakeDomain(xml, UUID(root.findtext("uuid")), root.findtext("name") or "")
        self.by_uuid[domain.uuid] = domain
        return domain

    def fail(self, reason: str = "the socket is gone") -> None:
        """Make libvirt unreachable; ``failure = None`` brings it back."""
        self.failure = HypervisorUnavailable(uri=self.uri, reason=reason)

    def tell(self, kind: DomainEventKind, domain: FakeDomain, old_name: str | None = None) -> None:
        """Send an event."""
        for listener in list(self._listeners):
            listener(DomainEvent(kind=kind, uuid=domain.uuid, name=domain.name, old_name=old_name))

    def reconnect(self) -> None:
        """Tell those who wait for a new connection."""
        for callback in list(self._on_connected):
            callback()

    def on_event(self, callback: Callable[[DomainEvent], None]) -> Callable[[], None]:
        self._listeners.append(callback)
        return lambda: self._listeners.remove(callback)

    def on_connected(self, callback: Callable[[], None]) -> Callable[[], None]:
        self._on_connected.append(callback)
        return lambda: self._on_connected.remove(callback)

    def events(self) -> AsyncIterator[DomainEvent]:
        queue: asyncio.Queue[DomainEvent] = asyncio.Queue()
        return _drain(queue, self.on_event(queue.put_nowait))

    async def domains(self) -> list[DomainState]:
        self._check()
        return sorted(map(_state, self.by_uuid.values()), key=lambda domain: domain.name)

    async def domain(self, uuid: UUID) -> DomainState:
        return _state(self._find(uuid))

    async def state(self, uuid: UUID) -> PowerState:
        return self._find(uuid).state

    async def inactive_xml(self, uuid: UUID, *, secure: bool = False) -> str:
        return self._find(uuid).xml

    async def live_xml(self, uuid: UUID) -> str:
        return self._find(uuid).xml

    async def define(self, xml: str) -> UUID:
        self._check()
        self.defined.append(xml)
        root = etree.fromstring(xml)
        uuid = UUID(root.findtext("uuid"))
        if uuid in self.by_uuid:
            self.by_uuid[uuid].xml = xml
        else:
            self.add(xml)
        return uuid

    async def undefine(self, uuid: UUID) -> None:
        self._check()
        self.by_uuid.pop(uuid, None)

    async def versions(self) -> Versions:
        self._check()
        return Versions(libvirt="9.0.0", qemu="7.2.17")

    def _check(self) -> None:
        if self.failure is not None:
            raise self.failure

    def _find(self, uuid: UUID) -> FakeDomain:
        self._check()
        if uuid not in self.by_uuid:
            raise DomainNotFound(vm=str(uuid))
        return self.by_uuid[uuid]


async def _drain(queue: asyncio.Queue[DomainEvent], unsubscribe: Callable[[], None]) -> AsyncIterator[DomainEvent]:
    try:
        while True:
            yield await queue.get()
    finally:
        unsubscribe()


def _state(domain: FakeDomain) -> DomainState:
    return DomainState(
        uuid=domain.uuid,
        name=domain.name,
        state=domain.state,
        active=domain.state in {"running", "paused"},
        persistent=domain.persistent,
        managed_save=domain.managed_save,
        autostart=False,
    )


def domain_xml(
    *,
    name: str = "win11",
    uuid: UUID | None = None,
    disks: dict[str, Path] | None = None,
    nvram: Path | None = None,
    tpm: bool = False,
) -> str:
    """Return a domain's inactive XML as libvirt writes it: qcow2 disks by target; UEFI where ``nvram`` is given."""
    firmware = "" if nvram is None else _UEFI.format(nvram=escape(str(nvram)))
    devices = "".join(_DISK.format(path=escape(str(path)), target=target) for target, path in (disks or {}).items())
    return _DOMAIN.format(
        name=escape(name), uuid=uuid or uuid4(), firmware=firmware, devices=devices + (_TPM if tpm else "")
    )


_DOMAIN = """<domain type='qemu'>
  <name>{name}</name>
  <uuid>{uuid}</uuid>
  <memory unit='KiB'>131072</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
{firmware}  </os>
  <devices>
{devices}  </devices>
</domain>
"""
_UEFI = """    <loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE_4M.fd</loader>
    <nvram template='/usr/share/OVMF/OVMF_VARS_4M.fd'>{nvram}</nvram>
"""
_DISK = """    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='{path}'/>
      <target dev='{target}' bus='virtio'/>
    </disk>
"""
_TPM = """    <tpm model='tpm-crb'>
      <backend type='emulator' version='2.0'/>
    </tpm>
"""


@dataclass
class FakeNetwork:
    """Network's methods; ``change`` lets the watcher see one."""

    _changes: "asyncio.Queue[NetworkChange]" = field(default_factory=asyncio.Queue)

    def change(self, change: NetworkChange) -> None:
        """Let something change."""
        self._changes.put_nowait(change)

    async def facts(self) -> NetworkFacts:
        return NetworkFacts(addresses=HostFacts.example().addresses, links=HostFacts.example().links)

    async def route_to(self, address: str) -> Route:
        return Route(destination=address, interface="br0", source="192.0.2.7", gateway=None)

    async def changes(self) -> AsyncIterator[NetworkChange]:
        while True:
            yield await self._changes.get()
