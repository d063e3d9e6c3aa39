"""Portable archives over HTTP: written to, and read from, the body of one call."""

import asyncio
from contextlib import suppress
from functools import partial
from typing import Annotated
from uuid import UUID, uuid5

import msgspec
from aiohttp import web

from agent.web import dry_run
from agent.web.call import Call, Reply
from agent.web.errors import Error
from agent.web.routes import Route, route
from agent.wire.base import Request
from agent.wire.operation import OPERATION_ENDED, Operation
from agent.wire.snapshot import Snapshot
from controller import names
from controller.api.actions import IDEMPOTENCY_KEY, LOCATION
from controller.api.operations import WaitQuery
from controller.archive.manifest import DisksMode
from controller.archive.transfers import STALL_S, arriving
from controller.archive.unpack import Unpacking
from controller.errors import (
    ExportFailed,
    HostNotFound,
    HostUnreachable,
    IdempotencyConflict,
    NameInvalid,
    OperationCancelled,
    OperationNotCancellable,
    SnapshotArchiveRefused,
    SnapshotBusy,
    SnapshotNotFound,
    SnapshotPartlyDeleted,
    TransferBroken,
    VmConflict,
    VmKnown,
    VmNowhere,
)
from controller.operations import snapshot_export, snapshot_import
from controller.operations.engine import Engine
from controller.operations.transaction import HostRefused
from controller.store import hosts, snapshots, vms

ZSTD = "application/zstd"
#: The archive's own manifest bounds what is taken in; this is above any archive.
_LIMIT_BYTES = 1 << 62
_EXPORT_ERRORS = (
    *(SnapshotNotFound, SnapshotBusy, SnapshotPartlyDeleted, ExportFailed, OperationCancelled),
    *(HostNotFound, HostUnreachable, VmConflict, VmNowhere, TransferBroken),
)
#: How often a caller who waits for a stream's first byte is looked for.
_LOOK_S = 5.0

_Disks = Annotated[DisksMode, msgspec.Meta(description="Each disk as one file, or all files of its chain")]
_Host = Annotated[str, msgspec.Meta(description="The host that the VM is made on")]
_Name = Annotated[str | None, msgspec.Meta(description="Another name for the snapshot")]
_AsNew = Annotated[str | None, msgspec.Meta(description="Make another VM, of this name, with an identity of its own")]
_Directory = Annotated[str | None, msgspec.Meta(description="Where its disks go; one of the host's image directories")]


class ExportQuery(Request, kw_only=True, frozen=True):
    """What is written."""

    disks: _Disks = "flat"


class ImportQuery(WaitQuery, kw_only=True, frozen=True):
    """Where, and as what."""

    host: _Host
    name: _Name = None
    as_new: _AsNew = None
    directory: _Directory = None


