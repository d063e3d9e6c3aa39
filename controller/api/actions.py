"""Calls that start work on VMs and snapshots: what can be checked at once is, the rest is the operation's to say.

The VM's state is not looked at here: what the records say of it may be a moment old, and the host decides.
"""

from typing import Any
from uuid import UUID

import msgspec

from agent.web import etag
from agent.web.call import Call, Reply
from agent.web.errors import InvalidRequest, PreconditionFailed
from agent.web.routes import Header, Route, route
from agent.wire.backup_file import BackupHostFiles, RestoreHostFiles
from agent.wire.base import Request
from agent.wire.clone import CloneSnapshot
from agent.wire.host_file import HOST_FILE_TYPES
from agent.wire.operation import Operation
from agent.wire.place import PlaceVm
from agent.wire.snapshot import CreateSnapshot, RevertSnapshot, Snapshot
from controller import names
from controller.api.conditions import IF_MATCH
from controller.api.operations import WaitQuery
from controller.errors import (
    BackupFileNotFound,
    HostNotFound,
    IdempotencyConflict,
    NameInvalid,
    SnapshotBusy,
    SnapshotExists,
    SnapshotNotFound,
    SnapshotProtected,
    VmAmbiguous,
    VmConflict,
    VmExists,
    VmNotFound,
    VmNowhere,
)
from controller.operations import (
    backup_host_files,
    clone,
    place,
    restore_host_files,
    revert,
    snapshot_create,
    snapshot_delete,
    sync,
    ungroup,
)
from controller.operations.engine import Engine, Place
from controller.store import backup_files, hosts, operations, snapshots, vms

IDEMPOTENCY_KEY = Header(
    "Idempotency-Key", "The same key and request again: the same operation", pattern=r"[!-~]{1,128}"
)
LOCATION = Header("Location", "The operation", required=True)

_OWNERS_LIMIT = 1000  # one transaction writes them all; a thousand take well under a second
_CLONES_LIMIT = 100
_VM = (VmNotFound, VmAmbiguous, VmConflict, VmNowhere, PreconditionFailed, IdempotencyConflict)
_COPIES = (SnapshotNotFound, BackupFileNotFound)
_SNAPSHOT = (SnapshotNotFound, SnapshotBusy, VmConflict, VmNowhere, PreconditionFailed, IdempotencyConflict)


