"""Retention policies by name: setting them, what they would do, and doing it now."""

from functools import partial
from uuid import UUID

import msgspec

from agent.web import etag
from agent.web.call import Call, Reply
from agent.web.errors import InvalidRequest, PreconditionFailed
from agent.web.paging import PageQuery, page_of
from agent.web.routes import Route, route
from agent.wire.base import Page
from agent.wire.operation import Operation
from agent.wire.retention import RetentionPolicy, RetentionVerdict, SetRetention
from controller.api import pages
from controller.api.actions import IDEMPOTENCY_KEY, LOCATION
from controller.api.conditions import IF_MATCH, change
from controller.api.operations import WaitQuery
from controller.db import write
from controller.errors import (
    IdempotencyConflict,
    NameInvalid,
    RetentionDisabled,
    RetentionPolicyNotFound,
    VmAmbiguous,
    VmNotFound,
)
from controller.operations import retention_apply
from controller.operations.engine import Engine
from controller.store import expiry, retention


class RetentionRoutes:
    """A policy is set as a whole, so setting it twice is setting it once. Applying it answers 202 with an operation."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._db = engine.db

    def routes(self) -> list[Route]:
        """Return the routes."""
        every, one = "/v1/retention-policies", "/v1/retention-policies/{name}"
        gone = (RetentionPolicyNotFound,)
        return [
            route("GET", every, self.list),
            route("GET", one, self.show, errors=gone),
            route(
                "PUT",
                one,
                self.set,
                role="operator",
                headers=(IF_MATCH,),
                errors=(NameInvalid, VmNotFound, VmAmbiguous, PreconditionFailed),
            ),
            route("DELETE", one, self.remove, role="operator", headers=(IF_MATCH,), errors=(*gone, PreconditionFailed)),
            route("GET", f"{one}/preview", self.preview, errors=gone),
            route(
                "POST",
                f"{one}/apply",
                self.apply,
                status=202,
                role="operator",
                headers=(IDEMPOTENCY_KEY,),
                answer_headers=(LOCATION,),
                errors=(*gone, RetentionDisabled, IdempotencyConflict),
            ),
        ]

    async def list(self, call: Call, query: PageQuery) -> Page[RetentionPolicy]:
        """List the retention policies by name."""
        return pages.page(await self._db.run(retention.page, query.limit, pages.position(query, str)))

    async def show(self, call: Call, name: str) -> RetentionPolicy:
        """Show one retention policy."""
        return await self._db.run(retention.get, name)

    async def set(self, call: Call, name: str, body: SetRetention) -> RetentionPolicy:
        """Make a retention policy, or replace one: from then on what no policy keeps is deleted in the background.

        A policy covers the snapshots of one VM, or those of all VMs that carry its labels. Where several cover a
        snapshot, it stays if any of them keeps it. Snapshots that no policy covers stay, and so do protected ones,
        undo points and the one that the VM stands on. A disabled policy does nothing, and can be previewed.
        """
        _check(body)
        return await self._db.run(_set, call, name, body)

    async def remove(self, call: Call, name: str) -> RetentionPolicy:
        """Remove a retention policy, and answer with it as it was. Snapshots that it would have deleted stay."""
        work = partial(retention.remove, name)
        return await self._db.run(lambda: change(call, f"Retention policy {name}", partial(retention.get, name), work))

    async def preview(self, call: Call, name: str, query: PageQuery) -> Page[RetentionVerdict]:
        """Say of each snapshot that a policy covers whether it would stay or go, and why. Changes nothing.

        All policies that are in force have their say, and this one even where it is disabled.
        """
        found = await self._db.run(expiry.preview, name)
        order = {one.snapshot: f"{number:07}" for number, one in enumerate(found)}
        return page_of(found, query, lambda one: order[one.snapshot])

    async def apply(self, call: Call, name: str, query: WaitQuery) -> Reply[Operation]:
        """Delete now what this policy covers and no policy keeps, without waiting for the hour.

        The operation's result lists what was deleted, what waits for its VM to stop, and what failed.
        """
        wanted = retention_apply.Wanted(policy=name)
        place = partial(_in_force, name)
        operation = await self._engine.submit("retention-apply", wanted, place, call.idempotency_key)
        if query.wait:
            operation = await self._engine.wait(operation.uuid, query.wait)
        return Reply(operation, headers={"Location": f"/v1/operations/{operation.uuid}"})


def _check(body: SetRetention) -> None:
    """Raise InvalidRequest for a policy that would cover everything by mistake, or keep nothing."""
    if body.vm is None and not body.labels:
        raise InvalidRequest(
            where="body", reason="expected vm, labels or both: a policy covers one VM or what is labelled"
        )
    if not (body.keep_last or body.keep_hourly or body.keep_daily or body.keep_weekly or body.keep_monthly):
        raise InvalidRequest(where="body", reason="expected at least one count above 0: a policy keeps something")


def _set(call: Call, name: str, body: SetRetention) -> RetentionPolicy:
    with write():
        known = retention.find(name)
        tag = None if known is None else etag.of(msgspec.json.encode(known))
        call.require_match(f"Retention policy {name}", tag)
        return retention.put(name, body)


def _in_force(name: str) -> tuple[UUID | None, str | None]:
    if not retention.get(name).enabled:
        raise RetentionDisabled(name=name)
    return None, None
