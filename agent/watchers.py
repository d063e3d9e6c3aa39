"""What the agent watches while it serves: the hook's notes, libvirt's events, the network."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from uuid import UUID

from agent.host.event_log import EventLog
from agent.host.hypervisor import DomainState, Hypervisor
from agent.host.inventory import Inventory
from agent.host.libvirt_link import DomainEvent
from agent.host.network import Network
from agent.host.spool import Spool
from agent.web.errors import Error
from agent.web.log import kv
from agent.wire.base import utc_now
from agent.wire.event import HostEvent

log = logging.getLogger(__name__)

#: libvirt tells of a start or stop after its hook has run. If the hook left no note of it by then, it is not in
#: force (missing, or unknown to a libvirtd that was started before it came) and libvirt's word has to do. The spool
#: is looked at five times a second; 3 s leave room for a slow disk. A second note of one stop does no harm.
HOOK_GRACE_S = 3.0
_SPOOL_TIMEOUT_S = 60.0
_BY_HOOK = {"started": "vm.started", "stopped": "vm.stopped"}
_LIFE = ("vm.starting", "vm.started", "vm.stopped")
#: How long to wait before an event that the disk did not take is tried again.
APPEND_AGAIN_S = 1.0


class Watchers:
    """One method for each thing that is watched; each runs until it is cancelled or breaks."""

    def __init__(
        self,
        *,
        event_log: EventLog,
        spool: Spool,
        hypervisor: Hypervisor,
        inventory: Inventory,
        network: Network,
        hook_grace_s: float = HOOK_GRACE_S,
    ) -> None:
        self._event_log = event_log
        self._spool = spool
        self._hypervisor = hypervisor
        self._inventory = inventory
        self._network = network
        self._hook_grace_s = hook_grace_s
        self._told_by_hook: dict[tuple[str, UUID], float] = {}
        self._unconfirmed: asyncio.Queue[tuple[float, DomainEvent]] = asyncio.Queue()

    async def drain(self) -> None:
        """Work the hook's notes off, then look again at the host files of each VM that started or stopped."""
        events: list[HostEvent] = []
        try:
            await asyncio.to_thread(lambda: events.extend(self._spool.drain(self._event_log)))
        finally:  # what is in the log already will not be drained again
            now = asyncio.get_running_loop().time()
            for event in events:
                if event.vm is not None:
                    self._told_by_hook[event.type, event.vm] = now
            await self._note(_started_or_stopped(events))

    async def watch_spool(self) -> None:
        """Drain whenever the hook leaves a note."""
        while True:
            if await self._spool.changed(_SPOOL_TIMEOUT_S):
                await self.drain()

    async def watch_libvirt(self) -> None:
        """Log definitions, and remember starts and stops until the hook has confirmed them."""
        async for event in self._hypervisor.events():
            if event.kind in _BY_HOOK:
                self._unconfirmed.put_nowait((asyncio.get_running_loop().time(), event))
            else:
                data = {} if event.old_name is None else {"old_name": event.old_name}
                await self._append(f"vm.{event.kind}", event, data)
                if event.kind == "renamed":
                    await self._note([event.uuid])

    async def watch_domains(self) -> None:
        """Look at every domain now, and again whenever libvirt was away and is back: its host files, and its life."""
        connected = asyncio.Event()
        connected.set()
        unsubscribe = self._hypervisor.on_connected(connected.set)
        try:
            while True:
                await connected.wait()
                connected.clear()
                told = await asyncio.to_thread(self._told)
                domains = await self._hypervisor.domains()
                await self._note([domain.uuid for domain in domains])
                if await self._catch_up(domains, told):
                    connected.set()  # what went on meanwhile may be in the log already, and must not be the older word
        finally:
            unsubscribe()

    def _told(self) -> dict[UUID, str]:
        """Return the newest word on each domain, but for those that are starting now: their end will be told."""
        told = self._event_log.newest_of(_LIFE)
        return {vm: kind for vm, kind in told.items() if kind != "vm.starting" or not self._inventory.is_starting(vm)}

    async def _catch_up(self, domains: Iterable[DomainState], told: Mapping[UUID, str]) -> bool:
        """Log what nobody told of: the hook could not write its note, and libvirt or this agent was away.

        Return whether there was any. A start or stop in this very moment may be told twice, which does no harm.
        """
        caught = False
        for domain in domains:
            word = told.get(domain.uuid)
            if word is None or word == ("vm.started" if domain.active else "vm.stopped"):
                continue
            kind, found = ("vm.started", "found running") if domain.active else ("vm.stopped", "found shut off")
            await self._append(kind, domain, {"reason": found})
            caught = True
        return caught

    async def watch_unconfirmed(self) -> None:
        """Log each start or stop that the hook did not tell of."""
        clock = asyncio.get_running_loop().time
        while True:
            heard, event = await self._unconfirmed.get()
            await asyncio.sleep(max(0.0, heard + self._hook_grace_s - clock()))
            kind = _BY_HOOK[event.kind]
            # The hook runs before libvirt tells, so its note may be drained a little earlier than the event comes.
            if self._told_by_hook.get((kind, event.uuid), float("-inf")) >= heard - self._hook_grace_s:
                continue
            await self._append(kind, event, {"reason": "not told by the hook"})
            await self._note([event.uuid])

    async def watch_network(self) -> None:
        """Log addresses and links that change."""
        async for change in self._network.changes():
            await self._log(partial(self._event_log.append, change.type, "network", None, None, change.data))

    async def _append(self, type: str, about: DomainEvent | DomainState, data: dict[str, str]) -> None:
        await self._log(partial(self._event_log.append, type, "libvirt", about.uuid, about.name, data))

    async def _log(self, append: Callable[..., HostEvent]) -> None:
        """Log an event however long the disk does not take it: nobody tells of it again. Later ones wait behind it."""
        at = utc_now()
        while True:
            try:
                await asyncio.to_thread(append, at=at)
            except Error as err:
                log.warning(kv("event-waits", reason=err, again_in_s=APPEND_AGAIN_S))
                await asyncio.sleep(APPEND_AGAIN_S)
            else:
                return

    async def _note(self, vms: Iterable[UUID]) -> None:
        """Keep what the hook must find at the next start of these. One that cannot be read does not stop the others."""
        for vm in vms:
            try:
                await self._inventory.note_host_files(vm)
            except Error as err:
                log.warning(kv("host-files-not-noted", vm=vm, reason=err))


def _started_or_stopped(events: Iterable[HostEvent]) -> list[UUID]:
    """Name each VM once. A first start made its host files, and only while it runs does libvirt name its firmware."""
    seen = {event.vm: None for event in events if event.type in {"vm.started", "vm.stopped"}}
    return [vm for vm in seen if vm is not None]
