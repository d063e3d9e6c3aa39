"""One operation as the module of its kind sees it.

Everything that a second run needs to find what the first one did is either derived from the operation's UUID or
remembered in its row before it is used, so that a job may be run again from the top after a crash at any line.
"""

import logging
from collections.abc import Awaitable, Callable
from copy import copy
from dataclasses import dataclass, field
from functools import partial, update_wrapper
from typing import Any, ParamSpec, TypeVar
from uuid import UUID, uuid5

import msgspec

from agent.client import AgentClient
from agent.web.log import kv
from controller.archive.transfers import Streams
from controller.db import Database
from controller.errors import OperationCancelled
from controller.hosts import Hosts
from controller.store import operations

log = logging.getLogger("coldframe.operations")

P = ParamSpec("P")
T = TypeVar("T")
Undo = Callable[[], Awaitable[object]]

#: The result of an operation whose purpose is fulfilled; it stands in the row from the same transaction on.
CONCLUDED = "concluded"
_SEALED = "sealed "


class Parked(Exception):
    """Raised by a job that can only be done while its VM is off: it waits for that, outside the queue.

    Nothing that the job has begun may stand, but for what ``on_failure`` takes back.
    """


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long, and with how much, an operation bears with a host.

    ``lease_s`` is asked of the agent and renewed at a third of it, so that two renewals may be lost. A host that
    does not answer before commit was sent is tried ``tries`` times: giving up there is safe, the lease undoes
    what it staged. After commit was sent only the host knows how it ended, so it is asked until
    ``outcome_deadline_s``; ``retry_s`` grows twofold up to ``retry_max_s``. ``poll_s`` is between two looks at a merge.
    """

    lease_s: float = 120.0
    tries: int = 4
    retry_s: float = 0.5
    retry_max_s: float = 10.0
    outcome_deadline_s: float = 600.0
    poll_s: float = 0.5
    host_file_limit_bytes: int = 16 << 20


@dataclass
class Job:
    """One operation under way. ``request`` is the caller's, ``memo`` what earlier steps remembered."""

    row: operations.Job
    db: Database
    hosts: Hosts
    patience: Patience = field(default_factory=Patience)
    streams: Streams = field(default_factory=Streams)
    cancelled: bool = False
    #: Another host than the operation's own, for a view of the job that ``at`` gave.
    elsewhere: str | None = None
    #: Wakes the engine for operations that this one has queued.
    nudge: Callable[[], None] = lambda: None
    #: Hosts that were given up on, and why.
    unanswered: dict[str, str] = field(default_factory=dict)
    #: Whether what was committed can be stopped for now: the host is asked, and may refuse.
    stoppable: bool = False

    def __post_init__(self) -> None:
        self._owner = self.row.owner
        self._begin()

    async def owned(self, act: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do on the database's thread what only the engine that has the operation may do. Raises operations.Lost."""
        fenced = partial(operations.as_owner, self.uuid, self._owner, act)
        return await self.db.run(update_wrapper(fenced, act), *args, **kwargs)  # its commits keep the name of the act

    async def again(self) -> None:
        """Begin anew from what the row says, as after a restart."""
        self.row = await self.db.run(operations.job, self.uuid)
        self._begin()

    def _begin(self) -> None:
        self.memo: dict[str, Any] = dict(self.row.memo)
        self.cancelled = self.cancelled or self.row.cancel_requested
        self._undo: list[tuple[UUID, Undo]] = []
        self._sealed = {UUID(key.removeprefix(_SEALED)) for key in self.memo if key.startswith(_SEALED)}
        self._refuted: set[UUID] = set()
        self._recorded: set[UUID] = set()

    @property
    def uuid(self) -> UUID:
        """The operation's UUID."""
        return self.row.operation.uuid

    @property
    def vm(self) -> UUID:
        """The VM that the operation is about."""
        vm = self.row.operation.vm
        if vm is None:
            raise TypeError(f"operation {self.uuid} of kind {self.row.operation.kind} has no VM")
        return vm

    @property
    def host(self) -> str:
        """The host that the VM was on when the operation was asked for."""
        host = self.elsewhere or self.row.operation.host
        if host is None:
            raise TypeError(f"operation {self.uuid} of kind {self.row.operation.kind} has no host")
        return host

    def at(self, host: str) -> "Job":
        """Return a view of this job whose transactions are on another host. What it does is remembered by this one."""
        view = copy(self)
        view.elsewhere = host
        return view

    @property
    def client(self) -> AgentClient:
        """The client of the operation's host. Raises HostNotFound when it was removed."""
        return self.hosts.client(self.host)

    @property
    def sealed(self) -> bool:
        """Whether a commit may have been sent, so that cancelling is too late."""
        return bool(self._sealed)

    @property
    def in_doubt(self) -> bool:
        """Whether a commit may have been sent whose end is not in the records yet."""
        return bool(self._sealed - self._refuted - self._recorded)

    def doubts(self, transaction: UUID) -> bool:
        """Whether this transaction's commit may have been sent, and its end is not in the records yet."""
        return transaction in self._sealed - self._refuted - self._recorded

    def is_sealed(self, transaction: UUID) -> bool:
        """Whether this transaction's commit may have been sent, now or before a restart."""
        return transaction in self._sealed

    def id_for(self, role: str) -> UUID:
        """Return the UUID of what this operation makes, the same one at every run."""
        tries = self.row.memo.get(operations.TRIES, 0)  # what it began before it was parked has ended
        return uuid5(self.uuid, f"{role} {tries}" if tries else role)

    def wanted(self, kind: type[T]) -> T:
        """Return the caller's request as its type."""
        return msgspec.convert(self.row.request, kind)

    def recalled(self, key: str, kind: type[T]) -> T | None:
        """Return what an earlier step, perhaps before a restart, remembered under ``key``."""
        return msgspec.convert(self.memo[key], kind) if key in self.memo else None

    async def step(self, name: str, facts: dict[str, Any] | None = None) -> None:
        """Show what comes next, and remember ``facts``: they are there after a restart once this returns.

        Raises OperationCancelled where that was asked for and is still safe.
        """
        if self.cancelled and not self.sealed:
            raise OperationCancelled(operation=self.uuid)
        log.info(kv("step", operation=self.uuid, kind=self.row.operation.kind, vm=self.row.operation.vm, step=name))
        self.db.checkpoint(f"step {name}")
        memo = {key: msgspec.to_builtins(value) for key, value in (facts or {}).items()}
        self.memo.update(memo)
        await self.db.run(operations.progress, self.uuid, step=name, memo=memo)

    async def progress(self, done_bytes: int, total_bytes: int) -> None:
        """Show how far the work is."""
        await self.db.run(operations.progress, self.uuid, done_bytes=done_bytes, total_bytes=total_bytes)

    async def seal(self, transaction: UUID) -> None:
        """Announce that commit is sent next: from here on the job cannot be cancelled, and is not undone unless
        the host says that it did not commit.

        The memory is set before the row, so that a cancel which comes in between is refused. Raises operations.Lost:
        whoever took the operation over has read that no commit was sent, and must stay right.
        """
        if transaction in self._sealed:
            return
        if self.cancelled and not self.sealed:
            raise OperationCancelled(operation=self.uuid)
        self._sealed.add(transaction)
        memo = {f"{_SEALED}{transaction}": True}
        try:
            await self.owned(operations.progress, self.uuid, step="commit", memo=memo)
        except operations.Lost:
            self._sealed.discard(transaction)
            raise

    def refuted(self, transaction: UUID) -> None:
        """Note that the host said that it did not commit."""
        self._refuted.add(transaction)

    def recorded(self, transaction: UUID, result: dict[str, Any] | None = None) -> None:
        """Note that the end is in the records: what was registered to take it back is forgotten.

        With ``result`` the operation's purpose is fulfilled: whatever fails after that, it has succeeded.
        """
        if result is not None:
            self.memo[CONCLUDED] = result
        self._recorded.add(transaction)
        self._undo[:] = [one for one in self._undo if one[0] != transaction]

    def on_failure(self, transaction: UUID, undo: Undo) -> None:
        """Register what takes the next step of a transaction back. It must be harmless where that never happened."""
        self._undo.append((transaction, undo))

    def pending_undo(self) -> list[Undo]:
        """Hand over what takes the steps back, last first, leaving out transactions that may have been committed."""
        undo = self._undo[::-1]
        self._undo.clear()
        return [one for of, one in undo if of not in self._sealed or of in self._refuted]
