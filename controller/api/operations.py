"""Operations: how they are, waiting for them, cancelling them."""

from typing import Annotated, Protocol
from uuid import UUID

import msgspec

from agent.web.call import Call
from agent.web.errors import PreconditionFailed
from agent.web.paging import PageQuery
from agent.web.routes import Route, route
from agent.wire.base import Page, Request
from agent.wire.operation import Operation, OperationState
from controller.api import pages
from controller.api.conditions import IF_MATCH, change
from controller.db import Database
from controller.errors import OperationNotCancellable, OperationNotFound
from controller.store import operations

#: Below what proxies cut (60 s is common); a caller that wants to wait longer asks again.
WAIT_LIMIT_S = 50
Wait = Annotated[float, msgspec.Meta(ge=0, le=WAIT_LIMIT_S, description="Answer when it has ended, or after so long")]


class Works(Protocol):
    """Who runs operations."""

    async def wait(self, uuid: UUID, timeout_s: float) -> Operation:
        """Return it when it has ended, or as it is after so long."""
        ...

    async def cancel(self, uuid: UUID) -> Operation:
        """Cancel it where that is possible."""
        ...


class OperationQuery(PageQuery, kw_only=True, frozen=True):
    """What to list."""

    vm: UUID | None = None
    host: str | None = None
    state: OperationState | None = None
    kind: str | None = None


class WaitQuery(Request, kw_only=True, frozen=True):
    """Whether to wait."""

    wait: Wait = 0


class OperationRoutes:
    """Operations, newest first."""

    def __init__(self, db: Database, engine: Works) -> None:
        self._db = db
        self._engine = engine

    def routes(self) -> list[Route]:
        """Return the routes."""
        one = "/v1/operations/{id}"
        return [
            route("GET", "/v1/operations", self.list),
            route("GET", one, self.show, errors=(OperationNotFound,)),
            route(
                "DELETE",
                one,
                self.cancel,
                role="operator",
                headers=(IF_MATCH,),
                errors=(OperationNotFound, OperationNotCancellable, PreconditionFailed),
            ),
        ]

    async def list(self, call: Call, query: OperationQuery) -> Page[Operation]:
        """List operations, newest first."""
        found = await self._db.run(
            operations.page,
            query.limit,
            pages.position(query, int),
            vm=query.vm,
            host=query.host,
            state=query.state,
            kind=query.kind,
        )
        return pages.page(found)

    async def show(self, call: Call, id: UUID, query: WaitQuery) -> Operation:
        """Show one operation, at once or when it has ended."""
        return await self._engine.wait(id, query.wait)

    async def cancel(self, call: Call, id: UUID) -> Operation:
        """Cancel an operation: one that waits ends at once, one that runs before its next step, unless it commits."""
        await self._db.run(change, call, f"Operation {id}", lambda: operations.get(id), lambda: None)
        return await self._engine.cancel(id)
