"""A transaction of an agent as operations use it: prepare, keep its lease, commit, learn how it ended.

The agent's ``commit`` record decides. Before commit is sent, giving up is safe: abort, or the lease, undoes what
was staged. After it was sent only the agent knows, so it is asked, and nothing is ever guessed.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TypeVar
from uuid import UUID

from agent.client import AgentProblem, AgentUnreachable
from agent.web.errors import Error
from agent.web.log import kv
from agent.wire.host_file import HostFileType
from agent.wire.plan import Plan
from agent.wire.problem import Problem
from agent.wire.transaction import ENDED, Transaction, TransactionRequest
from controller.errors import (
    CaptureCorrupt,
    HostFileTooLarge,
    HostUnreachable,
    OperationCancelled,
    OutcomeUnknown,
    TransactionAborted,
)
from controller.operations.job import Job
from controller.store.contents import Held, Packed, pack

log = logging.getLogger("coldframe.operations")

T = TypeVar("T")


class HostRefused(Error):
    """What a host answered, or recorded as the end of a transaction: passed on as it is."""

    def __init__(self, told: Problem, view: Transaction | None = None) -> None:
        self.told = told
        self.view = view  # as it ended, where it did
        super().__init__()

    def problem(self) -> Problem:
        """Return the host's own Problem."""
        return self.told


async def reach(job: Job, call: Callable[[], Awaitable[T]]) -> T:
    """Make a call that can be repeated, again while the host does not answer.

    Raises HostUnreachable after ``patience.tries``, and AgentProblem at once.
    """
    delay_s = job.patience.retry_s
    for left in reversed(range(job.patience.tries)):
        try:
            return await call()
        except AgentUnreachable as err:
            if left == 0:
                job.unanswered[job.host] = str(err.facts["reason"])
                raise HostUnreachable(name=job.host, reason=err.facts["reason"]) from err
            log.warning(kv("host-did-not-answer", host=job.host, reason=err.facts["reason"], tries_left=left))
        await asyncio.sleep(delay_s)
        delay_s = min(2 * delay_s, job.patience.retry_max_s)
    raise AssertionError("patience.tries is at least 1")


async def prepare(job: Job, id: UUID, request: TransactionRequest) -> Transaction:
    """Begin a transaction, or find again the one that an earlier run began; return it prepared or further.

    Its abort is registered with the job. Raises HostUnreachable, AgentProblem, HostRefused or TransactionAborted
    for one that ended without commit (its lease ran out, say).
    """
    job.on_failure(id, partial(abort, job, id))
    # Where an earlier run may have sent commit, giving up is not safe: the host must say how it ended.
    asked = partial(_until_known, job, id) if job.is_sealed(id) else partial(reach, job)
    try:
        view = await asked(partial(job.client.put_transaction, id, request))
    except AgentProblem as err:
        if not job.is_sealed(id):
            raise
        view = await asked(partial(_look_again, job, id, err))
    while view.state == "preparing":
        if job.cancelled and not job.sealed:
            raise OperationCancelled(operation=job.uuid)
        await job.progress(view.done_bytes, view.total_bytes)
        await asyncio.sleep(job.patience.poll_s)
        view = await asked(partial(job.client.transaction, id))
    if view.state in {"aborting", "aborted"}:
        raise _aborted(job, view)
    return view


async def plan(job: Job, id: UUID, request: TransactionRequest) -> Plan:
    """Return what the host would do; nothing begins there. Raises HostUnreachable, AgentProblem."""
    return await reach(job, partial(job.client.plan_transaction, id, request))


@asynccontextmanager
async def leased(job: Job, id: UUID) -> AsyncIterator[None]:
    """Renew the lease at a third of its length while the body works."""
    task = asyncio.create_task(_renew(job, id), name=f"lease of {id}")
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _renew(job: Job, id: UUID) -> None:
    """A renewal that is lost is tried again at the next turn; if all are, commit says that the lease ran out."""
    while True:
        await asyncio.sleep(job.patience.lease_s / 3)
        try:
            await job.client.renew(id)
        except AgentUnreachable as err:
            log.warning(kv("lease-not-renewed", transaction=id, reason=err.facts["reason"]))
        except AgentProblem as err:
            log.warning(kv("lease-refused", transaction=id, code=err.answer.code))
            return


async def fetch(job: Job, view: Transaction) -> dict[HostFileType, Held]:
    """Return the captured host files, checked against the transaction. Raises HostFileTooLarge, CaptureCorrupt."""
    held: dict[HostFileType, Held] = {}
    for file in view.host_files:
        data = await reach(job, partial(job.client.captured, view.id, file.type))
        held[file.type] = (await packed(job, file.type, data, file.sha256), file.format)
    return held


async def packed(job: Job, type: HostFileType, data: bytes, sha256: str) -> Packed:
    """Hash and compress away from the event loop. Raises HostFileTooLarge, CaptureCorrupt for another hash."""
    limit_bytes = job.patience.host_file_limit_bytes
    if len(data) > limit_bytes:
        raise HostFileTooLarge(type=type, size_bytes=len(data), limit_bytes=limit_bytes)
    result = await asyncio.to_thread(pack, data)
    if result.sha256 != sha256:
        raise CaptureCorrupt(type=type, found=result.sha256, expected=sha256)
    return result


async def commit(job: Job, view: Transaction) -> Transaction:
    """Seal the transaction, commit, and return it as committed, however long the host works on it.

    Raises what ended it otherwise (HostRefused, TransactionAborted, AgentProblem), or OutcomeUnknown.
    """
    await job.seal(view.id)
    if view.state not in {"committing", "committed"}:
        view = await _until_known(job, view.id, partial(_commit_once, job, view.id))
    if view.state not in ENDED or view.total_bytes:
        view = await _ended(job, view)
    if view.state in {"aborting", "aborted"}:
        raise _aborted(job, view)
    return view


