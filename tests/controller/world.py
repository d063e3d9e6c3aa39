"""A controller's moving parts against one agent in memory, and what must hold between the two."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any, ParamSpec, Self, TypeVar
from uuid import UUID

from aiohttp.test_utils import TestServer

from agent.client import Timeouts
from agent.web.checkpoint import Checkpoint, no_checkpoint
from agent.wire.base import Request, utc_now
from agent.wire.fleet import AddHost
from agent.wire.operation import OPERATION_ENDED, Operation
from agent.wire.snapshot import Snapshot
from controller.db import Database
from controller.hosts import Hosts
from controller.models import VolumeSnapshot, database
from controller.operations import clone, revert, snapshot_create, snapshot_delete, sync
from controller.operations.engine import Engine, Limits
from controller.operations.job import Patience
from controller.operations.kinds import KINDS
from controller.store import bases, clones, groups, invariants, operations, snapshots, vms
from controller.store import hosts as hosts_store
from tests.controller.databases import Databases
from tests.controller.fake_agent import TOKEN, FakeAgent
from tests.controller.fake_machine import FakeVm

P = ParamSpec("P")
T = TypeVar("T")

HOST, OTHER = "kvm1", "kvm2"
HASTY = Patience(tries=2, retry_s=0.001, retry_max_s=0.002, outcome_deadline_s=0.2, poll_s=0.001)
#: For where the agent lives: however busy this machine is, it answers in the end.
PATIENT = replace(HASTY, tries=100, outcome_deadline_s=20)


def _unsettled(host: str) -> list[UUID]:
    return sorted({*groups.unsettled_vms(host), *clones.unsettled_vms(host)})


def _place(vm: UUID, host: str) -> tuple[UUID, str]:
    return vm, host


class World:
    """One agent, one database, one engine. Use ``world()``.

    ``other`` is a second host on the same storage, at ``other_url``, which is enrolled where it is needed.
    """

    def __init__(
        self, db: Database, agent: FakeAgent, hosts: Hosts, vm: FakeVm, other: tuple[FakeAgent, str] | None = None
    ) -> None:
        self.db, self.agent, self.hosts, self.vm = db, agent, hosts, vm
        self.other, self.other_url = other or (FakeAgent(), "")
        self.engine = self.new_engine()

    def new_engine(self, **limits: Any) -> Engine:
        """Return another engine on the same database."""
        limits = {
            "record_retry_s": 0.001,
            "owner_lease_s": 0.3,
            "parked_s": 0.001,
            "stream_s": 0.05,
            "patience": HASTY,
            **limits,
        }
        return Engine(self.db, self.hosts, KINDS, Limits(**limits))

    async def __aenter__(self) -> Self:
        await self.engine.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.engine.__aexit__(None, None, None)

    async def submit(self, kind: str, wanted: Request, vm: UUID | None = None, key: str | None = None) -> Operation:
        """Queue an operation of the VM."""
        return await self.engine.submit(kind, wanted, lambda: (vm or self.vm.uuid, HOST), key)

    async def act(self, kind: str, wanted: Request, vm: UUID | None = None) -> Operation:
        """Run an operation to its end."""
        return await self.ended((await self.submit(kind, wanted, vm)).uuid)

    async def ended(self, uuid: UUID) -> Operation:
        """Wait for an operation; not ending is a failure of the test."""
        operation = await self.engine.wait(uuid, 20)
        assert operation.state in OPERATION_ENDED, operation
        return operation

    async def create(self, **wanted: Any) -> Operation:
        """Take a snapshot."""
        return await self.act("snapshot-create", snapshot_create.Wanted(**wanted))

    async def snapshot(self, **wanted: Any) -> UUID:
        """Take a snapshot that must succeed."""
        operation = await self.create(**wanted)
        assert operation.state == "succeeded", operation.error
        return UUID(operation.result["snapshot"])

    async def revert(self, snapshot: UUID, **wanted: Any) -> Operation:
        """Revert to a snapshot."""
        return await self.act("snapshot-revert", revert.Wanted(snapshot=snapshot, **wanted))

    async def clone(self, snapshot: UUID, *names: str, **wanted: Any) -> Operation:
        """Make clones of a snapshot."""
        targets = [clone.Target(name=name) for name in names]
        return await self.act("snapshot-clone", clone.Wanted(snapshot=snapshot, targets=targets, **wanted))

    async def delete(self, snapshot: UUID) -> Operation:
        """Delete a snapshot."""
        return await self.act("snapshot-delete", snapshot_delete.Wanted(snapshot=snapshot))

    async def sync(self) -> Operation:
        """Sync the VM."""
        return await self.act("vm-sync", sync.Wanted())

    async def tree(self) -> list[Snapshot]:
        """Return the VM's snapshots."""
        return await self.db.run(snapshots.tree, self.vm.uuid)

    async def named(self, name: str) -> UUID:
        """Return the snapshot of a name."""
        return next(item.uuid for item in await self.tree() if item.name == name)

    @property
    def has_died(self) -> bool:
        """Whether the engine does nothing any more."""
        return self.engine._loop is None or self.engine._loop.done()

    async def lie_down(self) -> None:
        """Let the engine die as by kill -9: nothing is cleaned up."""
        dead = self.engine
        tasks = [task for _, task in dead._jobs.values()] + ([dead._loop] if dead._loop else [])
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def kill(self) -> None:
        """Let the engine die, and what it ran be taken over at once."""
        await self.lie_down()
        await self.db.run(operations.release, self.engine.owner)

    async def restart(self, **limits: Any) -> None:
        """Kill the engine and begin with a new one on the same database."""
        await self.kill()
        self.engine = await self.new_engine(**limits).__aenter__()

    async def look(self) -> None:
        """Look at the hosts, as the followers do."""
        for name in await self.db.run(hosts_store.names):
            found = await self.hosts.client(name).vms()
            await self.db.run(vms.record_inventory, name, found, utc_now())

    async def mend(self) -> None:
        """End all faults and let what is left over be settled."""
        for agent in (self.agent, self.other):
            agent.faults.clear()
            agent.refuse.clear()
            agent.on_call = None
            agent.dead, agent.linger = False, 0
            agent.expire_leases()
        for host in (HOST, OTHER):  # as their followers do
            for vm in await self.db.run(_unsettled, host):
                queued = await self.engine.submit("vm-sync", sync.Wanted(), partial(_place, vm, host))
                operation = await self.ended(queued.uuid)
                assert operation.state == "succeeded" or vm != self.vm.uuid, operation.error

    async def check(self) -> None:
        """Raise where the records contradict themselves, or the host."""
        assert await self.db.run(invariants.orphans) == []
        assert await self.db.run(invariants.unsettled) == []
        assert await self.db.run(invariants.idle_bases) == []
        transactions = [*self.agent.transactions.values(), *self.other.transactions.values()]
        assert all(one.view.state in {"committed", "aborted"} for one in transactions)
        on_host = {path: file.backing for path, file in self.agent.files.items()}
        frozen: dict[str, str | None] = {}
        defined = [*self.agent.vms.values(), *self.other.vms.values()]
        for vm in defined:
            frozen |= await self._frozen(vm, on_host)
        hidden = await self.hidden()
        assert {path: self.agent.fingerprint(path) for path in hidden} == {
            one.path: one.fingerprint for one in hidden.values()
        }
        frozen |= {path: row.backing for path, row in hidden.items()}
        tops = {top for vm in defined for top in vm.tops.values()}
        assert {path: backing for path, backing in on_host.items() if path not in tops} == frozen

    async def hidden(self) -> dict[str, VolumeSnapshot]:
        """Return the hidden bases by path."""
        return {row.path: row for row in await self.db.run(bases.hidden, HOST)}

    async def _frozen(self, vm: FakeVm, on_host: dict[str, str | None]) -> dict[str, str | None]:
        """Return a VM's recorded frozen files, checked; the VM stands where the records say."""
        frozen: dict[str, str | None] = {}
        for one in await self.db.run(snapshots.tree, vm.uuid):
            assert one.state == "ready"
            group = await self.db.run(snapshots.group, one.uuid)
            left = [volume for volume in group.volumes if not volume.merged]
            assert {volume.fingerprint for volume in left} == {self.agent.fingerprint(volume.path) for volume in left}
            frozen |= {volume.path: volume.backing for volume in left}
            if one.current and not one.excluded:
                assert {on_host[top] for top in vm.tops.values()} == {volume.path for volume in one.volumes}
        return frozen


