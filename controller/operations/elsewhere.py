"""What the other hosts of the fleet define, asked before a file goes that one of them may use.

Their own images' locks and libvirt do not reach here, and a controller learns of an administrator's doings with a
delay. A host that does not answer soon is judged by what it showed last: the records keep that.
"""

import asyncio
import logging

from agent.client import AgentProblem, AgentUnreachable
from agent.web.log import kv
from controller.db import Database
from controller.errors import HostNotFound
from controller.hosts import Hosts
from controller.store import hosts
from controller.store.bases import Shown

log = logging.getLogger("coldframe.operations")

#: An inventory takes tens of milliseconds. A host that hangs must not hold up the work on another one for long.
_DEADLINE_S = 5.0


async def shown(db: Database, fleet: Hosts, host: str) -> list[Shown]:
    """Return the VMs that the hosts other than ``host`` define now, as far as they answer."""
    others = [name for name in await db.run(hosts.names) if name != host]
    found = await asyncio.gather(*(_of(fleet, name) for name in others))
    return [one for some in found for one in some]


async def _of(fleet: Hosts, host: str) -> list[Shown]:
    try:
        async with asyncio.timeout(_DEADLINE_S):
            return [(host, vm) for vm in await fleet.client(host).vms()]
    except (AgentUnreachable, AgentProblem, HostNotFound, TimeoutError) as err:
        log.warning(kv("host-judged-by-records", host=host, reason=str(err) or "no answer in time"))
        return []
