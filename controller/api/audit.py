"""The middleware that writes every changing call into the audit log, in one place for all routes."""

import logging
from uuid import UUID

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from agent.web import dry_run
from agent.web.call import IDENTITY
from agent.web.errors import Error
from agent.web.log import kv
from controller.db import Database
from controller.errors import DatabaseFailed
from controller.store import audit

log = logging.getLogger("coldframe.audit")

_EXPORT = "/export"
_OPERATIONS = "/v1/operations/"


def auditing(db: Database) -> Middleware:
    """Write a line before the call is worked on, and how it ended after: nothing changes without a line.

    Reading a whole VM out is noted down like a change. A call that the database cannot note down is refused before it
    begins. Who has no credential never gets here, and is in the access log; so is a dry run, which changes nothing. The
    query is not written: it is not needed to know what was done.
    """

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        identity = request.get(IDENTITY)
        noted = request.method in dry_run.CHANGING or request.path.endswith(_EXPORT)
        if not noted or dry_run.is_wanted(request) or identity is None or request.match_info.http_exception is not None:
            return await handler(request)
        seq = await db.run(
            audit.begin,
            actor=identity.name,
            role=identity.role,
            remote=request.remote or "unix",
            method=request.method,
            path=request.path,
        )
        status, operation = 500, None
        try:
            response = await handler(request)
        except Error as err:
            status = err.status
            raise
        except web.HTTPException as err:
            status = err.status
            raise
        else:
            status, operation = response.status, _operation(response)
            return response
        finally:
            await _finish(db, seq, status, operation)

    return middleware


async def _finish(db: Database, seq: int, status: int, operation: UUID | None) -> None:
    try:
        await db.run(audit.finish, seq, status, operation)
    except DatabaseFailed as err:
        # The change is made and must be answered for; the line is there, with status 0.
        log.warning(kv("audit-not-finished", seq=seq, status=status, detail=str(err)))


def _operation(response: web.StreamResponse) -> UUID | None:
    """Return the operation that an answer points to."""
    location = response.headers.get("Location", "")
    return UUID(location.removeprefix(_OPERATIONS)) if location.startswith(_OPERATIONS) else None
