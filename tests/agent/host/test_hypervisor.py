"""libvirt behind a deadline; here libvirt's own test driver, in test_hypervisor_real a real libvirtd."""

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import libvirt
import pytest

from agent.errors import DomainNotFound, EventsLost, HypervisorRefused, HypervisorTimeout, HypervisorUnavailable
from agent.host import hypervisor as module
from agent.host.hypervisor import Hypervisor
from agent.host.libvirt_link import DomainEvent

#: The one URI of the test driver whose connections share their domains.
URI = "test:///default"
VM = UUID("6e0f1c1e-6d9e-4b8e-9f57-1b9b4c3f8a11")


def domain_xml(name: str = "win11", uuid: UUID = VM) -> str:
    return (
        f"<domain type='test'><name>{name}</name><uuid>{uuid}</uuid><memory>65536</memory>"
        "<os><type>hvm</type></os><devices><graphics type='vnc' passwd='hush'/></devices></domain>"
    )


@pytest.fixture
async def hypervisor() -> AsyncIterator[Hypervisor]:
    """Return a host without a domain, once it has told of all that were removed: events come a moment later."""
    async with Hypervisor(URI) as opened:
        there, events = await opened.domains(), opened.events()
        await on_connection(opened, undefine_all)
        removed: set[UUID] = set()
        async with asyncio.timeout(10):
            while {domain.uuid for domain in there} - removed:
                event = await anext(events)
                removed |= {event.uuid} if event.kind == "undefined" else set()
        yield opened


def undefine_all(connection: Any) -> None:
    """Remove what the driver brings along, and what a test left."""
    for domain in connection.listAllDomains():
        if domain.isActive():
            domain.destroy()
        domain.undefine()


async def on_connection(hypervisor: Hypervisor, work: object) -> None:
    """Do on the same connection what the agent itself never does, such as starting a domain."""
    await hypervisor._host_call("test", work)  # type: ignore[arg-type]


async def test_a_defined_domain_is_listed_and_described(hypervisor: Hypervisor) -> None:
    assert await hypervisor.define(domain_xml()) == VM

    (listed,) = await hypervisor.domains()

    assert (listed.uuid, listed.name, listed.state) == (VM, "win11", "shut-off")
    assert (listed.active, listed.paused, listed.persistent, listed.managed_save) == (False, False, True, False)
    assert await hypervisor.domain(VM) == listed
    assert await hypervisor.state(VM) == "shut-off"


async def test_domains_are_listed_by_name(hypervisor: Hypervisor) -> None:
    for name in ("b", "c", "a"):
        await hypervisor.define(domain_xml(name, uuid4()))

    assert [domain.name for domain in await hypervisor.domains()] == ["a", "b", "c"]


async def test_running_and_paused_domains_say_so(hypervisor: Hypervisor) -> None:
    await hypervisor.define(domain_xml())
    await on_connection(hypervisor, lambda connection: connection.lookupByName("win11").create())
    assert await hypervisor.state(VM) == "running"

    await on_connection(hypervisor, lambda connection: connection.lookupByName("win11").suspend())

    paused = await hypervisor.domain(VM)
    assert (paused.state, paused.paused, paused.active) == ("paused", True, True)


async def test_an_unknown_domain_is_not_found(hypervisor: Hypervisor) -> None:
    for call in (hypervisor.domain, hypervisor.inactive_xml, hypervisor.live_xml):
        with pytest.raises(DomainNotFound):
            await call(uuid4())


async def test_passwords_are_in_the_xml_only_when_asked_for(hypervisor: Hypervisor) -> None:
    await hypervisor.define(domain_xml())

    assert "hush" not in await hypervisor.inactive_xml(VM)
    assert "hush" not in await hypervisor.live_xml(VM)
    assert "hush" in await hypervisor.inactive_xml(VM, secure=True)


async def test_xml_that_libvirt_refuses_names_its_reason(hypervisor: Hypervisor) -> None:
    with pytest.raises(HypervisorRefused, match="missing name information"):
        await hypervisor.define("<domain/>")


async def test_versions_are_dotted(hypervisor: Hypervisor) -> None:
    versions = await hypervisor.versions()

    number = libvirt.getVersion()
    assert versions.libvirt == f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"


