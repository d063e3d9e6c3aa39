"""What a changing call would do, for ``?dry_run=true``: the same survey and planner, and nothing is touched.

No guard is raised, no lock is taken, nothing is staged and nothing journalled, so a start never meets a dry run, and a
dry run never waits for a transaction that is at work: that is one of the things that it tells.
"""

import asyncio
import hashlib
from collections.abc import Iterable
from uuid import UUID, uuid4

from agent.errors import (
    DomainBusy,
    DomainStarting,
    HashMismatch,
    HostFileNotFound,
    LeaseExpired,
    TransactionEnded,
    TransactionMismatch,
)
from agent.transactions import surveyors
from agent.transactions.asked import KINDS, is_same, require_sense
from agent.transactions.describe import planned_steps, total_bytes
from agent.transactions.journal import AnyRequest
from agent.transactions.locks import Looks
from agent.transactions.manager import Manager
from agent.transactions.model import flat
from agent.transactions.running import Running
from agent.transactions.standing import busy_with, host_file_request, outcome, require_prepared
from agent.transactions.steps import require_receivable
from agent.transactions.survey import Survey
from agent.transactions.transfers import awaited
from agent.web.errors import Error
from agent.wire.host_file import HostFileType
from agent.wire.plan import Plan, PlannedStep, planned
from agent.wire.transaction import DomainRequest, TransactionRequest

DROP_GUARD = PlannedStep(action="drop-guard", name="let the domain start again")
ACCEPT_BLANK = PlannedStep(action="accept-blank", name="let the next start through without its host files")