async def _ended(job: Job, view: Transaction) -> Transaction:
    """Wait for work that goes on, showing its progress. Raises OutcomeUnknown where it stands still for too long."""
    clock = asyncio.get_running_loop().time
    moved_at, done_bytes = clock(), view.done_bytes
    while view.state not in ENDED:
        if job.cancelled and job.stoppable:
            view = await _stopped(job, view)
            continue
        await job.progress(view.done_bytes, view.total_bytes)
        await asyncio.sleep(job.patience.poll_s)
        view = await _until_known(job, view.id, partial(job.client.transaction, view.id))
        if view.done_bytes != done_bytes:
            moved_at, done_bytes = clock(), view.done_bytes
        elif clock() - moved_at > job.patience.outcome_deadline_s and view.state not in ENDED:
            raise OutcomeUnknown(name=job.host, transaction=view.id, reason=f"it is {view.state} and stands still")
    await job.progress(view.done_bytes, view.total_bytes)
    return view


async def _stopped(job: Job, view: Transaction) -> Transaction:
    """Ask the host to stop a deletion; where it is too late for that, the deletion goes on."""
    try:
        return await job.client.abort(view.id)
    except AgentUnreachable as err:
        log.warning(kv("stop-not-heard", transaction=view.id, reason=err.facts["reason"]))
        await asyncio.sleep(job.patience.poll_s)
    except AgentProblem as err:
        log.info(kv("too-late-to-stop", transaction=view.id, code=err.answer.code))
        job.stoppable = False
    return view


async def standing(job: Job, id: UUID) -> Transaction:
    """Return how a transaction stands whose commit may have been sent. Raises OutcomeUnknown."""
    try:
        return await _until_known(job, id, partial(job.client.transaction, id))
    except AgentProblem as err:
        raise OutcomeUnknown(name=job.host, transaction=id, reason=str(err)) from err


async def _commit_once(job: Job, id: UUID) -> Transaction:
    """Send commit, which may be repeated; where it is refused, say how the transaction stands after that."""
    try:
        return await job.client.commit(id)
    except AgentProblem as err:
        view = await _look_again(job, id, err)
        if view.state == "prepared":
            view = await _given_up(job, id)
            if view.state == "aborted":
                job.refuted(id)
                raise HostRefused(err.problem(), view) from err
        if view.state in {"committing", "committed"}:
            return view
        if view.state in {"aborting", "aborted"}:
            raise _aborted(job, view, err.problem()) from err
        reason = f"{err.answer.detail}; it is {view.state} and could not be aborted"
        raise AgentUnreachable(url=job.client.url, reason=reason) from err


async def _given_up(job: Job, id: UUID) -> Transaction:
    """Abort what refused to commit: until then a copy of the commit that is still on its way would carry it out.

    Raises AgentUnreachable while that is not known.
    """
    try:
        return await job.client.abort(id)
    except AgentProblem as err:
        return await _look_again(job, id, err)


async def _look_again(job: Job, id: UUID, refusal: AgentProblem) -> Transaction:
    """Return how a transaction stands whose commit was refused. Raises AgentUnreachable while that is not known."""
    try:
        return await job.client.transaction(id)
    except AgentProblem as err:
        raise AgentUnreachable(url=job.client.url, reason=f"{refusal.answer.detail}; {err.answer.detail}") from err


async def _until_known(job: Job, id: UUID, ask: Callable[[], Awaitable[Transaction]]) -> Transaction:
    """Ask until the host answers, or its deadline has passed."""
    loop = asyncio.get_running_loop()
    until, delay_s = loop.time() + job.patience.outcome_deadline_s, job.patience.retry_s
    while True:
        try:
            return await ask()
        except AgentUnreachable as err:
            reason = err.facts["reason"]
            log.warning(kv("outcome-not-known-yet", transaction=id, host=job.host, reason=reason))
            if loop.time() + delay_s > until:
                raise OutcomeUnknown(name=job.host, transaction=id, reason=reason) from err
        await asyncio.sleep(delay_s)
        delay_s = min(2 * delay_s, job.patience.retry_max_s)


def _aborted(job: Job, view: Transaction, refusal: Problem | None = None) -> Error:
    """Return what says why a transaction ended without commit."""
    job.refuted(view.id)
    told = view.error or refusal
    return TransactionAborted(name=job.host, transaction=view.id) if told is None else HostRefused(told, view)


async def abort(job: Job, id: UUID) -> None:
    """Undo what was prepared, as well as can be: where the host does not answer, the lease undoes it."""
    try:
        await job.client.abort(id)
    except (AgentUnreachable, AgentProblem) as err:
        log.warning(kv("abort-left-to-the-lease", transaction=id, detail=str(err)))


async def outcome_of(job: Job, id: UUID) -> Transaction | None:
    """Return how an earlier transaction ended, after aborting one that only waits; None where none is known.

    Raises OutcomeUnknown while the host does not say.
    """
    try:
        view = await job.client.transaction(id)
        if view.state in {"preparing", "prepared", "aborting"}:
            view = await job.client.abort(id)
    except AgentProblem as err:
        if err.answer.code != "transaction-not-found":
            raise OutcomeUnknown(name=job.host, transaction=id, reason=str(err)) from err
        return None
    except AgentUnreachable as err:
        raise OutcomeUnknown(name=job.host, transaction=id, reason=err.facts["reason"]) from err
    if view.state not in ENDED:
        raise OutcomeUnknown(name=job.host, transaction=id, reason=f"it is {view.state}")
    return view
