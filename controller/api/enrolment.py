"""Taking hosts in and out."""

from agent.client import AgentProblem
from agent.web.call import Call, Reply
from agent.web.errors import InvalidRequest
from agent.web.routes import Header, Route, route
from agent.wire.fleet import AddHost, Host
from controller import names
from controller.errors import (
    AgentRefusedToken,
    HostBusy,
    HostExists,
    HostNotFound,
    HostUnreachable,
    HostUrlTaken,
    NameInvalid,
)
from controller.hosts import Hosts

LOCATION = Header("Location", "The host", required=True)


class EnrolmentRoutes:
    """A host is taken in once its agent has answered."""

    def __init__(self, registry: Hosts) -> None:
        self._registry = registry

    def routes(self) -> list[Route]:
        """Return the routes."""
        adding = (NameInvalid, HostExists, HostUrlTaken, HostUnreachable, AgentRefusedToken, AgentProblem)
        return [
            route("POST", "/v1/hosts", self.add, status=201, role="admin", answer_headers=(LOCATION,), errors=adding),
            route("DELETE", "/v1/hosts/{name}", self.remove, status=204, role="admin", errors=(HostNotFound, HostBusy)),
        ]

    async def add(self, call: Call, body: AddHost) -> Reply[Host]:
        """Enrol a host: its agent must answer at this URL, to this token."""
        names.check_handle("Host", body.name)
        if not body.agent_token or not body.agent_token.isprintable() or not body.agent_token.isascii():
            raise InvalidRequest(where="body.agent_token", reason="expected one line of visible ASCII characters")
        host = await self._registry.add(body)
        return Reply(host, headers={"Location": f"/v1/hosts/{host.name}"})

    async def remove(self, call: Call, name: str) -> None:
        """Take a host out. Copies of its VMs' host files, snapshots and backups are kept."""
        await self._registry.remove(name)
