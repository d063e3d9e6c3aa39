"""A program that a hanging libvirtd must not bring down: python -m tests.agent.host.hanging URI.

It asks for what it needs: for each line ``pause`` or ``resume`` on stdout, libvirtd is to be treated so and any line
written to its stdin.
"""

import asyncio
import sys
from uuid import uuid4

from agent.errors import DomainNotFound, HypervisorTimeout
from agent.host.hypervisor import Hypervisor

CALLS = 16
#: Keep-alive gives a connection up after 3 s then, while its calls still wait.
DEADLINE_S = 5.0


async def answers(hypervisor: Hypervisor) -> set[type]:
    """Return the kinds of answers to many calls at once, about as many domains that do not exist."""
    calls = [hypervisor.domain(uuid4()) for _ in range(CALLS)]
    return {type(answer) for answer in await asyncio.gather(*calls, return_exceptions=True)}


def have_libvirtd(what: str) -> None:
    """Have libvirtd paused or resumed; nothing else happens meanwhile."""
    sys.stdout.write(f"{what}\n")
    sys.stdout.flush()
    sys.stdin.readline()


async def main(uri: str) -> None:
    """Stop libvirtd three times with calls on open connections; each time all of them end and later ones work."""
    async with Hypervisor(uri, threads=CALLS, deadline_s=DEADLINE_S) as hypervisor:
        for _ in range(3):
            assert await answers(hypervisor) == {DomainNotFound}
            have_libvirtd("pause")
            hung = await answers(hypervisor)
            have_libvirtd("resume")
            assert hung == {HypervisorTimeout}
        assert await answers(hypervisor) == {DomainNotFound}


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