class Foresight:
    """Answers for what the manager would do. Raises what stands in the way and leaves nothing else to say."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager

    async def begin(self, id_: UUID, request: TransactionRequest) -> Plan:
        """Plan a transaction with all objections to it. Raises InvalidRequest, DomainNotFound, TransactionMismatch."""
        known = self._manager.find(id_)
        if known is not None:
            if not is_same(known.request, request):
                raise TransactionMismatch(id=id_)
            state = outcome(known).state
            steps = planned_steps(known.plan.steps())
            return _of(known, steps, notes=[f"it was begun already and is {state}: nothing more would be done"])
        require_sense(request)
        _, plan = await self._look(id_, request)
        return plan

    async def write_host_file(self, vm: UUID, type_: HostFileType, data: bytes, if_match: str | None) -> Plan:
        """Plan the replacement of one host file. Raises PreconditionFailed, DomainNotFound, HostFileNotFound."""
        await self._manager.require_version(vm, type_, if_match)
        found, plan = await self._look(uuid4(), host_file_request(vm, type_, data))
        for step in found.plan.receive:
            await asyncio.to_thread(require_receivable, step, data, str(vm))
        return plan

    async def upload(self, id_: UUID, type_: HostFileType, data: bytes, announced: str) -> Plan:
        """Plan the staging of one host file of a revert. Raises HashMismatch, HostFileNotFound, TransactionEnded."""
        running = self._manager.running(id_)
        found = hashlib.sha256(data).hexdigest()
        if found != announced:
            raise HashMismatch(type=type_, found=found, expected=announced)
        require_prepared(running)
        steps = [step for step in running.plan.receive if step.type == type_]
        if not steps:
            raise HostFileNotFound(name=running.name, type=type_)
        await asyncio.to_thread(require_receivable, steps[0], data, running.name)
        return _of(running, planned_steps(steps))

    def receive_image(self, id_: UUID, target: str, position: int) -> Plan:
        """Plan the staging of one image of an import; its bytes are judged when they come. Raises ImageNotFound."""
        running = self._manager.running(id_)
        require_prepared(running)
        return _of(running, planned_steps([awaited(running, target, position)]))

    async def commit(self, id_: UUID) -> Plan:
        """Plan what commit does. Raises TransactionEnded, LeaseExpired, HostFileNotUploaded."""
        running = self._manager.running(id_)
        if running.transaction.state in ("committing", "committed"):
            return _of(running, [], notes=[f"it is {running.transaction.state} already"])
        require_prepared(running)
        if running.lease_is_over():
            raise LeaseExpired(id=id_)
        await running.require_uploaded()
        steps = planned_steps([*flat(running.plan.switch), *flat(running.plan.clean)])
        return _of(running, [*steps, DROP_GUARD], bytes_to_move=total_bytes(running.plan))

    def abort(self, id_: UUID) -> Plan:
        """Plan what abort undoes. Raises TransactionEnded."""
        return self._undoing(self._manager.running(id_))

    def renew(self, id_: UUID) -> Plan:
        """Plan a longer lease. Raises TransactionEnded."""
        running = self._manager.running(id_)
        require_prepared(running)
        return _of(running, [PlannedStep(action="renew", name="count the lease anew")])

    async def release(self, vm: UUID) -> Plan:
        """Plan what lets a domain start again. Raises TransactionEnded."""
        running = self._manager.at_work_on(vm)
        if running is not None:
            return self._undoing(running)
        held = await asyncio.to_thread(self._manager.tools.guards.get, vm)
        starting = await asyncio.to_thread(self._manager.tools.guards.is_starting, vm)
        steps = [DROP_GUARD] if held is not None or starting else []
        return planned("release", steps, [], vm=vm, notes=[] if steps else ["nothing holds it"])

    async def accept_blank(self, vm: UUID) -> Plan:
        """Plan the mark that lets one start through."""
        return planned("accept-blank", [ACCEPT_BLANK], [], vm=vm)

    def _undoing(self, running: Running) -> Plan:
        state = running.transaction.state
        if state == "aborted":
            return _of(running, [], notes=["it is aborted already"])
        if state == "committed" or (state == "committing" and not running.can_withdraw):
            raise TransactionEnded(id=running.transaction.id, state=state)
        undone = [
            PlannedStep(action=f"undo-{step.action}", name=f"undo {step.name}", path=step.path, facts=step.facts)
            for step in planned_steps(running.to_undo())
        ]
        return _of(running, [*undone, DROP_GUARD])

    async def _look(self, id_: UUID, request: AnyRequest) -> tuple[Survey, Plan]:
        """Survey without locks; the objections to the domain's state come first, each once."""
        tools = self._manager.tools
        name = await surveyors.name_of(request, tools.hypervisor)
        objections = await asyncio.to_thread(self._held_up, request, name)
        idle = bool(objections) or (isinstance(request, DomainRequest) and await self._runs(request.vm))
        work = tools.work_on(request.vm, Looks(idle=idle), lambda _step, _bytes: None)
        work.name = name
        found = await surveyors.survey(id_, request, work, tools.limits, raised := list[Error]())
        problems = {str(err): err.problem() for err in (*objections, *raised)}
        steps = planned_steps(found.plan.steps())
        more = {"vm": request.vm, "bytes_to_move": total_bytes(found.plan), "notes": _notes(found)}
        return found, planned(KINDS[type(request)], steps, list(problems.values()), **more)

    async def _runs(self, vm: UUID) -> bool:
        return (await self._manager.tools.hypervisor.domain(vm)).active

    def _held_up(self, request: AnyRequest, name: str) -> list[Error]:
        """Return what a guard or a start would refuse. Blocks for microseconds."""
        vm, running = request.vm, self._manager.in_the_way_of(request)
        if running is not None:
            return [busy_with(running)]
        held = self._manager.tools.guards.get(vm)
        if held is not None:
            facts = {"kind": held.kind, "transaction": held.transaction, "since": held.since.isoformat()}
            return [DomainBusy(name=name, **facts)]
        return [DomainStarting(name=name)] if self._manager.tools.guards.is_starting(vm) else []


def _notes(found: Survey) -> list[str]:
    """Say what the work would leave out."""
    notes = [f"disk {target} would be left out" for target in found.plan.excluded]
    notes += [f"the {one.type} would be missing: {one.reason}" for one in found.plan.missing]
    return [*notes, *(f"the {type_} that is there now would be kept" for type_ in found.plan.kept)]


def _of(running: Running, steps: list[PlannedStep], notes: Iterable[str] = (), bytes_to_move: int = 0) -> Plan:
    seen = running.transaction
    return planned(seen.kind, steps, [], vm=seen.vm, notes=list(notes), bytes_to_move=bytes_to_move)