class ArchiveRoutes:
    """Each is the HTTP side of one operation, which takes its turn on the VM like any other."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            route(
                *("GET", "/v1/snapshots/{id}/export", self.export),
                media_type=ZSTD,
                role="operator",
                answer_headers=(LOCATION,),
                errors=_EXPORT_ERRORS,
            ),
            route(
                *("POST", "/v1/snapshots/import", self.import_),
                status=202,
                raw_body=True,
                body_limit_bytes=_LIMIT_BYTES,
                role="admin",
                headers=(IDEMPOTENCY_KEY,),
                answer_headers=(LOCATION,),
                errors=(
                    *(SnapshotArchiveRefused, TransferBroken, HostNotFound, VmKnown),
                    *(NameInvalid, IdempotencyConflict),
                ),
            ),
        ]

    async def export(self, call: Call, id: UUID, query: ExportQuery) -> web.StreamResponse:
        """Write a snapshot as one portable file: tar inside zstd, as docs/archive-format.md says.

        The VM may run. The answer begins when it is the snapshot's turn and its disks are ready; one that breaks off is
        not whole. Deleting the operation that `Location` names ends it.
        """
        wanted = snapshot_export.Wanted(snapshot=id, disks=query.disks)
        operation = await self._engine.submit("snapshot-export", wanted, partial(_exportable, id))
        download = Download(call.request, operation.uuid, id)
        self._engine.streams.sinks.offer(operation.uuid, download)
        try:
            ended = await self._ended(call, operation)
        finally:
            self._engine.streams.sinks.withdraw(operation.uuid)
        if ended.state != "succeeded":
            raise _failure(ended)
        return download.response

    async def import_(self, call: Call, query: ImportQuery) -> Reply[Operation]:
        """Make the VM of a portable file that is sent, standing on the snapshot that the file holds.

        All of it is checked before anything counts. Without `as_new` the VM gets back the identity that it had. The
        answer comes when the file was read, or refused; the domain XML in it is defined as it is, so trust it first.
        """
        if query.name is not None:
            names.check_text("Snapshot", query.name)
        if query.as_new is not None:
            names.check_vm(query.as_new)
        limit_bytes = self._engine.limits.patience.host_file_limit_bytes
        unpacking = await Unpacking.open(arriving(call.chunks()), limit_bytes)
        wanted = _wanted(query, unpacking)
        operation = await self._engine.submit(
            "snapshot-import", wanted, partial(_vacant, query.host, wanted), call.idempotency_key
        )
        if dry_run.is_wanted(call.request):
            await unpacking.verify()
            return Reply(operation)
        archives = self._engine.streams.archives
        ours = operation.state not in OPERATION_ENDED and archives.offer(operation.uuid, unpacking)
        try:
            ended = await self._ended(call, operation)
        finally:
            if ours:
                archives.withdraw(operation.uuid)
        return Reply(ended, headers={"Location": f"/v1/operations/{operation.uuid}"})

    async def _ended(self, call: Call, operation: Operation) -> Operation:
        """Wait for an operation, and cancel it when its caller has gone. Raises TransferBroken then."""
        while operation.state not in OPERATION_ENDED:
            operation = await self._engine.wait(operation.uuid, _LOOK_S)
            transport = call.request.transport
            if operation.state not in OPERATION_ENDED and (transport is None or transport.is_closing()):
                with suppress(OperationNotCancellable):
                    await self._engine.cancel(operation.uuid)
                raise TransferBroken(reason="the caller went away")
        return operation


def _failure(ended: Operation) -> Error:
    """Return what an export ended with: as it is where the route says that it can be so, else named as the cause."""
    told = ended.error
    if told is None:
        return OperationCancelled(operation=ended.uuid)
    if told.code in {one.code for one in _EXPORT_ERRORS}:
        return HostRefused(told)
    return ExportFailed(reason=told.detail, cause=told.code, operation=ended.uuid)


def _wanted(query: ImportQuery, unpacking: Unpacking) -> snapshot_import.Wanted:
    """Say what the operation is to do. The same archive under the same new name is the same VM at every try.

    What the archive calls things is judged as what a caller does. Raises NameInvalid.
    """
    manifest = unpacking.manifest
    names.check_text("Snapshot", query.name or manifest.snapshot.name)
    names.check_description(manifest.snapshot.description)
    names.check_labels(manifest.snapshot.labels)
    vm, vm_name = manifest.vm.uuid, manifest.vm.name
    if query.as_new is not None:
        vm, vm_name = uuid5(manifest.snapshot.uuid, f"{query.host}/{query.as_new}"), query.as_new
    names.check_vm(vm_name)
    return snapshot_import.Wanted(
        manifest=manifest,
        domain_xml=unpacking.domain_xml(),
        vm=vm,
        vm_name=vm_name,
        name=query.name or manifest.snapshot.name,
        renew=query.as_new is not None,
        directory=query.directory,
    )


def _exportable(id: UUID) -> tuple[UUID, str]:
    """Return the VM and the host of the frozen files, whether or not that host still defines the VM."""
    snapshot: Snapshot = snapshots.get(id)
    if snapshot.state != "ready":
        raise SnapshotBusy(snapshot=id, state=snapshot.state)
    there = {volume.host for volume in snapshot.volumes}
    return snapshot.vm, there.pop() if len(there) == 1 else vms.host_of(snapshot.vm)


def _vacant(host: str, wanted: snapshot_import.Wanted) -> tuple[UUID, str]:
    """Raise HostNotFound, or VmKnown where a host defines the VM, or one of its name."""
    hosts.get(host)
    vms.require_unknown(wanted.vm, wanted.vm_name)
    return wanted.vm, host


class Download:
    """The caller's end of an export. Headers go out with the first bytes, so that a refusal can be told until then."""

    def __init__(self, request: web.Request, operation: UUID, snapshot: UUID) -> None:
        self._request = request
        self.response = web.StreamResponse(
            headers={
                "Content-Type": ZSTD,
                "Content-Disposition": f'attachment; filename="{snapshot}.tar.zst"',
                "Location": f"/v1/operations/{operation}",
            }
        )

    async def write(self, piece: bytes) -> None:
        """Pass a piece on. Raises TransferBroken where the caller went away, or takes nothing for too long."""
        try:
            async with asyncio.timeout(STALL_S):
                if not self.response.prepared:
                    await self.response.prepare(self._request)
                await self.response.write(piece)
        except TimeoutError as err:
            raise TransferBroken(reason=f"the caller took nothing for {STALL_S:.0f} s") from err
        except OSError as err:  # aiohttp's ClientConnectionError among them
            raise TransferBroken(reason="the caller went away") from err

    async def finish(self) -> None:
        """End the answer: without this it is not whole."""
        try:
            async with asyncio.timeout(STALL_S):
                await self.response.write_eof()
        except (TimeoutError, OSError) as err:
            raise TransferBroken(reason="the caller went away before the end") from err
