"""Taking hosts in and out."""

import msgspec

from agent.client import AgentProblem
from agent.web import etag
from agent.web.call import Call, Reply
from agent.web.errors import InvalidRequest, PreconditionFailed
from agent.web.routes import Header, Route, route
from agent.wire.fleet import AddHost, ChangeHost, Host
from controller import names
from controller.api.conditions import IF_MATCH
from controller.errors import (
    AgentRefusedToken,
    HostBusy,
    HostExists,
    HostIsAnother,
    HostKept,
    HostNotFound,
    HostUnreachable,
    HostUrlTaken,
    NameInvalid,
)
from controller.hosts import Hosts
from controller.store import hosts

LOCATION = Header("Location", "The host", required=True)


class EnrolmentRoutes:
    """A host is taken in once its agent has answered."""

    def __init__(self, registry: Hosts) -> None:
        self._registry = registry

    def routes(self) -> list[Route]:
        """Return the routes."""
        adding = (NameInvalid, HostExists, HostUrlTaken, HostKept, HostUnreachable, AgentRefusedToken, AgentProblem)
        return [
            route("POST", "/v1/hosts", self.add, status=201, role="admin", answer_headers=(LOCATION,), errors=adding),
            route(
                "PATCH",
                "/v1/hosts/{name}",
                self.change,
                role="admin",
                headers=(IF_MATCH,),
                errors=(*adding, HostNotFound, HostBusy, HostIsAnother, PreconditionFailed),
            ),
            route("DELETE", "/v1/hosts/{name}", self.remove, status=204, role="admin", errors=(HostNotFound, HostBusy)),
        ]

    async def add(self, call: Call, body: AddHost) -> Reply[Host]:
        """Enrol a host: its agent must answer at this URL, to this token."""
        names.check_handle("Host", body.name)
        _check_token(body.agent_token)
        host = await self._registry.add(body)
        return Reply(host, headers={"Location": f"/v1/hosts/{host.name}"})

    async def change(self, call: Call, name: str, body: ChangeHost) -> Host:
        """Reach an enrolled agent at another address, with another token or certificate, or rename the host.

        What the body does not name stays as it is. The agent must answer, and be the one that was enrolled. Work
        under way goes on at the new address; a host is renamed only while there is none.
        """
        if body == ChangeHost():
            raise InvalidRequest(where="body", reason="expected name, url, agent_token or fingerprint")
        if body.name is not None:
            names.check_handle("Host", body.name)
        if body.agent_token is not None:
            _check_token(body.agent_token)

        def require() -> None:
            call.require_match(f"Host {name}", etag.of(msgspec.json.encode(hosts.get(name))))

        return await self._registry.change(name, body, require)

    async def remove(self, call: Call, name: str) -> None:
        """Take a host out. Copies of its VMs' host files, snapshots and backups are kept."""
        await self._registry.remove(name)


def _check_token(secret: str) -> None:
    if not secret or not secret.isprintable() or not secret.isascii():
        raise InvalidRequest(where="body.agent_token", reason="expected one line of visible ASCII characters")
