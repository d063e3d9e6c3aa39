"""The agent's connection to libvirt: made when needed, made again when it died, closed when nobody uses it any more.

It is several links, as none may carry two calls at once (agent.host.libvirt_link says why): one that watches, and one
for each call under way. A call takes an idle link or opens one and puts it back; where its caller gave up, that link is
closed when the call ends. The watching link and those opened while it was up are a generation and end together.

Opening hangs for as long as libvirtd does, and keep-alive cannot end it. Of the watching link there is one attempt,
which all who need it share. A call's own link is opened in the call's thread and turn (agent.host.threads): where
libvirtd stops between the two, that is one thread for a key at most, and no new one once the watching link is given up.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

import libvirt

from agent.errors import HypervisorUnavailable, OutOfThreads
from agent.host.libvirt_link import DomainEvent, Link, WatchLink, is_transport_error
from agent.host.threads import Turn, in_thread, note_failure

T = TypeVar("T")
C = TypeVar("C")

#: Pauses before reconnecting; a restart of libvirtd takes about a second.
_RETRY_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)

log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Generation:
    """A watching link and the idle ones that were opened while it was up. ``retired``: it takes none back any more."""

    watch: WatchLink
    idle: list[Link] = field(default_factory=list)
    retired: bool = False


@dataclass(eq=False)
class _Call(Generic[T]):
    """Work and the link that it has to itself, None until one is open. ``given_up``: nobody waits for it any more."""

    work: Callable[[Any], T]
    link: Link | None
    given_up: bool = False

    def run(self, uri: str, deadline_s: float) -> T:
        """Do the work, in a thread. Raises libvirtError, and HypervisorUnavailable where no link could be opened."""
        if self.link is None:
            try:
                self.link = Link(uri, deadline_s)
            except libvirt.libvirtError as err:
                raise HypervisorUnavailable(uri=uri, reason=str(err)) from err
            if self.given_up:  # opening may have taken hours; what was wanted then must not happen now
                raise HypervisorUnavailable(uri=uri, reason="the caller gave up before libvirt answered")
        return self.work(self.link.connection)


class Connection:
    """Links of at most one generation in use; those of earlier ones are closed as their calls end."""

    def __init__(self, uri: str, deadline_s: float) -> None:
        self._uri = uri
        self._deadline_s = deadline_s
        self._generation: _Generation | None = None
        self._lost = asyncio.Event()
        self._opening: asyncio.Task[_Generation] | None = None
        self._closing: set[asyncio.Future[None]] = set()
        self._stopped = False
        self._on_event: list[Callable[[DomainEvent], None]] = []
        self._on_connected: list[Callable[[], None]] = []

    @property
    def connected(self) -> bool:
        """Whether there is a watching link that is not known to be dead."""
        return self._generation is not None

    def on_event(self, callback: Callable[[DomainEvent], None]) -> Callable[[], None]:
        """Call ``callback`` on the event loop for each event; returns what ends that."""
        return _subscribe(self._on_event, callback)

    def on_connected(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call ``callback`` after each (re)connection; returns what ends that."""
        return _subscribe(self._on_connected, callback)

    async def use(self, turn: Turn, work: Callable[[Any], T]) -> T:
        """Run ``work`` on a libvirt.virConnect of its own. Raises libvirtError, HypervisorUnavailable."""
        generation = await self._get()
        call = _Call(work, generation.idle.pop() if generation.idle else None)
        run = partial(call.run, self._uri, self._deadline_s)
        future = turn.start(run, (libvirt.libvirtError, HypervisorUnavailable))
        future.add_done_callback(partial(self._ended, generation, call))
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            call.given_up = True
            raise
        except OutOfThreads as err:
            raise HypervisorUnavailable(uri=self._uri, reason=str(err)) from err

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
        """Close the links; waits for that no longer than the deadline. A call under way closes its own when it ends."""
        self._stopped = True
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait([self._opening])
        if self._generation is not None:
            self._retire(self._generation)
        if self._closing:
            await asyncio.wait(self._closing, timeout=self._deadline_s)

    async def _get(self) -> _Generation:
        if self._generation is not None:
            return self._generation
        if self._stopped:
            raise HypervisorUnavailable(uri=self._uri, reason="the agent is stopping")
        if self._opening is None:
            self._opening = asyncio.create_task(self._open(), name="libvirt-open")
            self._opening.add_done_callback(note_failure)
        # Shared by all who wait, and not ended when one of them gives up: an attempt that hangs is the only one.
        return await asyncio.shield(self._opening)

    async def _open(self) -> _Generation:
        loop = asyncio.get_running_loop()
        on_event = partial(_call_soon, loop, self._deliver)
        on_closed = partial(_call_soon, loop, self._closed)
        try:
            opening = partial(WatchLink, self._uri, self._deadline_s, on_event, on_closed)
            watch = await in_thread(opening, (libvirt.libvirtError, OutOfThreads))
        except (libvirt.libvirtError, OutOfThreads) as err:
            raise HypervisorUnavailable(uri=self._uri, reason=str(err)) from err
        finally:
            self._opening = None
        generation = self._generation = _Generation(watch)
        self._lost.clear()
        log.info("connected to libvirt at %s", self._uri)
        for callback in list(self._on_connected):
            callback()
        return generation

    def _deliver(self, event: DomainEvent) -> None:
        for callback in list(self._on_event):
            callback(event)

    def _closed(self, watch: WatchLink) -> None:
        if self._generation is not None and self._generation.watch is watch:
            log.warning("libvirt at %s closed the connection", self._uri)
            self._retire(self._generation)

    def _ended(self, generation: _Generation, call: _Call[Any], future: asyncio.Future[Any]) -> None:
        """Retire the generation of a dead link, and put a healthy one back."""
        if call.link is None:
            return  # it could not be opened, which says nothing of the others
        err = future.exception()
        if isinstance(err, libvirt.libvirtError) and is_transport_error(err):
            self._retire(generation)
            self._close(call.link)
        elif call.given_up or generation.retired:
            self._close(call.link)
        else:
            generation.idle.append(call.link)

    def _retire(self, generation: _Generation) -> None:
        if generation.retired:
            return
        generation.retired = True
        if self._generation is generation:
            self._generation = None
            self._lost.set()
        for link in (generation.watch, *generation.idle):
            self._close(link)
        generation.idle.clear()

    def _close(self, link: Link) -> None:
        closing = in_thread(link.close, (libvirt.libvirtError,))
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