async def test_an_unreachable_libvirt_is_named_and_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    async with Hypervisor("qemu+unix:///system?socket=/nonexistent") as unreachable:
        with pytest.raises(HypervisorUnavailable, match="/nonexistent"):
            await unreachable.domains()
        assert not unreachable.connected

    assert capfd.readouterr().err == ""


async def test_calls_work_without_a_keeper_and_connect_by_themselves() -> None:
    lone = Hypervisor(URI)

    assert (await lone.versions()).libvirt
    assert lone.connected


async def test_calls_one_after_the_other_share_a_link_and_calls_at_once_do_not(hypervisor: Hypervisor) -> None:
    lone = {await hypervisor._host_call("test", id) for _ in range(3)}
    together = threading.Barrier(3, timeout=10)

    def meet(connection: Any) -> int:
        together.wait()
        return id(connection)

    at_once = await asyncio.gather(*(hypervisor._host_call(f"test {number}", meet) for number in range(3)))

    assert len(lone) == 1
    assert len(set(at_once)) == 3


async def test_when_one_link_proves_dead_the_idle_ones_are_not_tried(hypervisor: Hypervisor) -> None:
    together = threading.Barrier(2, timeout=10)

    def meet(connection: Any) -> Any:
        together.wait()
        return connection

    def fail_once(connection: Any) -> None:
        tried.append(connection)
        if len(tried) == 1:
            err = libvirt.libvirtError("the connection died")
            err.err = (libvirt.VIR_ERR_INTERNAL_ERROR, libvirt.VIR_FROM_RPC, "", 2, None, None, None, -1, -1)
            raise err

    tried: list[Any] = []
    idle = await asyncio.gather(*(hypervisor._host_call(f"test {number}", meet) for number in range(2)))

    await hypervisor._host_call("test", fail_once)

    assert tried[0] in idle
    assert tried[1] not in idle


async def test_a_link_whose_caller_gave_up_is_not_used_again_and_closed_when_its_call_ends() -> None:
    used: list[Any] = []
    let_go = threading.Event()

    def linger(connection: Any) -> None:
        used.append(connection)
        let_go.wait(10)
        used.append(connection.isAlive())

    async with Hypervisor(URI, deadline_s=0.5) as hasty:
        with pytest.raises(HypervisorTimeout):
            await hasty._host_call("linger", linger)
        others = [await hasty._host_call("test", lambda connection: connection)]
        let_go.set()
        # Its turn comes when the call before it has ended; a link that was put back then would be taken first.
        others.append(await hasty._host_call("linger", lambda connection: connection))

    lingered, was_alive = used
    assert was_alive
    assert lingered not in others
    with pytest.raises(libvirt.libvirtError):
        lingered.getHostname()


async def test_events_arrive_in_order(hypervisor: Hypervisor) -> None:
    await hypervisor.domains()
    events = hypervisor.events()
    await hypervisor.define(domain_xml())
    await on_connection(hypervisor, lambda connection: connection.lookupByName("win11").create())
    await on_connection(hypervisor, lambda connection: connection.lookupByName("win11").destroy())
    await on_connection(hypervisor, lambda connection: connection.lookupByName("win11").undefine())

    async with asyncio.timeout(5):
        seen = [await anext(events) for _ in range(4)]

    assert [event.kind for event in seen] == ["defined", "started", "stopped", "undefined"]
    assert {(event.uuid, event.name) for event in seen} == {(VM, "win11")}


async def test_a_listener_that_is_too_slow_is_told(hypervisor: Hypervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_EVENT_BACKLOG", 1)
    await hypervisor.domains()
    events = hypervisor.events()
    delivered: list[DomainEvent] = []
    hypervisor.on_event(delivered.append)
    for name in ("a", "b", "c"):
        await hypervisor.define(domain_xml(name, uuid4()))
    async with asyncio.timeout(10):
        while len(delivered) < 3:
            await asyncio.sleep(0.01)

    async def listen() -> None:
        async for _ in events:
            await asyncio.sleep(0)

    with pytest.raises(EventsLost):
        await asyncio.wait_for(listen(), 5)


async def test_a_callback_that_was_withdrawn_is_not_called(hypervisor: Hypervisor) -> None:
    await hypervisor.domains()
    seen: list[DomainEvent] = []
    withdraw = hypervisor.on_event(seen.append)
    withdraw()
    withdraw()
    events = hypervisor.events()

    await hypervisor.define(domain_xml())
    async with asyncio.timeout(5):
        await anext(events)

    assert seen == []
