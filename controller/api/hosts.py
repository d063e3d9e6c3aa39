"""Reading hosts."""

from agent.web.call import Call
from agent.web.paging import PageQuery
from agent.web.routes import Route, route
from agent.wire.base import Page
from agent.wire.fleet import Host
from controller.api import pages
from controller.db import Database
from controller.errors import HostNotFound
from controller.store import hosts


class HostRoutes:
    """The enrolled hosts as they were last seen. An agent's secret is in no answer."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            route("GET", "/v1/hosts", self.list),
            route("GET", "/v1/hosts/{name}", self.show, errors=(HostNotFound,)),
        ]

    async def list(self, call: Call, query: PageQuery) -> Page[Host]:
        """List the enrolled hosts by name."""
        return pages.page(await self._db.run(hosts.page, query.limit, pages.position(query, str)))

    async def show(self, call: Call, name: str) -> Host:
        """Show one host."""
        return await self._db.run(hosts.get, name)
