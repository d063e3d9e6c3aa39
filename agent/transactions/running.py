"""One transaction at work: staged, switched or undone, with every decision in the journal before it is acted upon."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import ParamSpec

import msgspec

from agent.errors import (
    DomainNotFound,
    HostFileNotFound,
    HostFileNotUploaded,
    HypervisorUnavailable,
    ImageNotReceived,
    NoSpace,
    Released,
    StorageFailed,
)
from agent.host import dependents, files, images
from agent.transactions import journal as records
from agent.transactions import steps, surveyors
from agent.transactions.archive_steps import ReceiveImage
from agent.transactions.describe import describe, has_replaced, merge_outcomes, sources, target_of, with_received
from agent.transactions.journal import Entry
from agent.transactions.locks import HeldLocks
from agent.transactions.model import AnyStep, RebaseChild, flat
from agent.transactions.survey import staging_dir
from agent.transactions.tools import Tools
from agent.web.errors import Error
from agent.wire.base import utc_now
from agent.wire.host_file import HostFileType
from agent.wire.problem import Problem
from agent.wire.transaction import DeleteRequest, ExportRequest, RevertRequest, SnapshotRequest

log = logging.getLogger(__name__)
P = ParamSpec("P")

#: qemu-img processes at once for one transaction: 8 overlays take 87 ms one by one, 34 ms four at a time.
PARALLEL_STEPS = 4


def problem_of(err: BaseException) -> Problem:
    """Render any error for a client; what is unexpected is logged whole and told as nothing but that."""
    if isinstance(err, Error):
        return err.problem()
    log.error("transaction-failed-unexpectedly", exc_info=err)
    return Error().problem()


class Running:
    """A transaction that this agent knows. The caller holds ``lock`` around every method that changes it."""

    def __init__(self, tools: Tools, entry: Entry) -> None:
        self.lock = asyncio.Lock()
        self.settled = asyncio.Event()  # set once preparing has ended, one way or the other
        self.request = entry.request
        self.transaction = entry.transaction
        self.plan = entry.plan
        self._lease_until = float("inf")
        self.stuck = False  # begun to switch or to undo, and not ended: tried again until it is
        self.withdrawn: Problem | None = None  # why a deletion stops, if it was told to while it could
        self._final = False  # a deletion has begun to move or write to frozen files, and goes on
        self._merging: list[asyncio.Task[None]] = []
        self.unclean = entry.unclean  # ended, and something is left to be removed or noted: tried until it is done
        self._switching = entry.commit
        self._staging: asyncio.Future[None] | None = None
        self._interrupted = False
        self.here: set[str] = set()  # images that were received whole, by the name of their step
        if entry.commit and not entry.ended:
            self._update(state="committing", lease_expires_at=None)
        self._tools = tools
        self._done_bytes: dict[str, int] = {}
        self._slots = asyncio.Semaphore(PARALLEL_STEPS)
        self.work = tools.work_on(entry.request.vm, HeldLocks(), self._on_bytes)

    @property
    def name(self) -> str:
        """The domain's name, or its UUID until libvirt was asked."""
        return self.work.name

    async def prepare(self, lease_s: float) -> None:
        """Raise the guard, look, plan and stage. On any error all is undone and the error raised."""
        await self._record(records.Begin(request=self.request, transaction=self.transaction))
        try:
            await self._stage(lease_s)
        except Exception as err:  # the root of a transaction: whatever went wrong is undone and told
            await self.undo(problem_of(err))
            raise

    async def _stage(self, lease_s: float) -> None:
        self.work.name = await surveyors.name_of(self.request, self._tools.hypervisor)
        await self._at("raise-guard", self._raise_guard)
        found = await surveyors.survey(self.transaction.id, self.request, self.work, self._tools.limits)
        self.plan = found.plan
        await self._record(records.Planned(plan=self.plan))
        self._update(**describe(self.request, found))
        for group in self.plan.stage:
            await self._interruptible(group)
        self._update(state="prepared", host_files=self.work.captured)
        self.extend_lease(lease_s)
        await self._record(records.Prepared(transaction=self.transaction))

    async def _interruptible(self, group: list[AnyStep]) -> None:
        """Run steps that may take hours. Raises Released where ``interrupt`` was called meanwhile."""
        self._staging = asyncio.ensure_future(self._run(group))
        try:
            if self._interrupted:
                self._staging.cancel()
            await self._staging
        except asyncio.CancelledError:
            if self._interrupted:
                raise Released(id=self.transaction.id) from None
            raise
        finally:
            self._staging = None

    def interrupt(self) -> None:
        """Break off the staging of a clone: ``prepare`` undoes all and raises Released. Needs no lock."""
        self._interrupted = True
        if self._staging is not None:
            self._staging.cancel()

    async def _raise_guard(self) -> None:
        """Keep the domain from starting. What had passed the hook before is active now, or was refused here.

        An export only reads what no start writes to, so it keeps nobody from starting.
        """
        if isinstance(self.request, ExportRequest):
            return
        guards, request = self._tools.guards, self.request
        await asyncio.to_thread(
            guards.raise_guard, request.vm, self.work.name, self.transaction.id, self.transaction.kind
        )

    async def receive(self, type_: HostFileType, data: bytes) -> None:
        """Check and stage one uploaded host file."""
        for step in self.plan.receive:
            if step.type == type_:
                await self._at(step.name, steps.receive, step, data, self.work)
                return
        raise HostFileNotFound(name=self.work.name, type=type_)

    async def received(self, step: ReceiveImage) -> None:
        """Judge an image that was written to its staged name, make it ready to be placed, and note that it is here."""
        await self._at(step.name, steps.do, step, self.work)
        with files.storage(step.name):
            volumes = await asyncio.to_thread(with_received, self.transaction.volumes, step)
        self.here.add(step.name)
        self._update(volumes=volumes)

    async def commit(self) -> None:
        """Decide, then switch. HostFileNotUploaded, ImageNotReceived: nothing changed; otherwise as ``finish``."""
        await self.require_uploaded()
        await self._record(records.Commit())
        self._switching = True
        self._update(state="committing", lease_expires_at=None)

    async def require_uploaded(self) -> None:
        """Raise HostFileNotUploaded or ImageNotReceived while a host file or an image is awaited."""
        awaited = [one.type for one in self.plan.receive if not await asyncio.to_thread(files.exists, Path(one.staged))]
        if awaited:
            raise HostFileNotUploaded(id=self.transaction.id, types=", ".join(awaited))
        if coming := [step.name for step in self.plan.receive_images if step.name not in self.here]:
            raise ImageNotReceived(id=self.transaction.id, images=", ".join(coming))

    async def finish(self) -> None:
        """Do what the commit record promises, or what is left of it.

        While libvirt does not answer the transaction stays ``committing`` under its guard, and is tried again. Any
        other error of a step undoes everything and is raised; only a deletion is not undone: what it merged stays
        merged, the guest's data are the same, and its outcomes say which disks are left. One that cannot even put
        back what it set aside stays ``committing``, too.
        """
        self.stuck = True
        try:
            await self._switch()
        except Exception as err:  # the root of a transaction: whatever went wrong is undone and told
            if isinstance(err, HypervisorUnavailable) or isinstance(self.request, DeleteRequest):
                self._update(error=problem_of(err))
            else:
                await self.roll_back(problem_of(err))
            raise
        if self.withdrawn is not None and not self._final:
            await self.roll_back(self.withdrawn)
            return
        await self._clean()
        await self._end("committed", self.transaction.error if isinstance(self.request, DeleteRequest) else None)

    async def roll_back(self, problem: Problem) -> None:
        """Go back on the commit record, and undo."""
        await self._record(records.Rollback(error=problem))
        await self.undo(problem)

    async def _switch(self) -> None:
        if isinstance(self.request, DeleteRequest):
            await self._merge(self.request)
            return
        for group in self.plan.switch:
            await self._run(group)

    @property
    def can_withdraw(self) -> bool:
        """Whether this is a deletion that was committed and can still be stopped."""
        return isinstance(self.request, DeleteRequest) and not self._final

    def withdraw(self, problem: Problem) -> None:
        """Stop a deletion that was committed, as long as it only rebases: a child is whole on either file.

        Once a frozen file is set aside or written to, the deletion goes on to its end and this has no effect.
        """
        if self.can_withdraw and self.transaction.state == "committing":
            self.withdrawn = problem
            for task in self._merging:
                task.cancel()

    async def _merge(self, request: DeleteRequest) -> None:
        """Merge every disk; the frozen files go only when all can, so that the snapshot is usable until then.

        A frozen file that cannot be moved brings back those that were. Raises what keeps them from being brought
        back, and what a disk refused once a child was replaced: then the next try goes on from there.
        """
        errors: dict[str, Problem] = {}
        passing: list[Error] = []
        for group in self.plan.switch:
            self._final = self._final or not (self.withdrawn or all(isinstance(step, RebaseChild) for step in group))
            if errors or (self.withdrawn and not self._final):
                break
            self._merging = [asyncio.create_task(self._step(step)) for step in group]
            results = await asyncio.gather(*self._merging, return_exceptions=True)
            for step, result in zip(group, results, strict=True):
                if isinstance(result, BaseException) and not (self.withdrawn and not self._final):
                    errors[target_of(step)] = problem_of(result)
                    passing += [result] if isinstance(result, NoSpace | StorageFailed) else []
        replaced = bool(passing) and await asyncio.to_thread(has_replaced, self.plan)
        if replaced:
            raise passing[0]
        if errors:
            await self._put_back()
        stopped = self.withdrawn is not None and not self._final
        with files.storage("looking at what was merged"):
            outcomes = await asyncio.to_thread(merge_outcomes, self.plan, request.volumes, errors, stopped=stopped)
        self._update(outcomes=outcomes, error=next(iter(errors.values()), None))

    async def _put_back(self) -> None:
        """Undo what can be undone of a merge; the first error is raised when all was tried."""
        undone = (self._at(f"undo {step.name}", steps.undo, step, self.work) for step in flat(self.plan.switch))
        for result in await asyncio.gather(*undone, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result

    async def _clean(self) -> None:
        """Remove what is left over, and note which host files must exist from now on.

        The work stands, so nothing here fails it: a file that will not go is named in the log and tried again.
        """
        kept = isinstance(self.request, DeleteRequest) and self.transaction.error is not None
        chores = [] if kept else flat(self.plan.clean)
        removed = [await self._tolerate(self._step(step)) for step in chores]
        self.unclean = not all([*removed, await self._tolerate(self._note_host_files())])

    async def _note_host_files(self) -> None:
        """Note what must exist at the next start. Raises only what may pass."""
        gone = list(self.request.remove) if isinstance(self.request, RevertRequest) else []
        try:
            await self._tools.inventory.note_host_files(self.request.vm, forget=gone)
        except (NoSpace, StorageFailed, HypervisorUnavailable):
            raise
        except Error as err:  # the domain is gone or cannot be read: nothing that trying again would change
            log.warning("host-files-not-noted transaction=%s reason=%s", self.transaction.id, err)

    async def tidy(self) -> None:
        """Try again what an ended transaction left to do: all of it goes by names of its own, or can be repeated."""
        await self._clean()
        await asyncio.to_thread(self.let_go)
        if not self.unclean:
            await self._record(records.Ended(transaction=self.transaction))

    async def _tolerate(self, chore: Awaitable[None]) -> bool:
        """Do what must not fail the work, and tell whether it could be done."""
        try:
            await chore
        except Error as err:
            log.warning("chore-failed transaction=%s reason=%s", self.transaction.id, err)
            return False
        return True

    async def undo(self, problem: Problem) -> None:
        """Undo every step, last first, whether or not it was done, and end as aborted.

        Where undoing fails the transaction stays ``aborting`` under its guard and is tried again.
        """
        self.stuck = True
        self._update(state="aborting", error=problem, lease_expires_at=None)
        try:
            for step in self.to_undo():
                await self._at(f"undo {step.name}", steps.undo, step, self.work)
            staging = staging_dir(self._tools.limits, self.transaction.id)
            await asyncio.to_thread(files.remove_tree, staging)
            await self._end("aborted", problem)
        except Error as err:
            log.warning("undo-waits transaction=%s reason=%s", self.transaction.id, err)

    def to_undo(self) -> list[AnyStep]:
        """List the steps that undoing goes through, last first."""
        done = [*self.plan.before_commit(), *(flat(self.plan.switch) if self._switching else [])]
        return done[::-1]

    async def _end(self, state: str, problem: Problem | None) -> None:
        """Write down that nothing is left to do, and only then let the domain start again."""
        ended = msgspec.structs.replace(
            self.transaction, state=state, error=problem, ended_at=utc_now(), lease_expires_at=None
        )
        await self._record(records.Ended(transaction=ended, unclean=self.unclean))
        await self._at("drop-guard", asyncio.to_thread, self.let_go)
        self.transaction = ended  # told only now: whoever hears of the end may start the domain
        self.stuck = False

    def let_go(self) -> None:
        """Drop the guard if it is this transaction's, and all locks. Blocks for milliseconds."""
        self._tools.guards.let_go(self.request.vm, self.transaction.id)
        self.work.locks.release()

    async def resume(self, problem: Problem | None) -> None:
        """Take up a transaction that a dead agent left: its guard, what locks can be had, and the domain's name.

        ``problem`` is why it will be undone; None where it will be redone. It is told from now on, so that nobody
        commits what could not be taken up. libvirt may not be up yet, or the domain gone: neither keeps staged files
        from being removed. What ``raise_guard`` raises leaves it as it was, to be resumed again.
        """
        self.stuck = True
        if problem is not None:
            self._update(state="aborting", error=problem, lease_expires_at=None)
        try:
            self.work.name = await surveyors.name_of(self.request, self._tools.hypervisor)
        except (DomainNotFound, HypervisorUnavailable) as err:
            log.warning("name-not-known transaction=%s vm=%s reason=%s", self.transaction.id, self.request.vm, err)
        await self._raise_guard()
        tops = {target: Path(new) for target, (_, new) in sources(self.plan).items()}
        await asyncio.to_thread(self.work.locks.retake, tops)

    async def was_overtaken(self) -> bool:
        """Tell whether the domain ran between a snapshot's capture and its switch, so that it froze nothing whole.

        This takes a hook that was removed while the agent was dead: nothing else lets the domain start.
        """
        if not isinstance(self.request, SnapshotRequest):
            return False
        for volume in self.transaction.volumes:
            if await asyncio.to_thread(dependents.backing_of, Path(volume.overlay)) is None:
                continue
            if await asyncio.to_thread(images.fingerprint, Path(volume.path)) != volume.fingerprint:
                return True
        return False

    def extend_lease(self, lease_s: float) -> None:
        """Count the lease anew from now."""
        bounded = min(max(lease_s, 0.0), self._tools.limits.max_lease_s)
        self._lease_until = time.monotonic() + bounded
        self._update(lease_expires_at=utc_now() + timedelta(seconds=bounded))

    def lease_is_over(self) -> bool:
        """Tell whether the lease ran out."""
        return time.monotonic() >= self._lease_until

    def _update(self, **changes: object) -> None:
        self.transaction = msgspec.structs.replace(self.transaction, **changes)

    def _on_bytes(self, step: str, done: int) -> None:
        self._done_bytes[step] = done
        self._update(done_bytes=sum(self._done_bytes.values()))

    async def _record(self, record: records.Record) -> None:
        name = f"journal {type(record).__name__.lower()}"
        await self._at(name, asyncio.to_thread, self._tools.journal.append, self.transaction.id, record)

    async def _run(self, group: list[AnyStep]) -> None:
        """Run independent steps side by side; the first error is raised when all have come to rest."""
        results = await asyncio.gather(*(self._step(step) for step in group), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _step(self, step: AnyStep) -> None:
        async with self._slots:
            await self._at(step.name, steps.do, step, self.work)

    async def _at(self, name: str, action: Callable[P, Awaitable[None]], *args: P.args, **kwargs: P.kwargs) -> None:
        """Act between two points at which a test can stop the world; an ``OSError`` becomes one of our errors."""
        self._tools.checkpoint(f"before {name}")
        with files.storage(name):
            await action(*args, **kwargs)
        self._tools.checkpoint(f"after {name}")
