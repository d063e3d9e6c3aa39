"""Whether the controller lives and can work, for whoever watches it."""

import asyncio

from agent.web.call import Call, Reply
from agent.web.routes import Route, route
from agent.wire.readiness import ControllerHealth, Readiness
from controller.db import Database, probe
from controller.errors import DatabaseFailed
from controller.store import events

#: A database that is well answers in milliseconds; whoever watches us asks every few seconds.
_PATIENCE_S = 2.0


class HealthRoutes:
    """The open routes: they tell nothing about hosts or VMs."""

    def __init__(self, db: Database, version: str, patience_s: float = _PATIENCE_S) -> None:
        self._db = db
        self._version = version
        self._patience_s = patience_s

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            route("GET", "/healthz", self.health, role=None),
            route("GET", "/readyz", self.ready, statuses={503: Readiness}, role=None),
        ]

    async def health(self, call: Call) -> ControllerHealth:
        """Show that the controller lives."""
        return ControllerHealth(status="ok", version=self._version)

    async def ready(self, call: Call) -> Reply[Readiness]:
        """Show whether the controller can work: 503 while its database does not answer, or takes no change."""
        try:
            async with asyncio.timeout(self._patience_s):
                await self._db.run(events.newest)
                if self._db.failing is not None:
                    await self._db.run(probe)
        except (DatabaseFailed, TimeoutError):
            return Reply(Readiness(ready=False, reason="the database does not answer; see the log"), status=503)
        return Reply(Readiness(ready=True, reason=None))
