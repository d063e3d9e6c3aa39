"""The event log as server-sent events.

Each listener reads the durable log for itself, so events come in order, none twice, and nothing is queued in
memory. ``Last-Event-ID`` goes on where a connection broke. A listener that falls too far behind, or takes no
bytes for a while, is dropped and told so by a last event ``listener.dropped``; it can go on from its last id. One
that asks for events which were trimmed meanwhile is told so first, by ``events.trimmed``.
"""

import asyncio
import contextlib
import re
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from aiohttp import ClientConnectionResetError, web

from agent.web.application import STOPPING
from agent.web.auth import Authenticator
from agent.web.call import Call
from agent.web.errors import InvalidRequest
from agent.web.routes import Header, Route, route
from agent.wire.access import Event
from agent.wire.base import Request, utc_now
from controller.db import Database
from controller.store import events

LAST_EVENT_ID = Header("Last-Event-ID", "The last `id:` that came in; it goes before `after`", pattern="[0-9]{1,18}")
After = Annotated[int, msgspec.Meta(ge=0, lt=10**18, description="Begin after this number")]

_BATCH = 200


@dataclass(frozen=True, kw_only=True)
class StreamLimits:
    """What a listener may cost.

    A comment every ``heartbeat_s`` keeps proxies (60 s is common) and the client's own deadline from ending a quiet
    stream. Who has once caught up and is then more than ``backlog`` events behind for longer than ``lag_s`` is slow;
    a burst alone is no reason. Who takes no bytes for ``stuck_s`` does not read any more.
    """

    backlog: int = 1_000
    heartbeat_s: float = 20.0
    lag_s: float = 10.0
    stuck_s: float = 30.0


class EventQuery(Request, kw_only=True, frozen=True):
    """Where to begin. ``follow=false`` ends after the events that are there."""

    after: After = 0
    follow: bool = True


class EventRoutes:
    """The stream."""

    def __init__(self, db: Database, authenticator: Authenticator, limits: StreamLimits) -> None:
        self._db = db
        self._authenticator = authenticator
        self._limits = limits

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            route("GET", "/v1/events", self.stream, media_type="text/event-stream", headers=(LAST_EVENT_ID,)),
        ]

    async def stream(self, call: Call, query: EventQuery) -> web.StreamResponse:
        """Send events as they happen, beginning after a number that is known, or with all that are kept."""
        position = _begin_after(call, query)
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-store"}
        )
        await response.prepare(call.request)
        if call.request.method == "GET":
            listener = _Listener(call.request, response, self._db, position, self._limits)
            with contextlib.suppress(ClientConnectionResetError):  # it went away: nobody is left to tell
                await listener.serve(follow=query.follow, authenticator=self._authenticator)
        return response


class _Listener:
    def __init__(
        self, request: web.Request, response: web.StreamResponse, db: Database, position: int, limits: StreamLimits
    ) -> None:
        self._request = request
        self._response = response
        self._db = db
        self._position = position
        self._limits = limits
        self._slow_since: float | None = None

    async def serve(self, *, follow: bool, authenticator: Authenticator) -> None:
        """Send until the listener is dropped, its credential is no longer good, or the daemon stops."""
        await self._tell_of_trimmed()
        caught_up, stopping = False, self._request.app[STOPPING]
        while not stopping.is_set():
            version = self._db.version
            batch = await self._db.run(events.read, self._position, _BATCH)
            for event in batch:
                if not await self._send(_text(event)):
                    self._give_up()
                    return
                self._position = event.seq
            if len(batch) == _BATCH:
                if caught_up and await self._fell_behind():
                    return
                continue
            caught_up, self._slow_since = True, None
            if not follow:
                return
            changed = await self._wait(version)
            if not changed and not stopping.is_set() and not await self._still_alive(authenticator):
                return

    async def _wait(self, version: int) -> bool:
        """Return whether something changed; False after ``heartbeat_s``, or when the daemon stops."""
        waits = [
            asyncio.ensure_future(self._db.changed(version)),
            asyncio.ensure_future(self._request.app[STOPPING].wait()),
        ]
        try:
            await asyncio.wait(waits, timeout=self._limits.heartbeat_s, return_when=asyncio.FIRST_COMPLETED)
            return waits[0].done()
        finally:
            for one in waits:
                one.cancel()

    async def _still_alive(self, authenticator: Authenticator) -> bool:
        """Send a comment, and look whether the caller's token was revoked since."""
        return await authenticator(self._request) is not None and await self._send(": still here\n\n")

    async def _tell_of_trimmed(self) -> None:
        oldest = await self._db.run(events.oldest)
        if 0 < self._position < oldest - 1:
            await self._send(_text(_notice("events.trimmed", self._position, {"oldest": oldest}), with_id=False))

    async def _fell_behind(self) -> bool:
        """Return whether the listener has been too slow for too long; it is told so then."""
        behind = await self._db.run(events.newest) - self._position
        if behind <= self._limits.backlog:
            self._slow_since = None
            return False
        now = asyncio.get_running_loop().time()
        self._slow_since = self._slow_since or now
        if now - self._slow_since < self._limits.lag_s:
            return False
        told = {"behind": behind, "go_on_after": self._position}
        await self._send(_text(_notice("listener.dropped", self._position, told), with_id=False))
        return True

    async def _send(self, text: str) -> bool:
        """Return whether the listener took it in time."""
        try:
            async with asyncio.timeout(self._limits.stuck_s):
                await self._response.write(text.encode())
        except TimeoutError:
            return False
        return True

    def _give_up(self) -> None:
        """Cut a stuck connection: to end it politely would wait for it as well."""
        if self._request.transport is not None:
            self._request.transport.abort()


def _begin_after(call: Call, query: EventQuery) -> int:
    header = call.request.headers.get("Last-Event-ID")
    if not header:
        return query.after
    if not re.fullmatch(r"[0-9]{1,18}", header):
        raise InvalidRequest(where="Last-Event-ID", reason="expected the id of an event, a number")
    return int(header)


def _notice(type: str, position: int, data: dict[str, Any]) -> Event:
    return Event(seq=position, at=utc_now(), type=type, host=None, vm=None, data=data)


def _text(event: Event, *, with_id: bool = True) -> str:
    """One event on the stream. JSON has no line breaks of its own, so ``data`` is one line."""
    number = f"id: {event.seq}\n" if with_id else ""
    return f"{number}event: {event.type}\ndata: {msgspec.json.encode(event).decode()}\n\n"
