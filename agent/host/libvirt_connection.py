"""The agent's connection to libvirt: made when needed, made again when it died, closed when nobody uses it any more."""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import libvirt

from agent.errors import HypervisorUnavailable
from agent.host.libvirt_link import DomainEvent, Link, is_transport_error
from agent.host.threads import Turn, in_thread, note_failure

T = TypeVar("T")
C = TypeVar("C")

#: libvirtd works on five requests of a connection at once (max_client_requests). With three unanswered ones a new
#: connection is made, or healthy calls would soon queue behind them.
_ABANDONED_LIMIT = 3
#: Pauses before reconnecting; a restart of libvirtd takes about a second.
_RETRY_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)

log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Line:
    """A link and its use: ``calls`` unanswered ones, of which ``abandoned`` by their callers."""

    link: Link
    calls: int = 0
    abandoned: int = 0
    retired: bool = False


class Connection:
    """Never more than one link in use; a retired one is closed when its last call has ended."""

    def __init__(self, uri: str, deadline_s: float) -> None:
        self._uri = uri
        self._deadline_s = deadline_s
        self._line: _Line | None = None
        self._lost = asyncio.Event()
        self._opening: asyncio.Task[_Line] | None = None
        self._closing: set[asyncio.Future[None]] = set()
        self._stopped = False
        self._on_event: list[Callable[[DomainEvent], None]] = []
        self._on_connected: list[Callable[[], None]] = []

    @property
    def connected(self) -> bool:
        """Whether there is a link that is not known to be dead."""
        return self._line is not None

    def on_event(self, callback: Callable[[DomainEvent], None]) -> Callable[[], None]:
        """Call ``callback`` on the event loop for each event; returns what ends that."""
        return _subscribe(self._on_event, callback)

    def on_connected(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call ``callback`` after each (re)connection; returns what ends that."""
        return _subscribe(self._on_connected, callback)

    async def use(self, turn: Turn, work: Callable[[Any], T]) -> T:
        """Run ``work`` on the libvirt.virConnect. Raises libvirtError, HypervisorUnavailable."""
        line = await self._get()
        future = turn.start(partial(work, line.link.connection), (libvirt.libvirtError,))
        line.calls += 1
        future.add_done_callback(lambda _: self._ended(line))
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            line.abandoned += 1
            if line.abandoned >= _ABANDONED_LIMIT:
                self._retire(line)
            raise
        except libvirt.libvirtError as err:
            if is_transport_error(err):
                self._retire(line)
            raise

    async def keep(self) -> None:
        """Connect, and again whenever the link is lost, until cancelled."""
        failures = 0
        while True:
            try:
                await self._get()
            except HypervisorUnavailable as err:
                if failures == 0:
                    log.warning("libvirt is not reachable: %s", err)
                await asyncio.sleep(_RETRY_S[min(failures, len(_RETRY_S) - 1)])
                failures += 1
            else:
                failures = 0
                await self._lost.wait()

    async def stop(self) -> None:
        """Close the link; waits for calls under way no longer than the deadline."""
        self._stopped = True
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait([self._opening])
        if self._line is not None:
            self._retire(self._line)
        if self._closing:
            await asyncio.wait(self._closing, timeout=self._deadline_s)

    async def _get(self) -> _Line:
        if self._line is not None:
            return self._line
        if self._stopped:
            raise HypervisorUnavailable(uri=self._uri, reason="the agent is stopping")
        if self._opening is None:
            self._opening = asyncio.create_task(self._open(), name="libvirt-open")
            self._opening.add_done_callback(note_failure)
        # Shared by all who wait, and not ended when one of them gives up: an attempt that hangs is the only one.
        return await asyncio.shield(self._opening)

    async def _open(self) -> _Line:
        loop = asyncio.get_running_loop()
        on_event = partial(_call_soon, loop, self._deliver)
        on_closed = partial(_call_soon, loop, self._closed)
        try:
            opened = in_thread(partial(Link, self._uri, self._deadline_s, on_event, on_closed), (libvirt.libvirtError,))
            link = await opened
        except libvirt.libvirtError as err:
            raise HypervisorUnavailable(uri=self._uri, reason=str(err)) from err
        finally:
            self._opening = None
        line = self._line = _Line(link)
        self._lost.clear()
        log.info("connected to libvirt at %s", self._uri)
        for callback in list(self._on_connected):
            callback()
        return line

    def _deliver(self, event: DomainEvent) -> None:
        for callback in list(self._on_event):
            callback(event)

    def _closed(self, link: Link) -> None:
        if self._line is not None and self._line.link is link:
            log.warning("libvirt at %s closed the connection", self._uri)
            self._retire(self._line)

    def _retire(self, line: _Line) -> None:
        if line.retired:
            return
        line.retired = True
        if self._line is line:
            self._line = None
            self._lost.set()
        if line.calls == 0:
            self._close(line)

    def _ended(self, line: _Line) -> None:
        line.calls -= 1
        if line.retired and line.calls == 0:
            self._close(line)

    def _close(self, line: _Line) -> None:
        closing = in_thread(line.link.close, (libvirt.libvirtError,))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)


def _subscribe(callbacks: list[Callable[..., None]], callback: Callable[..., None]) -> Callable[[], None]:
    callbacks.append(callback)
    return partial(_unsubscribe, callbacks, callback)


def _unsubscribe(callbacks: list[Callable[..., None]], callback: Callable[..., None]) -> None:
    with contextlib.suppress(ValueError):
        callbacks.remove(callback)


def _call_soon(loop: asyncio.AbstractEventLoop, callback: Callable[[C], None], argument: C) -> None:
    with contextlib.suppress(RuntimeError):  # the loop may have closed since; nobody listens then
        loop.call_soon_threadsafe(callback, argument)
