"""Verification of a snapshot, of a VM, of everything; and the doctor."""

from typing import Any
from uuid import UUID

from agent.web.call import Call, Reply
from agent.web.paging import PageQuery, page_of
from agent.web.routes import Route, route
from agent.wire.access import Role
from agent.wire.base import Page
from agent.wire.finding import Finding
from agent.wire.operation import Operation
from controller.api.actions import IDEMPOTENCY_KEY, LOCATION
from controller.api.operations import WaitQuery
from controller.doctor.examine import examine
from controller.errors import IdempotencyConflict, SnapshotBusy, SnapshotNotFound, VmAmbiguous, VmNotFound
from controller.operations import repair, verify, verify_all
from controller.operations.engine import Engine, Place
from controller.store import snapshots, vms


class VerifyQuery(WaitQuery, kw_only=True, frozen=True):
    """How thoroughly. ``deep`` runs ``qemu-img check`` on every frozen file; else only headers are read."""

    deep: bool = True


class VerifyRoutes:
    """Each answers 202 with an operation, whose result lists findings. It succeeds whatever it finds."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            _action("/v1/snapshots/{id}/verify", self.snapshot, (SnapshotNotFound, SnapshotBusy)),
            _action("/v1/vms/{vm}/verify", self.vm, (VmNotFound, VmAmbiguous)),
            _action("/v1/verify", self.everything, ()),
        ]

    async def snapshot(self, call: Call, id: UUID, query: VerifyQuery) -> Reply[Operation]:
        """Verify a snapshot: its frozen files on the host, and the stored bytes of its host files.

        The VM may run: frozen files are only read. Its host files are compared with the newest copy while it is off.
        """
        wanted = verify.Wanted(snapshot=id, deep=query.deep)
        operation = await self._engine.submit("snapshot-verify", wanted, _of_snapshot(id), call.idempotency_key)
        return await _answered(self._engine, operation, query)

    async def vm(self, call: Call, vm: str, query: VerifyQuery) -> Reply[Operation]:
        """Verify all snapshots of a VM."""
        wanted = verify.Wanted(deep=query.deep)
        operation = await self._engine.submit("snapshot-verify", wanted, _of_vm(vm), call.idempotency_key)
        return await _answered(self._engine, operation, query)

    async def everything(self, call: Call, query: VerifyQuery) -> Reply[Operation]:
        """Verify all snapshots of all VMs, each VM in its own turn."""
        wanted = verify_all.Wanted(deep=query.deep)
        operation = await self._engine.submit("fleet-verify", wanted, lambda: (None, None), call.idempotency_key)
        return await _answered(self._engine, operation, query)


class DoctorRoutes:
    """What is wrong across the fleet."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            route("GET", "/v1/doctor", self.look),
            _action("/v1/doctor/repair", self.repair, (), role="admin"),
        ]

    async def look(self, call: Call, query: PageQuery) -> Page[Finding]:
        """List what is wrong across the fleet, with the repair of each.

        Every host is asked now, all at once, so this may take as long as the slowest one (45 seconds at most). Nothing
        is changed; what is under way at this moment is left out.
        """
        found = await examine(self._engine.db, self._engine.hosts)
        return page_of(found, query, lambda one: f"{one.code} {one.host} {one.what}")

    async def repair(self, call: Call, query: WaitQuery) -> Reply[Operation]:
        """Do the repairs that are safe. The operation's result lists what was done and what is left."""
        operation = await self._engine.submit(
            "fleet-repair", repair.Wanted(), lambda: (None, None), call.idempotency_key
        )
        return await _answered(self._engine, operation, query)


def _action(path: str, handler: Any, errors: tuple[Any, ...], role: Role = "operator") -> Route:
    return route(
        "POST",
        path,
        handler,
        status=202,
        role=role,
        headers=(IDEMPOTENCY_KEY,),
        answer_headers=(LOCATION,),
        errors=(*errors, IdempotencyConflict),
    )


async def _answered(engine: Engine, operation: Operation, query: WaitQuery) -> Reply[Operation]:
    """Answer with an operation, at once or when it has ended."""
    if query.wait:
        operation = await engine.wait(operation.uuid, query.wait)
    return Reply(operation, headers={"Location": f"/v1/operations/{operation.uuid}"})


def _of_snapshot(id: UUID) -> Place:
    def place() -> tuple[UUID, str | None]:
        snapshot = snapshots.get(id)
        if snapshot.state in {"creating", "failed"}:
            raise SnapshotBusy(snapshot=id, state=snapshot.state)
        return snapshot.vm, vms.get(snapshot.vm).host

    return place


def _of_vm(text: str) -> Place:
    def place() -> tuple[UUID, str | None]:
        uuid = vms.resolve(text)
        return uuid, vms.get(uuid).host

    return place
