"""Which controller works with this host: one, so that two which were set up by mistake do not undo each other's work.

A controller names itself in the header ``X-Coldframe-Controller``, by a UUID that its database keeps. The first one
that changes anything here is written down in ``state_dir/controller``, and from then on no other one may. Reading is
free to all. A caller without the header (an operator's own) is let through: this keeps out mistakes, and credentials
keep out people. What a controller knows of frozen files is in its own database, so another one can only guess.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from agent.errors import ControllerRefused, StorageFailed
from agent.host.marks import make_directories, read_mark, remove_mark, write_mark
from agent.web.call import Call
from agent.web.errors import InvalidRequest
from agent.web.routes import Header, Route
from agent.wire.base import utc_now
from agent.wire.host import Keeper

CONTROLLER = Header("X-Coldframe-Controller", "The UUID of the calling controller; another one's calls are refused")
#: Stands for what cannot be read: it belongs to nobody, and only ``forget`` removes it.
UNKNOWN = UUID(int=0)


class Keepers:
    """The mark of one state directory. ``get`` and ``forget`` block for milliseconds and may raise StorageFailed."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._path = state_dir / "controller"
        self._deciding = asyncio.Lock()

    def get(self) -> Keeper | None:
        """Return the controller that works with this host, if one has yet."""
        values = read_mark(self._path)
        if values is None:
            return None
        try:
            return Keeper(UUID(values["controller"]), datetime.fromisoformat(values["since"]).astimezone(UTC))
        except (KeyError, ValueError):
            return Keeper(UNKNOWN, datetime.fromtimestamp(0, UTC))

    def forget(self) -> Keeper | None:
        """Let the next controller that works here have the host; return the one that had it."""
        held = self.get()
        if held is not None:
            remove_mark(self._path)
        return held

    async def admit(self, call: Call, *, keep: bool) -> None:
        """Let a changing call in. ``keep``: write its controller down where none is. Raises ControllerRefused."""
        controller = _named(call)
        if controller is None:
            return
        async with self._deciding:
            held = await asyncio.to_thread(self.get)
            if held is None and keep:
                await asyncio.to_thread(self._write, controller)
        if held is not None and held.controller != controller:
            raise ControllerRefused(controller=held.controller, since=held.since.isoformat(), caller=controller)

    def _write(self, controller: UUID) -> None:
        make_directories(self._state_dir)
        write_mark(self._path, {"controller": str(controller), "since": utc_now().isoformat()})


def _named(call: Call) -> UUID | None:
    given = call.request.headers.get(CONTROLLER.name)
    try:
        return None if given is None else UUID(given)
    except ValueError as err:
        raise InvalidRequest(where=CONTROLLER.name, reason="expected a UUID") from err


def kept_to_one(keepers: Keepers, routes: Iterable[Route]) -> list[Route]:
    """Return the routes with those that change anything kept to one controller, and their dry runs."""
    return [_kept(keepers, one) if one.changes else one for one in routes]


def _kept(keepers: Keepers, route: Route) -> Route:
    def admitting(work: Callable[..., Awaitable[Any]], *, keep: bool) -> Callable[..., Awaitable[Any]]:
        async def admitted(call: Call, **arguments: Any) -> Any:
            await keepers.admit(call, keep=keep)
            return await work(call, **arguments)

        return admitted

    return replace(
        route,
        handler=admitting(route.handler, keep=True),
        planner=None if route.planner is None else admitting(route.planner, keep=False),
        errors=(*route.errors, ControllerRefused, StorageFailed),
        headers=(*route.headers, CONTROLLER),
    )
