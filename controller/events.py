"""What the agents' event logs tell: one follower per host keeps its records true.

A follower reads facts and VMs, then waits at the agent's event log (long poll) until something happens or it is
time to look again. How far the log was worked off is recorded in the transaction that does the work, so an event
has its effect once, whatever dies in between. A host that cannot be reached is shown with the reason and tried
again, ever more slowly, for as long as it is enrolled.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from agent.client import AgentProblem, AgentUnreachable
from agent.web.log import kv
from agent.wire.base import utc_now
from agent.wire.event import HostEvent, HostEvents
from agent.wire.host import HostFacts
from agent.wire.vm import HostVm
from controller.db import Database, write
from controller.errors import DatabaseFailed, HostNotFound, VmNotFound
from controller.hosts import Hosts
from controller.store import clones, events, groups, host_files, hosts, operations, vms

log = logging.getLogger("coldframe.hosts")

#: A VM may have written its host files since: the copies that are held are no longer sure to be the newest.
_DIRTYING = frozenset({"vm.starting", "vm.started", "vm.stopped"})


@dataclass(frozen=True, kw_only=True)
class Pace:
    """``poll_s``: a full look at a host at least so often, for what no event tells of (its agent was down, say).

    ``retry_s`` doubles to ``retry_max_s`` while a host does not answer: one that comes back is used again within it.
    """

    poll_s: float = 60.0
    event_wait_s: float = 25.0
    retry_s: float = 1.0
    retry_max_s: float = 30.0


class Follower:
    """Follows one host until it is cancelled or the host is removed. ``nudge`` wakes the engine for new operations."""

    def __init__(self, name: str, db: Database, registry: Hosts, nudge: Callable[[], None], pace: Pace) -> None:
        self.name = name
        self.db = db
        self.registry = registry
        self.nudge = nudge
        self.pace = pace

    async def run(self) -> None:
        """Follow. Every failure is recorded and tried again; none ends the task."""
        delay_s = self.pace.retry_s
        while True:
            try:
                await self.look()
                delay_s = self.pace.retry_s
                await self._wait_for_change()
                continue
            except HostNotFound:
                return
            except AgentUnreachable as err:
                await self._failed(str(err.facts["reason"]))
            except AgentProblem as err:
                await self._failed(f"its agent answered {err.answer.code}: {err.answer.detail}")
            except DatabaseFailed as err:
                log.error(kv("host-not-recorded", host=self.name, detail=str(err)))  # noqa: TRY400 - the text says it all
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, self.pace.retry_max_s)

    async def look(self) -> None:
        """Read the host's facts and VMs, and record them."""
        client = self.registry.client(self.name)
        facts, found = await client.host(), await client.vms()
        if await self.db.run(_record_look, self.name, facts, found, utc_now()):
            self.nudge()

    async def _wait_for_change(self) -> None:
        """Work off events until one asks for a fresh look, or it is time for one anyway."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self.pace.poll_s
        while (left_s := until - loop.time()) > 0:
            if await self.read_events(min(left_s, self.pace.event_wait_s)):
                return

    async def read_events(self, wait_s: float) -> bool:
        """Wait for events and work them off; return whether there were any."""
        client = self.registry.client(self.name)
        known, after = await self.db.run(hosts.cursor, self.name)
        page = await client.events(after, wait_s)
        if known is not None and page.log != known and after != 0:
            # The log was begun anew and its numbers mean other events: read it from its start.
            page = await client.events(0)
        went_back = (
            page.log == known and page.next < after
        )  # what it has told since is lost, and its numbers come again
        missed = known is not None and (page.log != known or after < page.oldest - 1 or went_back)
        if not page.items and not missed and page.log == known:
            return False
        if await self.db.run(work_off, self.name, page, missed, utc_now(), went_back=went_back):
            self.nudge()
        return bool(page.items) or missed

    async def _failed(self, reason: str) -> None:
        log.warning(kv("host-unreachable", host=self.name, reason=reason))
        try:
            await self.db.run(hosts.failed, self.name, reason)
        except (DatabaseFailed, HostNotFound) as err:
            log.warning(kv("host-not-recorded", host=self.name, detail=str(err)))


def _record_look(host: str, facts: HostFacts, found: list[HostVm], at: datetime) -> int:
    """Record a look; queue a sync for VMs whose last operation ended without our learning how, now that we can ask,
    and the host files of VMs that came here by hand.

    Of a host that is back, also for VMs whose host files could not be copied. Returns how many were queued.
    """
    with write():
        is_back = hosts.seen(host, facts, at)
        vms.record_inventory(host, found, at)
        waiting = {*groups.unsettled_vms(host), *clones.unsettled_vms(host)}
        waiting |= set(host_files.unsaved(host)) if is_back else set()
        unsettled = [vm for vm in sorted(waiting) if operations.open_count(vm=vm, parked=False) == 0]
        for vm in unsettled:
            operations.enqueue("vm-sync", vm, host, {})
        arrived = host_files.arrivals(host)
        for vm in arrived:  # once for each coming: the key holds what was the newest copy then
            newest = max(str(one.synced_at) for one in host_files.newest(vm).values())
            wanted = {"arrived": True}
            operations.enqueue("vm-restore-host-files", vm, host, wanted, key=f"arrival {host} {vm} {newest}")
    return len(unsettled) + len(arrived)


def work_off(host: str, page: HostEvents, missed: bool, at: datetime, *, went_back: bool = False) -> int:
    """Apply a page of events, once, with the cursor; return how many syncs were queued.

    ``missed``: events were lost to us, so any VM of the host may have run. ``went_back``: the log ends before the
    cursor. ``at`` is this controller's clock, by which syncs are dated too: the clocks of hosts differ.
    """
    with write():
        # Read again: two readers of one log at once must not both apply a page.
        known, after = hosts.cursor(host)
        after = after if known == page.log else 0
        to_sync: dict[UUID, str] = {}
        if missed:
            for vm in vms.on_host(host):
                host_files.note_started(vm, host, at)
                to_sync[vm] = f"{page.log}:missed:{page.next}:{at.isoformat()}"
        for event in page.items:
            if event.seq > after and _apply(host, event, at):
                to_sync[event.vm or UUID(int=0)] = f"{page.log}:{event.seq}:{event.at.isoformat()}"
        for vm, source in to_sync.items():
            operations.enqueue("vm-sync", vm, host, {}, key=f"event {host} {source} {vm}")
        # What was trimmed is never coming: a cursor left below it would count as missed again for ever.
        hosts.move_cursor(host, page.log, max(page.next, 0 if went_back else after, page.oldest - 1))
    return len(to_sync)


def _apply(host: str, event: HostEvent, at: datetime) -> bool:
    """Apply one event; return whether it asks for a sync. One about a VM that we do not know changes nothing."""
    if event.vm is not None and event.type in _DIRTYING:
        try:
            host_files.note_started(event.vm, host, at)
        except VmNotFound:
            return False
    data = {"host_seq": event.seq, "host_at": event.at, "name": event.vm_name, **event.data}
    events.append(event.type, host=host, vm=event.vm, data=data)
    return event.vm is not None and event.type == "vm.stopped"
