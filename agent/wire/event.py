"""The agent's durable event log."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec

from agent.wire.base import Answer

EventSource = Literal["hook", "libvirt", "network", "agent"]
#: The controller passes it on as a line of its event stream: a host must not be able to begin another line.
EventType = Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z.-]*(?!\n)$", max_length=64)]


class HostEvent(Answer, kw_only=True, frozen=True):
    """One line of a host's event log. ``seq`` grows by one and is never reused on that host.

    Types: ``vm.starting vm.started vm.stopped vm.start-refused`` (hook, or libvirt while the hook is not in
    force), ``vm.defined vm.undefined vm.renamed`` (libvirt), ``host.address host.link`` (network),
    ``transaction.ended spool.rejected`` (agent; the latter: a file in the spool that is not a note of the hook).

    ``data`` of a hook's event: ``boot_id``, and ``reason``: why a start was refused, or how the domain stopped
    (libvirt's word, or ``start-failed`` where it never came to run).
    """

    seq: int
    at: datetime
    type: EventType
    source: EventSource
    vm: UUID | None = None
    vm_name: str | None = None
    data: dict[str, Any] = {}

    @classmethod
    def example(cls) -> "HostEvent":
        """Return an example for documentation and tests."""
        return cls(
            seq=41,
            at=datetime(2026, 11, 2, 9, 30, tzinfo=UTC),
            type="vm.stopped",
            source="hook",
            vm=UUID("6e0f1c1e-6d9e-4b8e-9f57-1b9b4c3f8a11"),
            vm_name="win11",
            data={"reason": "shutdown"},
        )


class HostEvents(Answer, kw_only=True, frozen=True):
    """Events after the cursor that was asked for, oldest first. Ask again with ``after=next``.

    ``log`` names this log: it changes when a host was set up anew, and then numbers start again.
    ``oldest`` is the lowest number still kept; a cursor below ``oldest - 1`` has missed events and must resync.
    """

    items: list[HostEvent]
    next: int
    log: UUID
    oldest: int

    @classmethod
    def example(cls) -> "HostEvents":
        """Return an example for documentation and tests."""
        return cls(items=[HostEvent.example()], next=41, log=UUID("9f0c3d52-4d5b-4e7c-b0a9-2f6f5f9c1a77"), oldest=1)
