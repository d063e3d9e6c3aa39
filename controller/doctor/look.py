"""Ask every host how it is, all at once. A host that does not answer is part of the picture and fails nothing."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar
from uuid import UUID

from agent.client import AgentClient, AgentProblem, AgentUnreachable
from agent.web.errors import Error
from agent.wire.host import HostFacts
from agent.wire.transaction import ENDED, Transaction
from agent.wire.upkeep import PATHS_LIMIT, ImageState, Leftovers
from agent.wire.vm import HostVm
from controller.errors import HostNotFound
from controller.hosts import Hosts
from controller.store.survey import Records

T = TypeVar("T")

#: For all questions to one host together. Headers of a thousand files take a second, a search of directories some more.
DEADLINE_S = 45.0
_IMAGES_S = 30.0


@dataclass
class Look:
    """One host as it is now. ``unanswered`` says why a question got no answer; ``facts`` is None where none did."""

    host: str
    facts: HostFacts | None = None
    vms: list[HostVm] = field(default_factory=list)
    transactions: list[Transaction] = field(default_factory=list)
    leftovers: Leftovers | None = None
    images: dict[str, ImageState] = field(default_factory=dict)
    unanswered: list[str] = field(default_factory=list)

    def open_transactions(self) -> dict[UUID, Transaction]:
        """Return the transactions that have not ended."""
        return {one.id: one for one in self.transactions if one.state not in ENDED}


@dataclass(frozen=True)
class Together:
    """What the looks at all hosts show together: directories may be shared, so one alone tells too little.

    ``named`` is every file that a record or any domain's chain names, ``at_work`` every transaction that is under way
    or is of a VM at work, ``complete`` whether every host told all.
    """

    named: set[str]
    at_work: set[UUID]
    complete: bool


async def all_hosts(hosts: Hosts, records: Records) -> list[Look]:
    """Look at every enrolled host."""
    return list(await asyncio.gather(*(_one(hosts, records, host.name) for host in records.hosts)))


async def _one(hosts: Hosts, records: Records, name: str) -> Look:
    look = Look(name)
    try:
        async with asyncio.timeout(DEADLINE_S):
            await _ask(look, hosts.client(name), sorted({volume.path for volume in records.volumes_of(name)}))
    except TimeoutError:
        look.unanswered.append(f"it took longer than {DEADLINE_S:.0f} s")
    except HostNotFound:
        look.unanswered.append("it was removed meanwhile")
    return look


async def _ask(look: Look, client: AgentClient, paths: list[str]) -> None:
    look.facts = await _answer(look, client.host)
    if look.facts is None:
        return
    # Files first: what work that ends meanwhile leaves is then in a chain, and what begins is among the transactions.
    look.leftovers = await _answer(look, client.leftovers)
    look.transactions = await _answer(look, client.transactions) or []
    look.vms = await _answer(look, client.vms) or []
    for first in range(0, len(paths), PATHS_LIMIT):
        some = paths[first : first + PATHS_LIMIT]
        states = await _answer(look, lambda some=some: client.check_images(some, timeout_s=_IMAGES_S))  # type: ignore[misc]
        look.images |= dict(zip(some, states or [], strict=False))


async def _answer(look: Look, question: Callable[[], Awaitable[T]]) -> T | None:
    try:
        return await question()
    except (AgentUnreachable, AgentProblem) as err:
        look.unanswered.append(_reason(err))
        return None


def _reason(err: Error) -> str:
    return str(err.facts.get("reason") or err.problem().detail)
