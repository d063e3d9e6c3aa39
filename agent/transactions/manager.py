"""The transactions of one host: begun once per id, committed or aborted, leased, and recovered after a crash."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Coroutine, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from agent.errors import (
    AgentRestarted,
    DomainRunning,
    HostFileNotFound,
    HypervisorUnavailable,
    LeaseExpired,
    PreconditionFailed,
    Released,
    TransactionEnded,
    TransactionMismatch,
    TransactionNotFound,
)
from agent.host.event_log import EventLog
from agent.host.hypervisor import Hypervisor
from agent.host.inventory import Inventory
from agent.limits import Limits
from agent.transactions.asked import KINDS, clash, is_same, require_sense
from agent.transactions.guard import Guards
from agent.transactions.journal import AnyRequest, Entry, Journal
from agent.transactions.running import Running
from agent.transactions.standing import busy_with, host_file_request, outcome, require_prepared, tell_end
from agent.transactions.survey import staging_dir
from agent.transactions.tools import Tools
from agent.transactions.uploads import collect
from agent.web import background
from agent.web.checkpoint import Checkpoint, no_checkpoint
from agent.web.errors import Error
from agent.wire.base import utc_now
from agent.wire.host_file import HostFile, HostFileType
from agent.wire.transaction import (
    DEFAULT_LEASE_S,
    ENDED,
    CloneRequest,
    DeleteRequest,
    ExportRequest,
    Transaction,
    TransactionRequest,
)

log = logging.getLogger(__name__)

#: How often leases are looked at and held-up work is tried again.
TICK_S = 1.0
#: How long ``put`` waits for a transaction to be prepared before it answers ``preparing``: copying a disk takes longer.
ANSWER_AFTER_S = 20.0


class Manager:
    """All transactions of this agent; one at a time for each domain."""

    def __init__(
        self,
        *,
        hypervisor: Hypervisor,
        inventory: Inventory,
        guards: Guards,
        events: EventLog,
        limits: Limits,
        checkpoint: Checkpoint = no_checkpoint,
    ) -> None:
        directory = limits.state_dir / "journal"
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        (limits.state_dir / "transactions").mkdir(mode=0o700, exist_ok=True)
        self.tools = Tools(hypervisor, inventory, guards, Journal(directory), limits, checkpoint)
        self._events = events
        self._known: dict[UUID, Running] = {}
        self._left: dict[UUID, Entry] = {}  # by a dead agent, and not taken up yet
        self._tasks: set[asyncio.Task[Any]] = set()
        self.answer_after_s = ANSWER_AFTER_S

    async def recover(self) -> None:
        """Undo or redo whatever a dead agent left, as the journal says; call it before anything is served.

        What is unforeseen at one of them is logged: its guard stays, ``tick`` tries again, and the others are served.
        """
        await self.forget()
        for entry in await asyncio.to_thread(lambda: list(self.tools.journal.entries())):
            running = Running(self.tools, entry)
            running.settled.set()
            self._known[entry.transaction.id] = running
            failure = await background.outcome(self._let_go(running) if entry.ended else self._recover(running, entry))
            if failure is not None:
                log.error("recovery-broke transaction=%s", entry.transaction.id, exc_info=failure)

    async def forget(self) -> None:
        """Forget the outcomes of transactions that ended long ago."""
        at_work = [
            one.transaction.id for one in self._known.values() if one.unclean or one.transaction.state not in ENDED
        ]
        prune, retention_s = self.tools.journal.prune, self.tools.limits.outcome_retention_s
        for id_ in await asyncio.to_thread(prune, retention_s, at_work):
            self._known.pop(id_, None)

    async def _let_go(self, running: Running) -> None:
        """Drop the guard of a transaction that died after its end was written; what cannot be now is tried again."""
        try:
            await asyncio.to_thread(running.let_go)
        except Error as err:
            log.warning("guard-stays transaction=%s reason=%s", running.transaction.id, err)
            running.unclean = True

    async def _recover(self, running: Running, entry: Entry) -> None:
        """Undo or redo. What cannot be taken up yet, as while its domain is starting, is tried again by ``tick``."""
        self._left[running.transaction.id] = entry
        problem = entry.rollback or (None if entry.commit else AgentRestarted(id=running.transaction.id).problem())
        async with running.lock:
            try:
                await running.resume(problem)
                overtaken = problem is None and await running.was_overtaken()
                del self._left[running.transaction.id]
                if problem is not None:
                    await running.undo(problem)
                elif overtaken:
                    await running.roll_back(DomainRunning(name=running.name).problem())
                else:
                    await running.finish()
            except Error as err:
                log.warning("recovery-waits transaction=%s reason=%s", running.transaction.id, err)
            await self._told(running)

    async def put(self, id_: UUID, request: TransactionRequest) -> Transaction:
        """Begin a transaction and answer when it is prepared; the same id and request answer the same again.

        What takes longer than ``answer_after_s`` is answered with ``preparing`` and goes on. Raises InvalidRequest,
        DomainBusy, TransactionMismatch, and what preparing raises.
        """
        known = self._known.get(id_)
        if known is not None:
            if not is_same(known.request, request):
                raise TransactionMismatch(id=id_)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(known.settled.wait(), self.answer_after_s)
            return outcome(known)
        require_sense(request)
        running = self._begin(id_, request)
        preparing = self._spawn(self._prepare(running, request.lease_s))
        if (await asyncio.wait([preparing], timeout=self.answer_after_s))[0]:
            preparing.result()
        return running.transaction

    def _begin(self, id_: UUID, request: AnyRequest) -> Running:
        other = self.in_the_way_of(request)
        if other is not None:
            raise busy_with(other)
        transaction = Transaction(
            id=id_,
            kind=KINDS[type(request)],
            vm=request.vm,
            state="preparing",
            started_at=utc_now(),
            snapshot=getattr(request, "snapshot", None),
        )
        running = Running(self.tools, Entry(request=request, transaction=transaction))
        self._known[id_] = running
        return running

    async def _prepare(self, running: Running, lease_s: float) -> None:
        async with running.lock:
            try:
                await running.prepare(lease_s)
            except Error:
                if running.transaction.state == "preparing":  # not even the journal could be written
                    del self._known[running.transaction.id]
                raise
            finally:
                running.settled.set()
                await self._told(running)

    def find(self, id_: UUID) -> Running | None:
        """Return a transaction with its request and plan."""
        return self._known.get(id_)

    def at_work_on(self, vm: UUID) -> Running | None:
        """Return the transaction of a domain that has not ended."""
        return next((one for one in self._unfinished() if one.request.vm == vm), None)

    def in_the_way_of(self, request: AnyRequest) -> Running | None:
        """Return a transaction that has not ended and touches a domain that this one would touch."""
        return next((one for one in self._unfinished() if clash(one.request, request)), None)

    def _unfinished(self) -> Iterator[Running]:
        return (one for one in self._known.values() if one.transaction.state not in ENDED)

    def get(self, id_: UUID) -> Transaction:
        """Return a transaction, ended ones included; TransactionNotFound after the retention."""
        return self.running(id_).transaction

    def all(self) -> list[Transaction]:
        """Return every transaction, oldest first."""
        return sorted((known.transaction for known in self._known.values()), key=lambda item: item.started_at)

    async def upload(
        self, id_: UUID, type_: HostFileType, chunks: AsyncIterator[bytes], announced: str | None = None
    ) -> Transaction:
        """Stage one host file of a revert. Raises HostFileTooLarge as soon as it is, HashMismatch at the end.

        ``announced`` is the SHA-256 that was sent along, which must be that of the request too.
        """
        running = self.running(id_)
        data = await collect(chunks, type_, self.tools.limits.host_file_limit_bytes, announced)
        async with running.lock:
            require_prepared(running)
            await running.receive(type_, data)
            return running.transaction

    def captured(self, id_: UUID, type_: HostFileType) -> Path:
        """Return the file of a captured host file until the end. Raises what ended it, HostFileNotFound."""
        running = self.running(id_)
        outcome(running)
        if type_ not in {item.type for item in running.transaction.host_files} or running.transaction.state in ENDED:
            raise HostFileNotFound(name=running.name, type=type_)
        return staging_dir(self.tools.limits, id_) / type_

    async def at_rest(self, id_: UUID) -> None:
        """Wait until nobody is at work on a transaction."""
        async with self.running(id_).lock:
            return

    async def commit(self, id_: UUID) -> Transaction:
        """Commit a prepared transaction; a committed one answers the same. A deletion goes on in the background."""
        running = self.running(id_)
        async with running.lock:
            if running.transaction.state in ("committing", "committed"):
                return running.transaction
            require_prepared(running)
            if running.lease_is_over():  # it may have slept (SIGSTOP, a suspended host) past its own deadline
                await running.undo(LeaseExpired(id=id_).problem())
                await self._told(running)
                raise LeaseExpired(id=id_)
            await running.commit()
        if isinstance(running.request, DeleteRequest):
            self._spawn(self._finish_unattended(running))
        else:
            await self._own(self._finish(running))
        return running.transaction

    async def _finish(self, running: Running) -> None:
        async with running.lock:
            try:
                if running.transaction.state == "committing":
                    await running.finish()
            except HypervisorUnavailable as err:
                log.warning("commit-waits transaction=%s reason=%s", running.transaction.id, err)
            finally:
                await self._told(running)

    async def _finish_unattended(self, running: Running) -> None:
        """Finish where nobody waits: what goes wrong is in the transaction or, if not even that, tried again."""
        try:
            await self._finish(running)
        except Error as err:
            log.warning("commit-waits transaction=%s reason=%s", running.transaction.id, err)

    async def abort(self, id_: UUID) -> Transaction:
        """Undo a transaction that is not committed; an aborted one answers the same. Copying that stages is broken off.

        A deletion can be aborted after its commit too, as long as no frozen file has been written to.
        """
        running = self.running(id_)
        if isinstance(running.request, CloneRequest | ExportRequest):
            running.interrupt()
        if running.transaction.state not in ENDED:
            running.withdraw(Released(id=id_).problem())
            await self._own(self._abort(running, Released(id=id_)))
        if running.transaction.state == "committed":
            raise TransactionEnded(id=id_, state="committed")
        return running.transaction

    async def _abort(self, running: Running, reason: Error) -> None:
        async with running.lock:
            if running.transaction.state in ("prepared", "aborting"):
                await running.undo(running.transaction.error or reason.problem())
                await self._told(running)
            elif running.withdrawn is not None and running.transaction.state == "committing":
                await running.finish()
                await self._told(running)
            elif running.transaction.state == "committing":
                raise TransactionEnded(id=running.transaction.id, state="committing")

    async def renew(self, id_: UUID) -> Transaction:
        """Count the lease of a prepared transaction anew, for as long as its request asked."""
        running = self.running(id_)
        async with running.lock:
            require_prepared(running)
            running.extend_lease(getattr(running.request, "lease_s", DEFAULT_LEASE_S))
            return running.transaction

    async def write_host_file(self, vm: UUID, type_: HostFileType, data: bytes, if_match: str | None) -> HostFile:
        """Replace one host file of a domain that is off. ``if_match``: the SHA-256 that the caller saw, or None."""
        running = self._begin(uuid4(), host_file_request(vm, type_, data))
        await self._own(self._write(running, type_, data, if_match))
        found, _ = await self.tools.inventory.read_host_file(vm, type_)
        return found

    async def _write(self, running: Running, type_: HostFileType, data: bytes, if_match: str | None) -> None:
        await self._prepare(running, DEFAULT_LEASE_S)
        try:
            await self.require_version(running.request.vm, type_, if_match)
            async with running.lock:
                await running.receive(type_, data)
                await running.commit()
        except Error as err:
            await self._abort(running, err)
            raise
        await self._finish(running)

    async def require_version(self, vm: UUID, type_: HostFileType, if_match: str | None) -> None:
        """Raise PreconditionFailed where a host file is not the one that the caller saw."""
        found = await self.tools.inventory.host_files(vm)
        present = {item.type: item.sha256 for item in found.items}.get(type_, "nothing")
        if if_match not in (None, present):
            raise PreconditionFailed(what=f"the {type_}", found=present, expected=if_match)

    async def watch(self) -> None:
        """Abort transactions whose lease ran out, and try again what is held up; runs until cancelled."""
        while True:
            await asyncio.sleep(TICK_S)
            await self.tick()

    async def tick(self) -> None:
        """Look once at every transaction that nobody is at work on and that has something left to do.

        Raises what was unforeseen at one of them, once all were looked at.
        """
        unforeseen: list[Exception] = []
        for running in list(self._known.values()):
            failure = None if running.lock.locked() else await background.outcome(self._look(running))
            if isinstance(failure, Error):
                log.warning("held-up transaction=%s reason=%s", running.transaction.id, failure)
            elif failure is not None:
                unforeseen.append(failure)
        if unforeseen:
            raise unforeseen[0]

    async def _look(self, running: Running) -> None:
        state = running.transaction.state
        if running.unclean and state in ENDED:
            await self._own(self._tidy(running))
        elif state == "prepared" and running.lease_is_over():
            await self._own(self._abort(running, LeaseExpired(id=running.transaction.id)))
        elif running.stuck and state not in ENDED:
            await self._own(self._again(running))

    def _again(self, running: Running) -> Coroutine[Any, Any, None]:
        if (left := self._left.get(running.transaction.id)) is not None:
            return self._recover(running, left)
        return self._finish(running) if running.transaction.state == "committing" else self._retry_undo(running)

    async def _tidy(self, running: Running) -> None:
        async with running.lock:
            await running.tidy()

    async def _retry_undo(self, running: Running) -> None:
        async with running.lock:
            if running.transaction.state == "aborting" and running.transaction.error is not None:
                await running.undo(running.transaction.error)
                await self._told(running)

    async def release(self, vm: UUID) -> Transaction | None:
        """Undo what holds a domain, for an operator. A guard without a transaction is dropped."""
        running = self.at_work_on(vm)
        if running is not None:
            return await self.abort(running.transaction.id)
        await asyncio.to_thread(self.tools.guards.release, vm)
        return None

    def running(self, id_: UUID) -> Running:
        """Return a transaction with what it works on. Raises TransactionNotFound."""
        if id_ not in self._known:
            raise TransactionNotFound(id=id_)
        return self._known[id_]

    async def _told(self, running: Running) -> None:
        await tell_end(self._events, running)

    async def _own(self, work: Coroutine[Any, Any, None]) -> None:
        """Wait for work that goes on even if the client that asked for it goes away."""
        await asyncio.shield(self._spawn(work))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Let go of work. What failed is in its transaction, also where nobody waits for it any more."""
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.info("work-failed reason=%s", task.exception())
