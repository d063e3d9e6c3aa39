"""Faults at the controller's points, in this process: killed, failing, asleep for longer than any lease.

Killed here means that from that moment on nothing the controller does reaches the database or an agent, whatever its
handlers of errors try; what was committed and sent before stands. tests/e2e/test_kill_all_real.py kills for real.
"""

import asyncio
import copy
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal

import peewee

from agent.wire.fleet import AddHost
from tests.controller.databases import Databases
from tests.controller.fake_agent import TOKEN, FakeAgent
from tests.controller.fake_machine import FakeVm
from tests.controller.world import HOST, World, opened, served
from tests.points import named

Strike = Literal["kill", "fail", "sleep", "kill both"]
SECRET = "correct horse battery staple"
#: What the idle engine does again and again; striking once shows as much as a hundred times.
ROUNDS = ("store.operations.renew", "store.operations.claim_next", "store.operations.claim")


class Death(asyncio.CancelledError):
    """The process is gone."""


class Striker:
    """A checkpoint that lists what it hears of, as ``name #number``, and strikes at one of them."""

    def __init__(self) -> None:
        self.sleeps: Callable[[], None] = lambda: None
        self.begin()

    def begin(self, at: str | None = None, how: Strike = "kill") -> None:
        """Forget what was heard, live, and strike at ``at``."""
        self.heard: list[str] = []
        self._counts: Counter[str] = Counter()
        self.at, self.how = at, how
        self.struck = self.dead = False

    def __call__(self, point: str) -> None:
        if self.dead:
            raise Death
        name = named(point)
        self._counts[name] += 1
        key = f"{name} #{self._counts[name]}"
        if self._counts[name] == 1 or not name.endswith(ROUNDS):
            self.heard.append(key)
        if key == self.at and not self.struck:
            self.struck = True
            self._strike(name, self._counts[name])

    def _strike(self, name: str, number: int) -> None:
        if self.how in {"sleep", "kill both"}:
            self.sleeps()  # what is prepared is undone when its lease runs out, and when an agent starts again
        if self.how in {"kill", "kill both"}:
            self.dead = True
            raise Death
        if self.how == "sleep":
            return
        if " message " in name:
            raise ConnectionResetError("the network was cut")
        if " database " in name and number % 2:
            raise peewee.OperationalError("database or disk is full")
        raise RuntimeError(SECRET)  # what nobody foresaw


@dataclass
class Stage:
    """One prepared state of host and records, begun from as often as wanted."""

    agent: FakeAgent
    other: FakeAgent
    other_url: str
    striker: Striker
    vm: FakeVm
    databases: Databases
    #: What the two hosts know; what they share is shared in it.
    saved: tuple[dict[str, Any], dict[str, Any]]
    #: The records.
    url: str
    runs: int = 0

    @asynccontextmanager
    async def world(self) -> AsyncIterator[World]:
        """Run a controller in the prepared state; the striker has heard of nothing yet."""
        for agent, saved in zip((self.agent, self.other), copy.deepcopy(self.saved), strict=True):
            agent.on_call = None
            vars(agent).update(saved)
        self.runs += 1
        url = self.databases.copy(self.url)
        self.striker.begin()
        vm = self.agent.vms.get(self.vm.uuid, self.vm)
        other = self.other, self.other_url
        async with (
            opened(self.databases, self.striker, url=url) as (db, hosts),
            World(db, self.agent, hosts, vm, other) as one,
        ):
            self.agent.calls.clear()
            self.striker.begin()
            yield one
            self.striker.begin()  # closing is no part of what is told
        self.databases.drop(url)


@asynccontextmanager
async def staged(databases: Databases, prepare: Callable[[World], Any]) -> AsyncIterator[Stage]:
    """Bring a VM and its records to a state, and keep it."""
    agent, other, striker = FakeAgent(), FakeAgent(), Striker()
    other.files = agent.files
    vm = agent.add_vm()

    def sleeps() -> None:
        for one in (agent, other):
            one.expire_leases()

    striker.sleeps = sleeps
    records = databases.new()
    async with AsyncExitStack() as stack:
        url, other_url = [await stack.enter_async_context(served(one)) for one in (agent, other)]
        async with opened(databases, url=records) as (db, hosts):
            await hosts.add(AddHost(name=HOST, url=url, agent_token=TOKEN))
            async with World(db, agent, hosts, vm, (other, other_url)) as one:
                await prepare(one)
        saved = _known_to(agent), _known_to(other)
        yield Stage(agent, other, other_url, striker, vm, databases, copy.deepcopy(saved), records)


def _known_to(agent: FakeAgent) -> dict[str, Any]:
    return {key: value for key, value in vars(agent).items() if key not in {"changed", "on_call"}}
