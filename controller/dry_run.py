"""Dry runs of every changing call: its own handler, on records that are taken back and an engine that only plans.

There is no second way that a call is judged or planned. The handler is the one that serves the call; what it would
start is queued and taken back, and the kind's planner (``operations.kinds.PLANS``) asks the host for its own plan.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID, uuid4

import msgspec

from agent.client import AgentClient
from agent.client.planning import PlanningClient
from agent.web.call import Call
from agent.web.errors import Error
from agent.web.routes import Route
from agent.wire.base import Request
from agent.wire.operation import Operation
from agent.wire.plan import Plan, PlannedStep, planned
from controller.db import Database
from controller.hosts import Hosts
from controller.operations.engine import Engine, Place, queue
from controller.operations.job import Job
from controller.operations.kinds import PLANS
from controller.rehearsal import Rehearsal
from controller.store import operations


@dataclass(frozen=True)
class Works:
    """What handlers work on: the real ones, or those of one dry run."""

    db: Database
    hosts: Hosts
    engine: Engine


class RehearsedHosts(Hosts):
    """Asks the real hosts, and takes none in or out."""

    def __init__(self, real: Hosts, db: Database) -> None:
        super().__init__(db, real.timeouts)
        self._real = real
        self._planning: dict[str, PlanningClient] = {}

    def client(self, name: str) -> AgentClient:
        """Return a client that changes nothing. Raises HostNotFound."""
        if name not in self._planning:
            self._planning[name] = PlanningClient(self._real.client(name))
        return self._planning[name]

    @property
    def steps(self) -> list[PlannedStep]:
        """What hosts were told to do besides operations."""
        return [step for client in self._planning.values() for step in client.steps]

    async def align(self) -> None:
        """Do nothing: what is asked is asked where the real ones are."""

    def _tell(self, event: str, **facts: object) -> None:
        """Say nothing: it did not happen."""


class RehearsedEngine(Engine):
    """Plans what it is told to run. It is never started, so nothing runs on it."""

    def __init__(self, real: Engine, rehearsal: Rehearsal, hosts: Hosts) -> None:
        # One try: a dry run answers soon, and says that the host did not answer.
        limits = replace(real.limits, patience=replace(real.limits.patience, tries=1))
        super().__init__(rehearsal, hosts, real.kinds, limits)
        self._real = real
        self._rehearsal = rehearsal
        self.plan: Plan | None = None

    async def submit(self, kind: str, request: Request, place: Place, key: str | None = None) -> Operation:
        """Queue it as the real one would, take that back, and plan."""
        uuid = uuid4()
        operation = await self.db.run(queue, kind, msgspec.to_builtins(request), place, key, uuid)
        found = Plan(kind=kind, would="succeed", vm=operation.vm, host=operation.host)
        if operation.uuid == uuid:
            self.plan = await self._planned(found, uuid)
        else:
            note = f"the same call was made before and is operation {operation.uuid}: nothing more would be done"
            self.plan = msgspec.structs.replace(found, notes=[note])
        return operation

    async def _planned(self, found: Plan, uuid: UUID) -> Plan:
        job = Job(await self.db.run(operations.job, uuid), self.db, self.hosts, self.limits.patience)
        try:
            told = await PLANS[found.kind](job)
        except Error as err:
            told = planned(found.kind, [], [err.problem()])
        effects = [] if told.would == "be-refused" else await self._rehearsal.effects(operations=False)
        return msgspec.structs.replace(
            told,
            kind=found.kind,
            vm=found.vm,
            host=found.host,
            steps=[*told.steps, *effects] if told.refusals else _or_nothing([*told.steps, *effects]),
            notes=[*told.notes, *await self.db.run(_queue_notes, found.vm, uuid)],
        )

    async def wait(self, uuid: UUID, timeout_s: float) -> Operation:
        """Return it as it is: nobody works on it."""
        del timeout_s
        return await self.db.run(operations.get, uuid)

    async def cancel(self, uuid: UUID) -> Operation:
        """Say how it would be after that. Raises OperationNotFound, OperationNotCancellable."""
        self._real.require_cancellable(uuid)
        return await self.db.run(operations.cancel, uuid)


def _queue_notes(vm: UUID | None, uuid: UUID) -> list[str]:
    count = 0 if vm is None else operations.open_count(vm=vm, but=uuid, parked=False)
    return [f"{count} operation(s) of this VM would come first"] if count else []


def with_dry_run(works: Works, routes_of: Callable[[Works], list[Route]]) -> list[Route]:
    """Return the routes on the real works, each that changes anything with its planner."""
    return [replace(one, planner=_Rehearser(works, routes_of, one)) if one.changes else one for one in routes_of(works)]


@dataclass(frozen=True)
class _Rehearser:
    """The planner of one route: calls the same route's handler on works that change nothing."""

    works: Works
    routes_of: Callable[[Works], list[Route]]
    route: Route

    async def __call__(self, call: Call, **arguments: Any) -> Plan:
        rehearsal = Rehearsal(self.works.db)
        hosts = RehearsedHosts(self.works.hosts, rehearsal)
        engine = RehearsedEngine(self.works.engine, rehearsal, hosts)
        await self._handler(Works(rehearsal, hosts, engine))(call, **arguments)
        if engine.plan is not None:
            return engine.plan
        return planned(self.route.name, _or_nothing([*hosts.steps, *await rehearsal.effects()]), [])

    def _handler(self, works: Works) -> Callable[..., Any]:
        return next(one.handler for one in self.routes_of(works) if one.name == self.route.name)


def _or_nothing(steps: list[PlannedStep]) -> list[PlannedStep]:
    return steps or [PlannedStep(action="nothing", name="nothing is left to do")]
