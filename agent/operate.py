"""What the operator's commands do, with the daemon alive or dead.

Alive (it holds the lock of the state directory), the daemon is asked through its unix socket, where root needs no
token: it alone knows what it is doing at this moment. Dead, the command takes that lock itself, so that no daemon
can start in between, and works on the state directory. A prepared transaction of a dead daemon is not undone here:
``release`` drops the guard, and the daemon undoes the rest when it starts.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar
from uuid import UUID

from agent.client import AgentClient
from agent.config import Config
from agent.errors import NotFound, StateDirInUse
from agent.host.hypervisor import Hypervisor
from agent.keeper import Keepers
from agent.state_dir import claimed
from agent.transactions.foresight import ACCEPT_BLANK, DROP_GUARD
from agent.transactions.guard import Guards
from agent.transactions.journal import Journal
from agent.wire.plan import Plan, planned
from agent.wire.transaction import Transaction

T = TypeVar("T")


async def transactions(config: Config) -> list[Transaction]:
    """Return every transaction, oldest first."""
    if not config.state_dir.is_dir():
        return []
    found = await _either(config, lambda client: client.transactions(), lambda: _journalled(config.state_dir))
    return sorted(found, key=lambda one: one.started_at)


async def release(config: Config, vm: str) -> str:
    """Let a VM start again; returns what was done, for people. ``vm`` is a name or a UUID."""
    uuid = await _uuid_of(config, vm)

    async def ask(client: AgentClient) -> str:
        await client.release(uuid)
        return f"{vm} may start again"

    def drop() -> str:
        held = Guards(config.state_dir).release(uuid)
        if held is None:
            return f"{vm} was not held"
        return f"{vm} may start again; it was held by {held.kind} transaction {held.transaction}"

    return await _either(config, ask, drop)


async def accept_blank(config: Config, vm: str) -> str:
    """Let the next start of a VM through without its host files; returns what was done, for people."""
    uuid = await _uuid_of(config, vm)

    async def ask(client: AgentClient) -> None:
        await client.accept_blank(uuid)

    await _either(config, ask, lambda: Guards(config.state_dir).accept_blank(uuid))
    return f"the next start of {vm} makes blank host files in place of missing ones"


def forget_controller(config: Config, *, dry_run: bool) -> str:
    """Let the next controller that works with this host have it; returns what was done, for people.

    The mark is read anew at each call, so a daemon that is alive need not be asked.
    """
    keepers = Keepers(config.state_dir)
    held = keepers.get() if dry_run else keepers.forget()
    if held is None:
        return "no controller has worked with this host yet"
    told = f"the next controller that works with this host has it; it was kept to {held.controller}"
    return f"would do so: {told}" if dry_run else told


async def plan(config: Config, verb: str, vm: str) -> Plan:
    """Return what ``release`` or ``accept-blank`` would do; nothing is changed. ``vm`` is a name or a UUID."""
    uuid = await _uuid_of(config, vm)

    def look() -> Plan:
        if verb == "release" and Guards(config.state_dir).get(uuid) is None:
            return planned(verb, [], [], vm=uuid, notes=["nothing holds it"])
        return planned(verb, [DROP_GUARD if verb == "release" else ACCEPT_BLANK], [], vm=uuid)

    if not config.state_dir.is_dir():
        return planned(verb, [], [], vm=uuid, notes=["no agent has worked here yet"])
    return await _either(config, lambda client: client.plan_vm(uuid, verb), look)


async def _either(config: Config, alive: Callable[[AgentClient], Awaitable[T]], dead: Callable[[], T]) -> T:
    """Do the one or the other, whichever holds. Raises the client's errors, StorageFailed."""
    try:
        return await asyncio.to_thread(_claimed, config.state_dir, dead)
    except StateDirInUse:
        async with AgentClient(f"unix://{config.socket}", "") as client:
            return await alive(client)


def _claimed(state_dir: Path, work: Callable[[], T]) -> T:
    with claimed(state_dir):
        return work()


def _journalled(state_dir: Path) -> list[Transaction]:
    directory = state_dir / "journal"
    return [entry.transaction for entry in Journal(directory).entries()] if directory.is_dir() else []


async def _uuid_of(config: Config, vm: str) -> UUID:
    """Return the UUID of a VM by name or UUID; libvirt knows the names. Raises NotFound."""
    try:
        return UUID(vm)
    except ValueError:
        async with Hypervisor(config.libvirt_uri, 1, config.libvirt_deadline_s) as hypervisor:
            for domain in await hypervisor.domains():
                if domain.name == vm:
                    return domain.uuid
    raise NotFound(what=f"A VM called {vm}")
