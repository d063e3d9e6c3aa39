"""The host's event log by long poll."""

import asyncio
from typing import Annotated

import msgspec

from agent.errors import StorageFailed
from agent.host.event_log import EventLog
from agent.web.application import STOPPING
from agent.web.call import Call
from agent.web.routes import Route, route
from agent.wire.base import Request
from agent.wire.event import HostEvents

#: Below the idle timeouts of usual proxies (60 s) and of the controller's client (wait + 30 s).
MAX_WAIT_S = 55.0


class EventQuery(Request, kw_only=True, frozen=True):
    """The query parameters of ``GET /v1/events``."""

    after: Annotated[
        int, msgspec.Meta(ge=0, le=2**63 - 1, description="The number of the last event that is known")
    ] = 0
    wait: Annotated[float, msgspec.Meta(ge=0, le=3600, description="Seconds to wait for an event; cut at 55")] = 0.0
    limit: Annotated[int, msgspec.Meta(ge=1, le=1000, description="The most events to return")] = 1000


class EventRoutes:
    """The event log, read only."""

    def __init__(self, event_log: EventLog) -> None:
        self._event_log = event_log

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [route("GET", "/v1/events", self.read, errors=(StorageFailed,))]

    async def read(self, call: Call, query: EventQuery) -> HostEvents:
        """Read the events after a number, oldest first, waiting for one if there is none.

        An agent that stops ends the wait with an empty answer. A reader that is too slow misses events, and sees
        it: ``oldest`` is then above the number it asked with.
        """
        if query.wait > 0:
            await self._wait(call, query)
        return await asyncio.to_thread(self._event_log.read, query.after, query.limit)

    async def _wait(self, call: Call, query: EventQuery) -> None:
        stopping = asyncio.ensure_future(call.request.app[STOPPING].wait())
        waiting = asyncio.ensure_future(self._event_log.wait(query.after, min(query.wait, MAX_WAIT_S)))
        try:
            await asyncio.wait({stopping, waiting}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            waiting.cancel()
            await asyncio.gather(stopping, waiting, return_exceptions=True)
