"""Connections to libvirt: opening them, watching one, its lifecycle events, closing them. Blocking; used in threads.

libvirt-python needs its own event loop for keep-alive messages, close notices and domain events
(https://libvirt.org/html/libvirt-libvirt-event.html). It runs in one thread for the whole process.

A link carries one call at a time, always (docs/decisions/0012). libvirt's client lets several threads wait on one
connection, but before libvirt 10.4 (CVE-2024-4418; Debian 12 has 9.0) it leaves the event source of a thread that
another one woke behind, with a pointer into that thread's stack. When keep-alive gives up a connection that two calls
wait on, the second one runs what the first left, and the process dies of SIGSEGV. Of a lone call nothing is left that
anybody runs.
"""

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal
from uuid import UUID

import libvirt

from agent.errors import OutOfThreads

DomainEventKind = Literal["defined", "undefined", "renamed", "started", "stopped"]

_KINDS: dict[int, DomainEventKind] = {
    libvirt.VIR_DOMAIN_EVENT_DEFINED: "defined",
    libvirt.VIR_DOMAIN_EVENT_UNDEFINED: "undefined",
    libvirt.VIR_DOMAIN_EVENT_STARTED: "started",
    libvirt.VIR_DOMAIN_EVENT_STOPPED: "stopped",
}
#: Missed keep-alive answers after which libvirt gives the connection up.
_KEEPALIVE_COUNT = 2
#: Error domains of the connection itself, as against what was asked over it.
_TRANSPORT = frozenset({libvirt.VIR_FROM_RPC, libvirt.VIR_FROM_REMOTE})


@dataclass(frozen=True, kw_only=True)
class DomainEvent:
    """A change of a domain that libvirt told of. ``old_name`` is set for ``renamed``."""

    kind: DomainEventKind
    uuid: UUID
    name: str
    old_name: str | None = None


def is_transport_error(err: libvirt.libvirtError) -> bool:
    """Whether a call failed because the connection did, and not because of what was asked."""
    return err.get_error_domain() in _TRANSPORT or err.get_error_code() == libvirt.VIR_ERR_NO_CONNECT


@lru_cache(maxsize=1)
def start_event_loop() -> threading.Thread:
    """Start libvirt's event loop, once in this process, before the first connection is opened. Raises OutOfThreads."""
    # Without a handler libvirt prints each error on stderr, besides raising it.
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    libvirt.virEventRegisterDefaultImpl()
    thread = threading.Thread(target=_run_event_loop, name="libvirt-events", daemon=True)
    try:
        thread.start()
    except RuntimeError as err:
        raise OutOfThreads(reason=str(err)) from err
    return thread


def _run_event_loop() -> None:
    while True:
        libvirt.virEventRunDefaultImpl()


class Link:
    """An open connection, for one call at a time (see the module).

    A dead server is noticed after about three fifths of ``deadline_s`` (three intervals of a fifth, 1 s at least); a
    call that waits for it then fails.
    """

    def __init__(self, uri: str, deadline_s: float) -> None:
        """Connect. Raises libvirtError. Nothing ends the attempt while libvirtd hangs: keep-alive begins after it."""
        start_event_loop()
        self.connection = libvirt.open(uri)
        with contextlib.suppress(libvirt.libvirtError):  # libvirt's test driver has no server to keep alive
            self.connection.setKeepAlive(max(1, round(deadline_s / 5)), _KEEPALIVE_COUNT)

    def close(self) -> None:
        """Close it. No call may be under way on it: libvirt would free what that call still uses."""
        with contextlib.suppress(libvirt.libvirtError):  # it may be dead already, which is why it is closed
            self.connection.close()


class WatchLink(Link):
    """A link that tells of libvirt's events and of its own end, and is used for nothing else.

    ``on_event`` and ``on_closed`` are called in libvirt's event thread and must return at once.
    """

    def __init__(
        self,
        uri: str,
        deadline_s: float,
        on_event: Callable[[DomainEvent], None],
        on_closed: Callable[["WatchLink"], None],
    ) -> None:
        """Connect. Raises libvirtError."""
        super().__init__(uri, deadline_s)
        self._on_event = on_event
        self._on_closed = on_closed
        self._renames: dict[str, str] = {}
        self.connection.registerCloseCallback(lambda *_: self._on_closed(self), None)
        self._callback_id = self.connection.domainEventRegisterAny(
            None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._lifecycle, None
        )

    def close(self) -> None:
        """Withdraw the callbacks and close it."""
        for step in (
            lambda: self.connection.domainEventDeregisterAny(self._callback_id),
            self.connection.unregisterCloseCallback,
        ):
            with contextlib.suppress(libvirt.libvirtError):  # as in Link.close
                step()
        super().close()

    def _lifecycle(self, _connection: Any, domain: Any, event: int, detail: int, _opaque: object) -> None:
        kind, uuid, name = _KINDS.get(event), domain.UUIDString(), domain.name()
        if kind == "undefined" and detail == libvirt.VIR_DOMAIN_EVENT_UNDEFINED_RENAMED:
            self._renames[uuid] = name  # `defined` with the new name follows at once
        elif kind == "defined" and detail == libvirt.VIR_DOMAIN_EVENT_DEFINED_RENAMED:
            old = self._renames.pop(uuid, None)
            self._on_event(DomainEvent(kind="renamed", uuid=UUID(uuid), name=name, old_name=old))
        elif kind is not None:
            self._on_event(DomainEvent(kind=kind, uuid=UUID(uuid), name=name))