@asynccontextmanager
async def world(databases: Databases, **vm: Any) -> AsyncIterator[World]:
    """Run a controller with one enrolled host and one VM on it."""
    agent = FakeAgent()
    fake = agent.add_vm(**vm)
    async with served(agent) as url, opened(databases) as (db, hosts):
        await hosts.add(AddHost(name=HOST, url=url, agent_token=TOKEN))
        agent.calls.clear()
        async with World(db, agent, hosts, fake) as one:
            yield one


@asynccontextmanager
async def served(agent: FakeAgent) -> AsyncIterator[str]:
    """Serve an agent over TCP; yields its URL."""
    server = TestServer(agent.app())
    await server.start_server()
    try:
        yield str(server.make_url("")).rstrip("/")
    finally:
        await server.close()


@asynccontextmanager
async def opened(
    databases: Databases, checkpoint: Checkpoint = no_checkpoint, *, url: str = ""
) -> AsyncIterator[tuple[Database, Hosts]]:
    """Open a controller's database, a new one unless it is named, and the clients of its hosts."""
    url = url or databases.new()
    async with Database(url, checkpoint) as db:
        if statement := databases.hurry(url):
            await db.run(database.execute_sql, statement)
        async with Hosts(db, Timeouts(connect_s=2, read_s=2, work_s=2), checkpoint) as hosts:
            yield db, hosts


async def define(one: World, name: str, **changes: Any) -> FakeVm:
    """Define a further VM on the host, known to the controller."""
    fake = one.agent.add_vm(name, **changes)
    facts = next(vm for vm in await one.hosts.client(HOST).vms() if vm.uuid == fake.uuid)
    await one.db.run(vms.record_one, HOST, facts, utc_now())
    return fake
