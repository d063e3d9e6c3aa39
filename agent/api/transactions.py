"""The two-phase unit of work over HTTP; see docs/developer.md for the order of the calls."""

import asyncio
import hashlib
from pathlib import Path
from uuid import UUID

from aiohttp import web

from agent.api.host_files import ANSWERED_HASH, ETAG, IF_NONE_MATCH, SENT_HASH, SHA256, announced_hash
from agent.errors import (
    ArchiveRefused,
    DomainNotFound,
    HashMismatch,
    HookLockHeld,
    HostFileNotFound,
    HypervisorRefused,
    HypervisorUnavailable,
    NoSpace,
    QemuImgFailed,
    Refused,
    StorageFailed,
    ToolFailed,
    ToolTimeout,
    TransactionNotFound,
)
from agent.host import files
from agent.transactions.foresight import Foresight
from agent.transactions.manager import Manager
from agent.web import etag
from agent.web.call import Call
from agent.web.paging import PageQuery, page_of
from agent.web.routes import BYTES, Route, route
from agent.wire.base import Page
from agent.wire.host_file import HostFileType
from agent.wire.plan import Plan
from agent.wire.transaction import Transaction, TransactionRequest

#: What work on a domain can end with, now or as it was recorded.
WORK = (
    *(Refused, TransactionNotFound, DomainNotFound, HostFileNotFound, HashMismatch, NoSpace),
    *(ArchiveRefused, StorageFailed, HookLockHeld, QemuImgFailed, ToolFailed, ToolTimeout),
    *(HypervisorUnavailable, HypervisorRefused),
)


class TransactionRoutes:
    """What a controller does with transactions. ``limit_bytes`` bounds one host file."""

    def __init__(self, manager: Manager, limit_bytes: int) -> None:
        self._manager = manager
        self._foresight = Foresight(manager)
        self._limit_bytes = limit_bytes

    def routes(self) -> list[Route]:
        """Return the routes."""
        one = "/v1/transactions/{id}"
        file = f"{one}/host-files/{{type}}"
        answered = (ETAG, ANSWERED_HASH)
        known = (TransactionNotFound, StorageFailed)
        return [
            route("GET", "/v1/transactions", self.list, errors=(StorageFailed,)),
            route("GET", one, self.show, errors=known),
            route("PUT", one, self.put, errors=WORK, role="admin", planner=self.plan_put),
            route(
                *("GET", file, self.captured),
                media_type=BYTES,
                statuses={304: None},
                headers=(IF_NONE_MATCH,),
                answer_headers=answered,
                errors=(*WORK, HostFileNotFound),
            ),
            route(
                *("PUT", file, self.upload),
                raw_body=True,
                body_limit_bytes=self._limit_bytes,
                headers=(SENT_HASH,),
                errors=WORK,
                role="admin",
                planner=self.plan_upload,
            ),
            route("POST", f"{one}/commit", self.commit, errors=WORK, role="admin", planner=self.plan_commit),
            route("POST", f"{one}/abort", self.abort, errors=WORK, role="admin", planner=self.plan_abort),
            route("POST", f"{one}/renew", self.renew, errors=WORK, role="admin", planner=self.plan_renew),
        ]

    async def list(self, call: Call, query: PageQuery) -> Page[Transaction]:
        """List every transaction that is under way or ended within the last days."""
        return page_of(self._manager.all(), query, lambda one: str(one.id))

    async def show(self, call: Call, id: UUID) -> Transaction:
        """Show how a transaction stands, or how it ended."""
        return self._manager.get(id)

    async def put(self, call: Call, id: UUID, body: TransactionRequest) -> Transaction:
        """Begin a transaction; the answer comes when it is prepared.

        The same id with the same body answers the same again; with another body it is ``transaction-mismatch``.
        """
        return await self._manager.put(id, body)

    async def plan_put(self, call: Call, id: UUID, body: TransactionRequest) -> Plan:
        """Plan ``put``."""
        return await self._foresight.begin(id, body)

    async def captured(self, call: Call, id: UUID, type: HostFileType) -> web.Response:
        """Fetch a host file that the transaction captured."""
        path = self._manager.captured(id, type)
        try:
            data = await asyncio.to_thread(_read, path, self._limit_bytes, type)
        except StorageFailed:
            await self._manager.at_rest(id)  # where it is being undone, that is why
            self._manager.captured(id, type)
            raise
        found = hashlib.sha256(data).hexdigest()
        headers = {"ETag": etag.quote(found), SHA256: found}
        if call.none_match(found):
            return web.Response(status=304, headers=headers)
        return web.Response(body=data, content_type=BYTES, headers=headers)

    async def upload(self, call: Call, id: UUID, type: HostFileType) -> Transaction:
        """Hand over a host file that a revert puts back, before commit. Its hash must be the announced one."""
        return await self._manager.upload(id, type, call.chunks(), announced_hash(call))

    async def plan_upload(self, call: Call, id: UUID, type: HostFileType) -> Plan:
        """Plan ``upload``; the body is read and judged."""
        return await self._foresight.upload(id, type, await call.read(), announced_hash(call))

    async def commit(self, call: Call, id: UUID) -> Transaction:
        """Commit; the answer comes when it is committed. A delete answers at once: poll it."""
        return await self._manager.commit(id)

    async def plan_commit(self, call: Call, id: UUID) -> Plan:
        """Plan ``commit``."""
        return await self._foresight.commit(id)

    async def abort(self, call: Call, id: UUID) -> Transaction:
        """Undo what was prepared."""
        return await self._manager.abort(id)

    async def plan_abort(self, call: Call, id: UUID) -> Plan:
        """Plan ``abort``."""
        return self._foresight.abort(id)

    async def renew(self, call: Call, id: UUID) -> Transaction:
        """Extend the lease by its own length from now."""
        return await self._manager.renew(id)

    async def plan_renew(self, call: Call, id: UUID) -> Plan:
        """Plan ``renew``."""
        return self._foresight.renew(id)


def _read(path: Path, limit_bytes: int, type: HostFileType) -> bytes:
    return files.read_limited(path, limit_bytes, type)
