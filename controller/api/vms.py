"""VMs, their volumes and the copies of their host files; forgetting a VM."""

from functools import partial
from typing import Any
from uuid import UUID

import msgspec
from aiohttp import web

from agent.web import etag
from agent.web.call import Call
from agent.web.errors import PreconditionFailed
from agent.web.paging import PageQuery, page_of
from agent.web.routes import BYTES, Header, Route, route
from agent.wire.base import Page, Request
from agent.wire.fleet import Vm, VmHostFile, VmVolume
from agent.wire.host_file import HostFileType
from agent.wire.vm import VmState
from controller.api import pages
from controller.api.conditions import IF_MATCH, change
from controller.db import Database, read, write
from controller.errors import (
    ContentCorrupt,
    ContentMissing,
    DisksNotRemoved,
    HostFileNotHeld,
    SnapshotProtected,
    VmAmbiguous,
    VmBusy,
    VmDefined,
    VmNotFound,
)
from controller.forgetting import remove_disks
from controller.hosts import Hosts
from controller.store import host_files, vms, volumes

ETAG = Header("ETag", "SHA-256 of the bytes, in quotes", required=True)
IF_NONE_MATCH = Header("If-None-Match", "Answer 304 where the ETag is still this")
_FINDING = (VmNotFound, VmAmbiguous)


class VmQuery(PageQuery, kw_only=True, frozen=True):
    """What to list."""

    host: str | None = None
    state: VmState | None = None
    name: str | None = None


class ForgetQuery(Request, kw_only=True, frozen=True):
    """What goes with the records. ``disks``: the VM's image files on its host, too."""

    disks: bool = False


class VmRoutes:
    """VMs by UUID, or by a name that only one has."""

    def __init__(self, db: Database, hosts: Hosts) -> None:
        self._db = db
        self._hosts = hosts

    def routes(self) -> list[Route]:
        """Return the routes."""
        one = "/v1/vms/{vm}"
        return [
            route("GET", "/v1/vms", self.list),
            route("GET", one, self.show, errors=_FINDING),
            route(
                "DELETE",
                one,
                self.forget,
                role="operator",
                headers=(IF_MATCH,),
                errors=(*_FINDING, VmBusy, VmDefined, SnapshotProtected, DisksNotRemoved, PreconditionFailed),
            ),
            route("GET", f"{one}/volumes", self.volumes, errors=_FINDING),
            route("GET", f"{one}/host-files", self.host_files, errors=_FINDING),
            route(
                "GET",
                f"{one}/host-files/{{type}}/content",
                self.content,
                role="operator",
                media_type=BYTES,
                statuses={304: None},
                headers=(IF_NONE_MATCH,),
                answer_headers=(ETAG,),
                errors=(*_FINDING, HostFileNotHeld, ContentMissing, ContentCorrupt),
            ),
        ]

    async def list(self, call: Call, query: VmQuery) -> Page[Vm]:
        """List VMs by name."""
        found = await self._db.run(
            vms.page,
            query.limit,
            pages.position(query, vms.Position),
            host=query.host,
            state=query.state,
            name=query.name,
        )
        return pages.page(found)

    async def show(self, call: Call, vm: str) -> Vm:
        """Show one VM."""
        return await self._db.run(_find, vm)

    async def forget(self, call: Call, vm: str, query: ForgetQuery) -> Vm:
        """Forget a VM, and answer with it as it was: its records, host files, snapshots and their backup files go.

        Nothing on a host changes: disks and frozen files are left. A VM that a host still defines is shown again,
        without its history, when that host is looked at next. One with a protected snapshot is refused.

        With `disks`, the image files of a VM that no host defines any more are removed first: its last top files, its
        snapshots' frozen files and those kept for others. One that anybody else needs is named, and then all stay.
        """
        if query.disks:
            uuid = await self._db.run(_require_forgettable, call, vm)
            await remove_disks(self._db, self._hosts, uuid)
        return await self._db.run(_forget, call, vm, query.disks)

    async def volumes(self, call: Call, vm: str, query: PageQuery) -> Page[VmVolume]:
        """List a VM's volumes with the chain of each: files, sizes and whose frozen file each is."""
        return page_of(await self._db.run(_volumes, vm), query, lambda one: one.target)

    async def host_files(self, call: Call, vm: str, query: PageQuery) -> Page[VmHostFile]:
        """List the copies that are held of a VM's host files."""
        found = await self._db.run(_find, vm)
        return page_of(found.host_files, query, lambda one: one.type)

    async def content(self, call: Call, vm: str, type: HostFileType) -> web.Response:
        """Read the copy of one host file: NVRAM as its own bytes, TPM state as a tar archive."""
        kept, data = await self._db.run(_content, vm, type)
        return bytes_answer(call, str(kept.sha256), data)


def bytes_answer(call: Call, sha256: str, data: bytes) -> web.Response:
    """Answer with bytes whose ETag is their hash, or 304 to a caller that has them."""
    headers = {"ETag": etag.quote(sha256)}
    if call.none_match(sha256):
        return web.Response(status=304, headers=headers)
    return web.Response(body=data, content_type=BYTES, headers=headers)


def _find(text: str) -> Vm:
    with read():
        return vms.get(vms.resolve(text))


def _content(text: str, type_: HostFileType) -> tuple[Any, bytes]:
    with read():
        return host_files.data(vms.resolve(text), type_)


def _require_forgettable(call: Call, text: str) -> UUID:
    with read():
        uuid = vms.resolve(text)
        call.require_match(f"VM {text}", etag.of(msgspec.json.encode(vms.get(uuid))))
        return vms.require_forgettable(uuid).uuid


def _forget(call: Call, text: str, disks_gone: bool) -> Vm:
    with write():
        uuid = vms.resolve(text)
        return change(call, f"VM {text}", partial(vms.get, uuid), partial(vms.forget, uuid, disks_gone=disks_gone))


def _volumes(text: str) -> list[VmVolume]:
    with read():
        return volumes.of_vm(vms.resolve(text))
