"""The domains of this host, and the two things that an operator may do to one."""

import asyncio
from uuid import UUID

from agent.errors import (
    DomainNotFound,
    DomainUnreadable,
    HookLockHeld,
    HypervisorRefused,
    HypervisorUnavailable,
    Refused,
    StorageFailed,
)
from agent.host.inventory import Inventory
from agent.transactions.foresight import Foresight
from agent.transactions.guard import Guards
from agent.transactions.manager import Manager
from agent.web.call import Call
from agent.web.paging import PageQuery, page_of
from agent.web.routes import Route, route
from agent.wire.base import Page
from agent.wire.plan import Plan
from agent.wire.vm import Disk, HostVm

_LOOKING = (HypervisorUnavailable, HypervisorRefused, StorageFailed)


class VmRoutes:
    """What is asked of one domain."""

    def __init__(self, inventory: Inventory, manager: Manager, guards: Guards) -> None:
        self._inventory = inventory
        self._manager = manager
        self._foresight = Foresight(manager)
        self._guards = guards

    def routes(self) -> list[Route]:
        """Return the routes."""
        about_one = (*_LOOKING, DomainNotFound, DomainUnreadable)
        return [
            route("GET", "/v1/vms", self.list, errors=_LOOKING),
            route("GET", "/v1/vms/{uuid}", self.show, errors=about_one),
            route("GET", "/v1/vms/{uuid}/disks", self.disks, errors=about_one),
            route(
                "POST",
                "/v1/vms/{uuid}/release",
                self.release,
                errors=(*about_one, Refused, HookLockHeld),
                role="admin",
                planner=self.plan_release,
            ),
            route(
                "POST",
                "/v1/vms/{uuid}/accept-blank",
                self.accept_blank,
                errors=about_one,
                role="admin",
                planner=self.plan_accept_blank,
            ),
        ]

    async def list(self, call: Call, query: PageQuery) -> Page[HostVm]:
        """List every domain that this host defines."""
        return page_of(await self._inventory.vms(), query, lambda vm: str(vm.uuid))

    async def show(self, call: Call, uuid: UUID) -> HostVm:
        """Show one domain with its disks."""
        return await self._inventory.vm(uuid)

    async def disks(self, call: Call, uuid: UUID, query: PageQuery) -> Page[Disk]:
        """List one domain's disks with the chain of each."""
        return page_of((await self._inventory.vm(uuid)).disks, query, lambda disk: disk.target)

    async def release(self, call: Call, uuid: UUID) -> HostVm:
        """Let a domain start again: abort what is prepared for it, and remove a guard that was left behind.

        A transaction that is past its commit is never cut off: the answer is then ``transaction-ended``.
        """
        await self._inventory.vm(uuid)
        await self._manager.release(uuid)
        return await self._inventory.vm(uuid)

    async def plan_release(self, call: Call, uuid: UUID) -> Plan:
        """Plan ``release``."""
        await self._inventory.vm(uuid)
        return await self._foresight.release(uuid)

    async def accept_blank(self, call: Call, uuid: UUID) -> HostVm:
        """Let the next start of a domain through although a host file is missing or empty. Holds for one try."""
        vm = await self._inventory.vm(uuid)
        await asyncio.to_thread(self._guards.accept_blank, uuid)
        return vm

    async def plan_accept_blank(self, call: Call, uuid: UUID) -> Plan:
        """Plan ``accept_blank``."""
        await self._inventory.vm(uuid)
        return await self._foresight.accept_blank(uuid)
