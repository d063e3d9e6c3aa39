"""How many connections a daemon keeps open, so that whoever only holds some takes nothing from its work.

A connection costs a descriptor before anybody knows who is there, and TLS or a request's head may never come. So a
listener keeps at most its share of the process's descriptors. Where that is used up, a newcomer takes the place of the
connection that has been idle longest: one that has no request under way, whether it is between two, began none, or is
still at its handshake. Who asks at once, as every honest client does, is hardly ever that one. Where all are at
work the newcomer is turned away.
"""

import logging
import resource
import socket
import time
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

from agent.web.log import kv

log = logging.getLogger(__name__)

#: Of the process's descriptors, for each listener; there are at most two. The rest is for files, pipes and libvirt.
SHARE = 1 / 8
MOST = 1024
_TOLD_EVERY_S = 60.0


def share_of_process() -> int:
    """Return how many connections a listener may keep, by the limit of descriptors (setrlimit(2)) now in force."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST if soft == resource.RLIM_INFINITY else max(1, min(MOST, int(soft * SHARE)))


class _Connection(socket.socket):
    """A connection that leaves its door's list when it is closed, by whomever."""

    door: "Door"
    requests = 0

    def close(self) -> None:
        self.door.left(self)
        super().close()


class Door(socket.socket):
    """A listening socket that keeps at most ``limit`` of the connections that it accepted.

    ``socket.socket`` as asyncio's servers use it: ``accept`` is called when somebody is there.
    """

    limit = 1
    connections: "Connections"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._open: dict[_Connection, None] = {}  # the one that has been idle longest first
        self._told = float("-inf")

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept the next connection that may stay; raises what ``socket.accept`` does."""
        while True:
            plain, address = super().accept()
            connection = _Connection(plain.family, plain.type, plain.proto, fileno=plain.detach())
            connection.door = self
            if self._make_room():
                self._open[connection] = None
                self.connections.met(connection)
                return connection, address
            connection.close()

    def _make_room(self) -> bool:
        if len(self._open) < self.limit:
            return True
        idle = next((one for one in self._open if one.requests == 0), None)
        if time.monotonic() - self._told > _TOLD_EVERY_S:
            self._told = time.monotonic()
            log.warning(kv("connections-used-up", limit=self.limit, newcomer="refused" if idle is None else "let in"))
        if idle is None:
            return False
        self.left(idle)
        try:
            idle.shutdown(socket.SHUT_RDWR)  # whoever serves it sees it end, and closes it
        except OSError:  # it has ended already
            return True
        return True

    def left(self, connection: _Connection) -> None:
        """Count a connection no more; twice is fine."""
        self._open.pop(connection, None)
        self.connections.gone(connection)

    def served(self, connection: _Connection) -> None:
        """Put a connection behind all that have been idle for longer."""
        if connection in self._open:
            self._open[connection] = self._open.pop(connection)


class Connections:
    """The connections of one daemon, over all its doors."""

    def __init__(self) -> None:
        self._by_descriptor: dict[int, _Connection] = {}

    def door(self, family: int, limit: int) -> Door:
        """Return a new socket for a listener, not bound yet."""
        door = Door(family, socket.SOCK_STREAM)
        door.limit, door.connections = limit, self
        return door

    def met(self, connection: _Connection) -> None:
        """Know a connection by its descriptor from now on."""
        self._by_descriptor[connection.fileno()] = connection

    def gone(self, connection: _Connection) -> None:
        """Forget a connection, before its descriptor can be another's."""
        if self._by_descriptor.get(connection.fileno()) is connection:
            del self._by_descriptor[connection.fileno()]

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Keep the connection of a request while it is under way."""
        connection = self._of(request)
        if connection is None:
            return await handler(request)
        connection.requests += 1
        try:
            return await handler(request)
        finally:
            connection.requests -= 1
            connection.door.served(connection)

    def _of(self, request: web.Request) -> _Connection | None:
        found = None if request.transport is None else request.transport.get_extra_info("socket")
        return None if found is None else self._by_descriptor.get(found.fileno())
