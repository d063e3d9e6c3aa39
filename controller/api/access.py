"""Tokens and the audit log."""

from datetime import UTC, datetime
from functools import partial
from uuid import UUID

from agent.web.call import Call, Reply
from agent.web.errors import InvalidRequest, PreconditionFailed
from agent.web.paging import PageQuery
from agent.web.routes import Route, route
from agent.wire.access import AuditEntry, CreateToken, NewToken, Token
from agent.wire.base import Page, utc_now
from controller.api import pages
from controller.api.conditions import IF_MATCH, change
from controller.db import Database
from controller.errors import NameInvalid, TokenExists, TokenNotFound
from controller.store import audit, tokens


class AuditQuery(PageQuery, kw_only=True, frozen=True):
    """What to list."""

    actor: str | None = None
    method: str | None = None


class AccessRoutes:
    """Who may do what, and who did what: for admins."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            route("GET", "/v1/tokens", self.list, role="admin"),
            route("POST", "/v1/tokens", self.create, status=201, role="admin", errors=(NameInvalid, TokenExists)),
            route(
                "DELETE",
                "/v1/tokens/{id}",
                self.revoke,
                role="admin",
                headers=(IF_MATCH,),
                errors=(TokenNotFound, PreconditionFailed),
            ),
            route("GET", "/v1/audit", self.audit, role="admin"),
        ]

    async def list(self, call: Call, query: PageQuery) -> Page[Token]:
        """List the tokens that were not revoked, by name."""
        return pages.page(await self._db.run(tokens.page, query.limit, pages.position(query, str)))

    async def create(self, call: Call, body: CreateToken) -> Reply[NewToken]:
        """Make a token. Its secret is in this answer and can never be shown again."""
        made = await self._db.run(tokens.create, body.name, body.role, _moment(body.expires_at))
        # The answer holds a secret: no cache on the way may keep it.
        return Reply(made, headers={"Cache-Control": "no-store"})

    async def revoke(self, call: Call, id: UUID) -> Token:
        """Put a token out of force at once, and answer with it as it was."""
        work = partial(tokens.revoke, id)
        return await self._db.run(lambda: change(call, f"Token {id}", partial(tokens.get, id), work))

    async def audit(self, call: Call, query: AuditQuery) -> Page[AuditEntry]:
        """List changing calls, newest first: who, what, from where and how each ended."""
        found = await self._db.run(
            audit.page, query.limit, pages.position(query, int), actor=query.actor, method=query.method
        )
        return pages.page(found)


def _moment(at: datetime | None) -> datetime | None:
    """Return a moment to come in UTC; one without a zone is UTC. Raises InvalidRequest."""
    if at is None:
        return None
    try:
        at = at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    except OverflowError as err:  # the last hours of the year 9999, west of Greenwich
        raise InvalidRequest(where="body.expires_at", reason="this moment is too far away") from err
    if at <= utc_now():
        raise InvalidRequest(where="body.expires_at", reason="this moment has passed")
    return at
