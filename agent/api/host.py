"""The host and the daemon: health and facts."""

import ipaddress
from typing import Annotated

import msgspec

from agent.facts import Facts
from agent.web.call import Call
from agent.web.errors import InvalidRequest
from agent.web.routes import Route, route
from agent.wire.base import Request
from agent.wire.health import AgentHealth
from agent.wire.host import HostFacts


class HostQuery(Request, kw_only=True, frozen=True):
    """The query parameters of ``GET /v1/host``."""

    controller: (
        Annotated[str, msgspec.Meta(max_length=64, description="An IP address: tell the route towards it")] | None
    ) = None


class HostRoutes:
    """What is asked of the host as a whole."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            route("GET", "/healthz", self.health, role=None),
            route("GET", "/v1/host", self.show),
        ]

    async def health(self, call: Call) -> AgentHealth:
        """Say that the agent lives, and how libvirt and the hook are.

        The answer is 200 while the agent can answer at all: restarting it would not bring libvirt back.
        """
        return await self._facts.health()

    async def show(self, call: Call, query: HostQuery) -> HostFacts:
        """Show the host's facts, and the route and source address towards a controller."""
        if query.controller is not None:
            _require_address(query.controller)
        return await self._facts.host(query.controller)


def _require_address(text: str) -> None:
    """Raise InvalidRequest for what is no IP address; a zone (``fe80::1%eth0``) is this host's own matter."""
    try:
        ipaddress.ip_address(text)
    except ValueError as err:
        raise InvalidRequest(where="query.controller", reason="expected an IPv4 or IPv6 address") from err
    if "%" in text:
        raise InvalidRequest(where="query.controller", reason="expected an address without a zone")
