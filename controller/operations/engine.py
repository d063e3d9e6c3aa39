"""The engine: runs queued operations in the background and sees to it that each of them ends.

An operation is a row before it is anything else. The database hands rows out (``operations.claim_next``): the
first of each VM's queue, as many per host as allowed; so a queue has no second copy in memory that a restart
could lose. A row that is claimed carries this engine's name and a count that it keeps raising: a second controller on
the same database, started by mistake, leaves it alone, and takes it over when the count has stood still for a lease on
its own monotonic clock. What time it is matters to none of the two.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self
from uuid import UUID

import msgspec

from agent.web.background import keep_going, outcome
from agent.web.errors import Error
from agent.web.log import WORK_ID, kv
from agent.wire.base import Request
from agent.wire.operation import OPERATION_ENDED, Operation, OperationState
from agent.wire.problem import Problem
from controller import owners
from controller.archive.transfers import PATIENCE_S, Streams
from controller.db import Database, write
from controller.errors import (
    DatabaseFailed,
    OperationCancelled,
    OperationNotCancellable,
    OperationNotFound,
    OutcomeUnknown,
)
from controller.hosts import Hosts
from controller.operations.ending import endings, parked, taken_back_on_failure
from controller.operations.job import CONCLUDED, Job, Parked, Patience
from controller.store import operations

log = logging.getLogger("coldframe.operations")

#: Runs of one job whose commit was sent and that fails all the same, not counting those that the database failed.
_RUNS = 3

Run = Callable[[Job], Awaitable[dict[str, Any]]]
#: Checks, on the database's thread, and returns the VM and the host of an operation.
Place = Callable[[], tuple[UUID | None, str | None]]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """``per_host``: operations at once on one host; two keep a disk busy and leave the guests their share.

    ``owner_lease_s``: an engine that is not heard of for so long is taken to be dead; each lets itself be heard of at a
    third.
    ``record_retry_s``: between tries to record an end that the database refused to take. ``parked_s``: an operation
    that waits for its VM to stop is not tried again for so long, though the VM is recorded as off: it may be starting.
    ``stream_s``: an export or import whose caller has not come with its stream by then fails.
    ``look_s``, doubled up to ``look_max_s``: before a host is looked at again that one job of a VM after the other gave
    up on.
    """

    per_host: int = 4
    owner_lease_s: float = 15.0
    record_retry_s: float = 2.0
    parked_s: float = 5.0
    stream_s: float = PATIENCE_S
    look_s: float = 1.0
    look_max_s: float = 30.0
    patience: Patience = field(default_factory=Patience)


class Engine:
    """Runs operations of the given kinds until it is closed. Used on the event loop's thread only."""

    def __init__(self, db: Database, hosts: Hosts, kinds: Mapping[str, Run], limits: Limits | None = None) -> None:
        self.db = db
        self.hosts = hosts
        self.kinds = kinds
        self.limits = limits or Limits()
        self.streams = Streams(self.limits.stream_s)
        self.owner = owners.new()
        self._silence = owners.Silence(self.limits.owner_lease_s)
        self._jobs: dict[UUID, tuple[Job, asyncio.Task[None]]] = {}
        self._pauses_s: dict[UUID | None, float] = {}
        self._nudge = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._loop = asyncio.create_task(keep_going("operations", self._serve), name="operations")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop. What is under way stays as its row says and is resumed by the next engine, at once."""
        tasks = [task for _, task in self._jobs.values()]
        if self._loop is not None:
            tasks.append(self._loop)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.db.run(operations.release, self.owner)

    async def submit(self, kind: str, request: Request, place: Place, key: str | None = None) -> Operation:
        """Queue an operation; the same idempotency key and request give the same one, whatever became of it.

        ``place`` checks what can be checked before anything is queued, and says which VM and host the work is for;
        it runs in the transaction that queues. Raises what it raises, and IdempotencyConflict.
        """
        if kind not in self.kinds:
            raise KeyError(kind)
        operation = await self.db.run(queue, kind, msgspec.to_builtins(request), place, key)
        self._nudge.set()
        return operation

    def nudge(self) -> None:
        """Look for operations that were queued by others than ``submit``."""
        self._nudge.set()

    async def wait(self, uuid: UUID, timeout_s: float) -> Operation:
        """Return the operation when it has ended, or as it is after ``timeout_s``. Raises OperationNotFound.

        One that comes to wait for its VM to stop is returned too: that may take days.
        """
        version = self.db.version
        operation = await self.db.run(operations.get, uuid)
        parked = operation.is_parked
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while operation.state not in OPERATION_ENDED and operation.is_parked <= parked:
                    await self.db.changed(version)
                    version = self.db.version
                    operation = await self.db.run(operations.get, uuid)
        return operation

    async def cancel(self, uuid: UUID) -> Operation:
        """Cancel: a queued operation ends at once, a running one before its next step, unless commit was sent.

        A deletion can be stopped even then, until its host has begun to write to frozen files.

        Raises OperationNotFound, OperationNotCancellable.
        """
        self.require_cancellable(uuid)
        self._tell_cancelled(uuid)
        operation = await self.db.run(operations.cancel, uuid)
        self._tell_cancelled(uuid)  # its row was read before it said so, where it was claimed in that moment
        self._nudge.set()
        return operation

    def _tell_cancelled(self, uuid: UUID) -> None:
        held = self._jobs.get(uuid)
        if held is not None:
            held[0].cancelled = True

    def require_cancellable(self, uuid: UUID) -> None:
        """Raise OperationNotCancellable for a job whose commit may have been sent and that cannot be stopped."""
        held = self._jobs.get(uuid)
        if held is not None and held[0].sealed and not held[0].stoppable:
            raise OperationNotCancellable(operation=uuid, state="being committed")

    async def _serve(self) -> None:
        """Take over what other engines left, start what may run, keep the lease; again at every nudge."""
        while True:
            self._nudge.clear()
            failure = await outcome(self._round())
            if isinstance(failure, Exception):
                log.error(kv("operations-round-failed"), exc_info=failure)
            with suppress(TimeoutError):
                async with asyncio.timeout(self.limits.owner_lease_s / 3):
                    await self._nudge.wait()

    async def _round(self) -> None:
        await self.db.run(operations.renew, self.owner)
        await self._drop_lost()
        unfinished = await self.db.run(operations.unfinished)
        self._silence.forget_others(left.operation.uuid for left in unfinished)
        for left in unfinished:
            uuid = left.operation.uuid
            if uuid in self._jobs or not await self._is_free(left):
                continue
            if await self.db.run(operations.claim, uuid, self.owner, lost=(left.owner, left.beat)):
                self._start(await self.db.run(operations.job, uuid))
        while (row := await self.db.run(operations.claim_next, self.owner, self.limits.per_host)) is not None:
            self._start(row)

    async def _is_free(self, left: operations.Job) -> bool:
        """Tell whether nobody runs it: its owner has left it, or is dead, or was not heard of for a lease.

        Ours and not begun is one whose claim the database took and then failed to say so.
        """
        if left.owner is None or left.owner == self.owner:
            return True
        if self._silence.is_over(left.operation.uuid, (left.owner, left.beat)):
            return True
        return await asyncio.to_thread(owners.is_dead, left.owner)

    async def _drop_lost(self) -> None:
        """Let go of jobs that another engine has taken over because we were not heard of for too long.

        And of those that the database does not know any more: it is an older copy, of a standby perhaps.
        """
        for uuid, (_, task) in list(self._jobs.items()):
            try:
                row = await self.db.run(operations.job, uuid)
            except OperationNotFound as err:
                log.error(kv("operation-lost", operation=uuid, reason=err))  # noqa: TRY400 - the text says it all
                task.cancel()
                continue
            if row.owner != self.owner and row.operation.state == "running":
                log.error(kv("operation-lost", operation=uuid, owner=row.owner))
                task.cancel()

    def _start(self, row: operations.Job) -> None:
        uuid = row.operation.uuid
        if uuid in self._jobs:
            return
        job = Job(row, self.db, self.hosts, self.limits.patience, streams=self.streams, nudge=self.nudge)
        task = asyncio.create_task(self._run(job), name=f"operation {uuid}")
        self._jobs[uuid] = (job, task)
        task.add_done_callback(lambda _: self._ended(uuid))

    def _ended(self, uuid: UUID) -> None:
        self._jobs.pop(uuid, None)
        self._nudge.set()

    async def _run(self, job: Job) -> None:
        """Run one job to its recorded end, whatever happens inside it."""
        WORK_ID.set(str(job.uuid))
        ended = await self._carry_out(job)
        while (failure := await outcome(self._record(job, ended))) is not None:
            if isinstance(failure, operations.Lost):
                log.error(kv("operation-lost", operation=job.uuid, reason=failure))
                return
            # The caller still waits and the row still says "running": the database must take the end, sooner or later.
            log.error(kv("operation-end-not-recorded", operation=job.uuid), exc_info=failure)
            await asyncio.sleep(self.limits.record_retry_s)
        await self._have_looked_at(job)  # not before: what is queued then waits for no open operation

    async def _have_looked_at(self, job: Job) -> None:
        """Have the hosts looked at that a job gave up on: at once, and ever later while the VM's next jobs do so too.

        A host that answers the look and not the job has the job queued again by it, for as long as that lasts.
        """
        vm = job.row.operation.vm
        pause_s = self._pauses_s.pop(vm, 0.0)
        if not job.unanswered:
            return
        self._pauses_s[vm] = min(max(self.limits.look_s, 2 * pause_s), self.limits.look_max_s)
        await asyncio.sleep(pause_s)
        for host, reason in job.unanswered.items():
            failure = await outcome(self.hosts.did_not_answer(host, reason))
            if failure is not None:
                log.error(kv("host-not-recorded", host=host), exc_info=failure)

    async def _carry_out(self, job: Job) -> dict[str, Any] | Exception:
        """Run a job; what failed after commit was sent is run again, as a restart would, and before that taken back.

        As often as the database refuses: what the host has done must get into the records, and so must the end.
        """
        left = _RUNS
        while True:
            for promised in endings(job.memo):  # by an earlier run: this one may fail before it gets as far
                taken_back_on_failure(job, promised)
            ended = await outcome(self.kinds[job.row.operation.kind](job))
            if not isinstance(ended, Exception) or isinstance(ended, operations.Lost):
                return ended
            if isinstance(ended, Parked):
                await self._take_back(job)
                return ended
            if not isinstance(ended, DatabaseFailed):
                left -= 1
            if left and job.in_doubt and not isinstance(ended, OutcomeUnknown):
                log.error(kv("operation-run-again", operation=job.uuid), exc_info=ended)
                await asyncio.sleep(self.limits.record_retry_s)
                await outcome(job.again())
                continue
            await self._take_back(job)
            return await self._unless_concluded(job, ended)

    @staticmethod
    async def _unless_concluded(job: Job, failure: Exception) -> dict[str, Any] | Exception:
        """Return the result of a job that failed only in what comes after its purpose was fulfilled.

        The row decides: a database that failed to say that it has committed may have done so.
        """
        row = await outcome(job.db.run(operations.job, job.uuid))
        result = (job.memo if isinstance(row, Exception) else row.memo).get(CONCLUDED)
        if result is None:
            return failure
        log.error(kv("failed-after-conclusion", operation=job.uuid), exc_info=failure)
        text = (
            failure.problem().detail
            if isinstance(failure, Error)
            else "something unexpected went wrong afterwards; see the log"
        )
        return {**result, "remarks": [text]}

    async def _take_back(self, job: Job) -> None:
        """Undo the steps of a failed job, last first. A step that cannot be taken back does not keep the others."""
        for undo in job.pending_undo():
            failure = await outcome(undo())
            if isinstance(failure, Exception):
                log.error(kv("undo-failed", operation=job.uuid), exc_info=failure)

    @staticmethod
    def problem_of(job: Job, err: Exception) -> Problem:
        """Return what a caller may know: our own errors as they are, of any other nothing but that it happened."""
        if isinstance(err, Error):
            return err.problem()
        log.error(kv("operation-crashed", operation=job.uuid, kind=job.row.operation.kind), exc_info=err)
        return Error(operation=str(job.uuid)).problem()

    async def _record(self, job: Job, ended: dict[str, Any] | Exception) -> None:
        state: OperationState = "succeeded"
        if isinstance(ended, operations.Lost):
            raise ended
        if isinstance(ended, Parked):
            await job.owned(parked, job.uuid, self.limits.parked_s)
            log.info(kv("operation-parked", operation=job.uuid, vm=job.row.operation.vm))
        elif isinstance(ended, Exception):
            state = "cancelled" if isinstance(ended, OperationCancelled) else "failed"
            error = self.problem_of(job, ended)
            await job.owned(operations.finish, job.uuid, state, error=error)
            log.warning(kv("operation-ended", operation=job.uuid, state=state, code=error.code, detail=error.detail))
        else:
            await job.owned(operations.finish, job.uuid, state, result=ended)
            log.info(kv("operation-ended", operation=job.uuid, state=state))


def queue(kind: str, request: Any, place: Place, key: str | None, uuid: UUID | None = None) -> Operation:
    """Check and queue in one transaction. Raises what ``place`` raises, and IdempotencyConflict."""
    with write():
        try:
            vm, host = place()
        except Error:
            # The work of this key may be why it is refused now: the snapshot that it deleted is gone.
            known = None if key is None else operations.by_key(key)
            if known is None:
                raise
            vm, host = known.vm, known.host
        return operations.enqueue(kind, vm, host, request, key=key, uuid=uuid)