class ActionRoutes:
    """Each answers 202 with the operation, at once or, with ``?wait=``, when it has ended."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def routes(self) -> list[Route]:
        """Return the routes."""
        vm, one = "/v1/vms/{vm}", "/v1/snapshots/{id}"
        return [
            _action("POST", f"{vm}/sync", self.sync, _VM),
            _action("POST", f"{vm}/backup-host-files", self.backup_host_files, _VM),
            _action("POST", f"{vm}/place", self.place, (*_VM, HostNotFound)),
            _action("POST", f"{vm}/restore-host-files", self.restore_host_files, (*_VM, *_COPIES)),
            _action("POST", f"{vm}/snapshots", self.create, (*_VM, NameInvalid, SnapshotExists)),
            _action("POST", f"{one}/revert", self.revert, _SNAPSHOT),
            _action("POST", f"{one}/clone", self.clone, (*_SNAPSHOT, NameInvalid, VmExists)),
            _action("POST", f"{vm}/clone", self.clone_vm, (*_VM, NameInvalid, VmExists)),
            _action("POST", f"{one}/ungroup", self.ungroup, (*_SNAPSHOT, SnapshotProtected)),
            _action("DELETE", one, self.delete, (*_SNAPSHOT, SnapshotProtected)),
        ]

    async def sync(self, call: Call, vm: str, query: WaitQuery) -> Reply[Operation]:
        """Read a VM's facts and host files from its host now."""
        return await self._start(call, "vm-sync", sync.Wanted(), _on_vm(call, vm), query)

    async def backup_host_files(self, call: Call, vm: str, query: WaitQuery, body: BackupHostFiles) -> Reply[Operation]:
        """Freeze a VM's host files for outside owners: all types for all owners, or nothing.

        Of a VM that runs the copies from when it last stopped are taken; the result's `source` says so.
        """
        owners = list(dict.fromkeys(body.owners))
        if not 1 <= len(owners) <= _OWNERS_LIMIT:
            raise InvalidRequest(where="body.owners", reason=f"expected 1 to {_OWNERS_LIMIT} owners")
        wanted = backup_host_files.Wanted(owners=owners)
        return await self._start(call, "vm-backup-host-files", wanted, _on_vm(call, vm), query)

    async def place(self, call: Call, vm: str, query: WaitQuery, body: PlaceVm) -> Reply[Operation]:
        """Move a VM that is shut off to another host on the same storage, with its NVRAM and TPM state.

        Its definition is taken away where it was. Where that host cannot be reached, the copies that are held are
        used if the VM has not run since, or with `force`; the result's `left_on` then names that host. A VM that
        several hosts define is settled on the one that is named, which must be one of them.
        """
        wanted = place.Wanted(host=body.host, force=body.force)
        return await self._start(call, "vm-place", wanted, _to_host(call, vm, body.host), query)

    async def restore_host_files(
        self, call: Call, vm: str, query: WaitQuery, body: RestoreHostFiles
    ) -> Reply[Operation]:
        """Put NVRAM or TPM state back on the host of a VM that is shut off, all chosen types or none.

        Without `types` what the host lacks is put back; with them what is there is replaced, and kept as backup
        files whose owner is the operation (the result's `kept_as`).
        """
        wanted = msgspec.convert(msgspec.to_builtins(body), restore_host_files.Wanted)
        return await self._start(call, "vm-restore-host-files", wanted, _with_copies(call, vm, body), query)

    async def create(self, call: Call, vm: str, query: WaitQuery, body: CreateSnapshot) -> Reply[Operation]:
        """Take a snapshot of a VM that is shut off: all its disks, NVRAM and TPM state at one moment."""
        if body.name is not None:
            names.check_text("Snapshot", body.name)
        names.check_description(body.description)
        names.check_labels(body.labels)
        wanted = msgspec.convert(msgspec.to_builtins(body), snapshot_create.Wanted)
        known = None if body.uuid is None else await self._engine.db.run(_made_before, vm, wanted)
        if known is not None:
            return await self._answer(known, query)
        return await self._start(call, "snapshot-create", wanted, _on_vm_with_disks(call, vm, wanted), query)

    async def revert(self, call: Call, id: UUID, query: WaitQuery, body: RevertSnapshot) -> Reply[Operation]:
        """Put a VM that is shut off back on a snapshot, keeping its present state as an undo point.

        With `volumes` only these disks go back; host files and the VM's place in the tree stay as they are.
        """
        wanted = revert.Wanted(snapshot=id, undo_point=body.undo_point, volumes=body.volumes)

        def check(snapshot: Snapshot) -> None:
            if snapshot.state not in {"ready", "reverting"}:
                raise SnapshotBusy(snapshot=id, state=snapshot.state)
            if body.volumes is not None:
                _check_targets("body.volumes", body.volumes, {volume.target for volume in snapshot.volumes})
                if not body.volumes:
                    raise InvalidRequest(where="body.volumes", reason="expected at least one disk, or null for all")

        return await self._start(call, "snapshot-revert", wanted, _on_snapshot(call, id, check), query)

    async def clone(self, call: Call, id: UUID, query: WaitQuery, body: CloneSnapshot) -> Reply[Operation]:
        """Make new VMs of a snapshot, each with an identity of its own; the VM that it is of may run meanwhile.

        Each is made whole or not at all. The same names again: the same clones. Where some of several fail the
        operation fails, and its error's `clones` and `failed` say which is which.
        """
        wanted = clone.Wanted(snapshot=id, targets=_targets(body), mode=body.mode, tpm=body.tpm)
        return await self._start(call, "snapshot-clone", wanted, _on_snapshot(call, id, _whole), query)

    async def clone_vm(self, call: Call, vm: str, query: WaitQuery, body: CloneSnapshot) -> Reply[Operation]:
        """Make new VMs of a VM that is shut off as it stands: an ordinary snapshot is taken first, and stays."""
        wanted = clone.WantedOfVm(targets=_targets(body), mode=body.mode, tpm=body.tpm)
        return await self._start(call, "vm-clone", wanted, _on_vm(call, vm), query)

    async def ungroup(self, call: Call, id: UUID, query: WaitQuery) -> Reply[Operation]:
        """Give up a snapshot's host files; its volume snapshots stay usable."""
        wanted = ungroup.Wanted(snapshot=id)
        return await self._start(call, "snapshot-ungroup", wanted, _on_snapshot(call, id, _deletable), query)

    async def delete(self, call: Call, id: UUID, query: WaitQuery) -> Reply[Operation]:
        """Delete a snapshot: merge its frozen files away, then remove it with its backup files.

        Asked for again while it waits for its VM to stop, it is the same operation.
        """
        wanted = snapshot_delete.Wanted(snapshot=id)
        return await self._start(call, "snapshot-delete", wanted, _on_snapshot(call, id, _deletable), query)

    async def _start(self, call: Call, kind: str, wanted: Request, place: Place, query: WaitQuery) -> Reply[Operation]:
        operation = await self._engine.submit(kind, wanted, place, call.idempotency_key)
        return await self._answer(operation, query)

    async def _answer(self, operation: Operation, query: WaitQuery) -> Reply[Operation]:
        if query.wait:
            operation = await self._engine.wait(operation.uuid, query.wait)
        return Reply(operation, headers={"Location": f"/v1/operations/{operation.uuid}"})


