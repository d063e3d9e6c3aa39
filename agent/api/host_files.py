"""Host files of a domain: NVRAM and TPM state, read and replaced."""

import hashlib
from uuid import UUID

from aiohttp import web

from agent.errors import (
    ArchiveRefused,
    DomainNotFound,
    DomainUnreadable,
    HashMismatch,
    HookLockHeld,
    HostFileNotFound,
    HostFileTooLarge,
    HypervisorRefused,
    HypervisorUnavailable,
    NoSpace,
    Refused,
    StorageFailed,
)
from agent.host.inventory import Inventory
from agent.transactions.foresight import Foresight
from agent.transactions.manager import Manager
from agent.web import etag
from agent.web.call import Call
from agent.web.errors import InvalidRequest
from agent.web.routes import BYTES, Header, Route, route
from agent.wire.host_file import HostFile, HostFiles, HostFileType
from agent.wire.plan import Plan

SHA256 = "X-Content-SHA256"
SENT_HASH = Header(SHA256, "SHA-256 of the body, hexadecimal", required=True, pattern="[0-9a-f]{64}")
ANSWERED_HASH = Header(SHA256, "SHA-256 of the bytes, the same as the ETag", required=True)
ETAG = Header("ETag", "SHA-256 of the bytes, in quotes", required=True)
IF_MATCH = Header("If-Match", "The ETag that the file must have now", pattern=r'\*|"[0-9a-f]{64}"')
IF_NONE_MATCH = Header("If-None-Match", "Answer 304 where the ETag is still this")

_LOOKING = (DomainNotFound, DomainUnreadable, HypervisorUnavailable, HypervisorRefused, StorageFailed)
_WRITING = (Refused, HashMismatch, ArchiveRefused, NoSpace, HostFileNotFound, HookLockHeld)


class HostFileRoutes:
    """What is asked of a domain's host files. ``limit_bytes`` bounds what is uploaded."""

    def __init__(self, inventory: Inventory, manager: Manager, limit_bytes: int) -> None:
        self._inventory = inventory
        self._manager = manager
        self._foresight = Foresight(manager)
        self._limit_bytes = limit_bytes

    def routes(self) -> list[Route]:
        """Return the routes."""
        one = "/v1/vms/{uuid}/host-files/{type}"
        return [
            route("GET", "/v1/vms/{uuid}/host-files", self.list, errors=_LOOKING),
            route(
                "GET",
                one,
                self.read,
                media_type=BYTES,
                statuses={304: None},
                headers=(IF_NONE_MATCH,),
                answer_headers=(ETAG, ANSWERED_HASH),
                errors=(*_LOOKING, Refused, HostFileNotFound, HostFileTooLarge),
            ),
            route(
                "PUT",
                one,
                self.write,
                raw_body=True,
                body_limit_bytes=self._limit_bytes,
                headers=(SENT_HASH, IF_MATCH),
                errors=(*_LOOKING, *_WRITING),
                role="admin",
                planner=self.plan_write,
            ),
        ]

    async def list(self, call: Call, uuid: UUID) -> HostFiles:
        """List a domain's host files: those that are sound, and those that should be there and are not."""
        return await self._inventory.host_files(uuid)

    async def read(self, call: Call, uuid: UUID, type: HostFileType) -> web.Response:
        """Read one host file: NVRAM as its own bytes, TPM state as a tar archive.

        The bytes are whole and checked before the first one is sent: a damaged file is an error, not half an answer.
        """
        file, data = await self._inventory.read_host_file(uuid, type)
        headers = {"ETag": etag.quote(file.sha256), SHA256: file.sha256}
        if call.none_match(file.sha256):
            return web.Response(status=304, headers=headers)
        return web.Response(body=data, content_type=BYTES, headers=headers)

    async def write(self, call: Call, uuid: UUID, type: HostFileType) -> HostFile:
        """Replace one host file of a domain that is shut off, whole or not at all.

        With ``If-Match`` the file must still be the one that was read.
        """
        data, expected = await self._sent(call, uuid, type)
        return await self._manager.write_host_file(uuid, type, data, expected)

    async def plan_write(self, call: Call, uuid: UUID, type: HostFileType) -> Plan:
        """Plan ``write``; the body is read and judged."""
        data, expected = await self._sent(call, uuid, type)
        return await self._foresight.write_host_file(uuid, type, data, expected)

    async def _sent(self, call: Call, uuid: UUID, type: HostFileType) -> tuple[bytes, str | None]:
        """Return the body, checked against its hash, and the SHA-256 that the present file must have."""
        announced = announced_hash(call)
        expected = await self._expected(call, uuid, type)
        data = await call.read()
        require_hash(type, data, announced)
        return data, expected

    async def _expected(self, call: Call, uuid: UUID, type: HostFileType) -> str | None:
        """Return the SHA-256 that the present file must have, or None. The manager checks it under the guard."""
        tags = call.if_match()
        if tags is None:
            return None
        if tags == [etag.ANY]:
            return (await self._inventory.read_host_file(uuid, type))[0].sha256
        if len(tags) != 1:
            raise InvalidRequest(where="If-Match", reason="expected one strong entity tag")
        return tags[0]


def announced_hash(call: Call) -> str:
    """Return the SHA-256 that the caller sends along. Raises InvalidRequest."""
    announced = call.request.headers.get(SHA256, "").lower()
    if len(announced) != 64 or not set(announced) <= set("0123456789abcdef"):
        raise InvalidRequest(where=SHA256, reason="expected 64 hexadecimal digits")
    return announced


def require_hash(type: HostFileType, data: bytes, announced: str) -> None:
    """Raise HashMismatch where the bytes that arrived are not those that were announced."""
    found = hashlib.sha256(data).hexdigest()
    if found != announced:
        raise HashMismatch(type=type, found=found, expected=announced)