def _action(method: str, path: str, handler: Any, errors: tuple[Any, ...]) -> Route:
    return route(
        method,
        path,
        handler,
        status=202,
        role="operator",
        headers=(IDEMPOTENCY_KEY, IF_MATCH),
        answer_headers=(LOCATION,),
        errors=errors,
    )


def _on_vm(call: Call, text: str) -> Place:
    def place() -> tuple[UUID, str]:
        vm = vms.resolve(text)
        call.require_match(f"VM {text}", etag.of(msgspec.json.encode(vms.get(vm))))
        return vm, vms.host_of(vm)

    return place


def _to_host(call: Call, text: str, host: str) -> Place:
    def there() -> tuple[UUID | None, str | None]:
        vm = vms.resolve(text)
        call.require_match(f"VM {text}", etag.of(msgspec.json.encode(vms.get(vm))))
        hosts.get(host)
        defined = vms.defined_on(vm)
        if len(defined) > 1 and host not in defined:
            raise VmConflict(vm=text, hosts=", ".join(defined))
        return vm, host

    return there


def _with_copies(call: Call, text: str, body: RestoreHostFiles) -> Place:
    def place() -> tuple[UUID | None, str | None]:
        if body.snapshot is not None and body.backup_file is not None:
            raise InvalidRequest(where="body", reason="expected a snapshot or a backup file, not both")
        if body.types is not None and len(set(body.types)) != max(1, len(body.types)):
            raise InvalidRequest(where="body.types", reason="expected each type once, or null for those that are lost")
        if body.snapshot is not None:
            snapshots.get(body.snapshot)
        if body.backup_file is not None and backup_files.get(body.backup_file).type not in (
            body.types or HOST_FILE_TYPES
        ):
            raise InvalidRequest(where="body.types", reason="the backup file is of another type")
        return _on_vm(call, text)()

    return place


def _on_vm_with_disks(call: Call, text: str, wanted: snapshot_create.Wanted) -> Place:
    def place() -> tuple[UUID | None, str | None]:
        vm, host = _on_vm(call, text)()
        disks = {disk.target for disk in vms.get(vms.resolve(text)).disks}
        _check_targets("body.exclude", wanted.exclude, disks)
        return vm, host

    return place


def _on_snapshot(call: Call, id: UUID, check: Any) -> Place:
    def place() -> tuple[UUID, str]:
        snapshot = snapshots.get(id)
        call.require_match(f"Snapshot {id}", etag.of(msgspec.json.encode(snapshot)))
        check(snapshot)
        return snapshot.vm, vms.host_of(snapshot.vm)

    return place


def _deletable(snapshot: Snapshot) -> None:
    """Refuse what is protected or not whole yet. One that is being deleted is let through: it will be gone then."""
    if snapshot.protected:
        raise SnapshotProtected(snapshot=snapshot.uuid)
    if snapshot.state == "creating":
        raise SnapshotBusy(snapshot=snapshot.uuid, state=snapshot.state)


def _whole(snapshot: Snapshot) -> None:
    if snapshot.state not in {"ready", "reverting"}:
        raise SnapshotBusy(snapshot=snapshot.uuid, state=snapshot.state)


def _targets(body: CloneSnapshot) -> list[clone.Target]:
    """Return the clones that are asked for, by checked and distinct names."""
    if not 1 <= len(body.names) <= _CLONES_LIMIT:
        raise InvalidRequest(where="body.names", reason=f"expected 1 to {_CLONES_LIMIT} names")
    for name in body.names:
        names.check_vm(name)
    if body.uuids and len(body.uuids) != len(body.names):
        raise InvalidRequest(where="body.uuids", reason="expected one for each name, or none")
    for where, given in (("body.names", body.names), ("body.uuids", body.uuids)):
        if len(set(given)) < len(given):
            raise InvalidRequest(where=where, reason="expected each once")
    uuids: list[UUID | None] = [*body.uuids] or [None] * len(body.names)
    return [clone.Target(name=name, uuid=uuid) for name, uuid in zip(body.names, uuids, strict=True)]


def _check_targets(where: str, given: list[str], known: set[str]) -> None:
    if unknown := sorted(set(given) - known):
        has = ", ".join(sorted(known)) or "none"
        raise InvalidRequest(where=where, reason=f"there is no disk {', '.join(unknown)}; the disks are: {has}")


def _made_before(text: str, wanted: snapshot_create.Wanted) -> Operation | None:
    """Return the operation of the same request with the same UUID, unless it failed. Raises SnapshotExists."""
    vm, asked = vms.resolve(text), msgspec.to_builtins(wanted)
    for one in operations.page(1000, vm=vm, kind="snapshot-create").items:
        if one.state not in {"failed", "cancelled"} and operations.job(one.uuid).request == asked:
            return one
    try:
        snapshots.get(wanted.uuid or vm)
    except SnapshotNotFound:
        return None
    raise SnapshotExists(snapshot=wanted.uuid)
