"""Import a snapshot: make the VM of an archive that a caller sends, standing on the snapshot that it holds.

Everything is taken in under hidden names and checked to the last hash; only then is the group written and the host told
to commit. A stream cannot be asked for again: what breaks it before that ends the operation with nothing left.
"""

from collections.abc import AsyncIterator, Awaitable
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

import msgspec

from agent.client import AgentUnreachable
from agent.web.errors import Error
from agent.wire.base import Request
from agent.wire.host_file import FORMATS, HostFileType
from agent.wire.plan import Plan, PlannedStep
from agent.wire.transaction import ComingImage, HostFileRef, ImportRequest, Transaction
from controller.archive.manifest import Image, Manifest
from controller.archive.unpack import Unpacking
from controller.db import write
from controller.errors import CaptureCorrupt, OperationCancelled, TransferBroken
from controller.operations import ending, leftovers, sync, transaction
from controller.operations.ending import Ending
from controller.operations.job import CONCLUDED, Job
from controller.store import vms
from controller.store.contents import Held
from controller.store.groups import NewGroup

T = TypeVar("T")

_PROGRESS_BYTES = 64 << 20


class Wanted(Request, kw_only=True, frozen=True):
    """What the caller asked for, with what stands at the beginning of the archive: the images follow on the stream.

    ``renew``: the VM gets the new identity ``vm`` and ``vm_name``, else these are the archive's.
    """

    manifest: Manifest
    domain_xml: str
    vm: UUID
    vm_name: str
    name: str
    renew: bool = False
    directory: str | None = None


async def run(job: Job) -> dict[str, Any]:
    """Import it; the result names the snapshot and its VM."""
    result = job.recalled(CONCLUDED, dict[str, Any])
    if result is None:
        result = await _import(job, job.wanted(Wanted))
    return {**result, "remarks": await sync.refreshed(job)}


async def plan(job: Job) -> Plan:
    """Plan it: what the host would make of the archive, if the rest of it is as its beginning says."""
    wanted = job.wanted(Wanted)
    told = await transaction.plan(job, job.id_for("transaction"), _request(job, wanted, _ending(job)))
    steps = [
        PlannedStep(action="add", name=f"add VM {wanted.vm_name}"),
        PlannedStep(action="add", name=f"add snapshot {wanted.name}"),
    ]
    return msgspec.structs.replace(told, steps=[*told.steps, *([] if told.refusals else steps)])


def _ending(job: Job) -> Ending:
    return Ending(kind="snapshot", transaction=job.id_for("transaction"), snapshot=job.id_for("snapshot"))


async def _import(job: Job, wanted: Wanted) -> dict[str, Any]:
    end = _ending(job)
    job.on_failure(end.transaction, partial(job.db.run, _undone, end, wanted.vm))
    if job.is_sealed(end.transaction):  # the archive was whole and the group is written: only its end is not known
        view = await transaction.standing(job, end.transaction)
    else:
        unpacking = await _taken(job, end)
        await leftovers.settle(job)
        await job.step("prepare", end.promised())
        view = await transaction.prepare(job, end.transaction, _request(job, wanted, end))
    async with transaction.leased(job, end.transaction):
        if not job.is_sealed(end.transaction):
            view = await _receive(job, unpacking, view)
            held = await _held(job, unpacking)
            await job.db.run(_record, job, _group(job, wanted, end, view, held), wanted.vm_name)
        view = await transaction.commit(job, view)
    result = {
        "snapshot": str(end.snapshot),
        "vm": str(wanted.vm),
        "name": wanted.vm_name,
        "disks": [{"target": one.target, "path": one.overlay, "stands_on": one.path} for one in view.volumes],
        "left_out": list(view.excluded),
    }
    await job.db.run(ending.concluded, job.uuid, end, view, result)
    job.recorded(end.transaction, result)
    return result


async def _taken(job: Job, end: Ending) -> Unpacking:
    try:
        return await job.streams.archives.take(job.uuid)
    except TransferBroken:
        await transaction.abort(job, end.transaction)  # of a controller that died while it read
        raise


def _request(job: Job, wanted: Wanted, end: Ending) -> ImportRequest:
    manifest = wanted.manifest
    return ImportRequest(
        vm=wanted.vm,
        name=wanted.vm_name,
        snapshot=end.snapshot,
        domain_xml=wanted.domain_xml,
        images=[
            ComingImage(
                target=disk.target,
                position=position,
                size_bytes=image.size_bytes,
                virtual_size_bytes=image.virtual_size_bytes,
            )
            for disk in manifest.disks
            for position, image in enumerate(disk.images)
        ],
        host_files=[
            HostFileRef(type=type_, format=FORMATS[type_], size_bytes=one.size_bytes, sha256=one.sha256)
            for type_, one in manifest.host_files.items()
        ],
        renew=wanted.renew,
        directory=wanted.directory,
        lease_s=job.patience.lease_s,
    )


async def _receive(job: Job, unpacking: Unpacking, view: Transaction) -> Transaction:
    """Hand everything to the host as it comes, and hold that it is what the archive's hashes say."""
    await job.step("receive")
    for type_, data in unpacking.host_files().items():
        await transaction.reach(job, partial(job.client.upload, view.id, type_, data))
    manifest = unpacking.manifest
    places = {
        image.name: (disk.target, position) for disk in manifest.disks for position, image in enumerate(disk.images)
    }
    progress = _Progress(job, manifest)
    async for image, pieces in unpacking.images():
        target, position = places[image.name]
        counted = progress.over(pieces, image.size_bytes)
        came = await progress.told_rather(job.client.send_image(view.id, target, position, image.size_bytes, counted))
        _require_same(image, came.sha256, unpacking.digest(image))
    await unpacking.finish()
    return await transaction.reach(job, partial(job.client.transaction, view.id))


def _require_same(image: Image, found: str, expected: str) -> None:
    if found != expected:
        raise CaptureCorrupt(type=image.name, found=found, expected=expected)


class _Progress:
    """Shows how far the images are, and stops where that was asked for."""

    def __init__(self, job: Job, manifest: Manifest) -> None:
        self._job = job
        self._total = sum(image.size_bytes for image in manifest.images())
        self._done = self._told = 0
        self._checked = False
        self._failure: Error | None = None

    async def over(self, pieces: AsyncIterator[bytes], size_bytes: int) -> AsyncIterator[bytes]:
        """Give the pieces, and remember what went wrong with them: the call that sends them would tell it otherwise.

        After the last one the host reads the whole image to check it, which may take as long as sending it did. That
        is told before it has that piece: its answer ends this.
        """
        end = self._done + size_bytes
        try:
            if self._checked:
                await self._job.step("receive")
            async for piece in pieces:
                if self._job.cancelled:
                    raise OperationCancelled(operation=self._job.uuid)
                self._done += len(piece)
                if self._done - self._told >= _PROGRESS_BYTES:
                    self._told = self._done
                    await self._job.progress(self._done, self._total)
                if self._done == end:
                    await self._job.progress(self._done, self._total)
                    await self._job.step("check")
                    self._checked = True
                yield piece
        except Error as err:
            self._failure = err
            raise

    async def told_rather(self, sending: Awaitable[T]) -> T:
        """Return what ``sending`` returns, and raise what was wrong with the pieces rather than that they broke off."""
        try:
            return await sending
        except AgentUnreachable as err:
            raise (self._failure or err) from err


async def _held(job: Job, unpacking: Unpacking) -> dict[HostFileType, Held]:
    members = unpacking.manifest.host_files
    return {
        type_: (await transaction.packed(job, type_, data, members[type_].sha256), FORMATS[type_])
        for type_, data in unpacking.host_files().items()
    }


def _group(
    job: Job,
    wanted: Wanted,
    end: Ending,
    view: Transaction,
    held: dict[HostFileType, Held],
) -> NewGroup:
    origin = wanted.manifest.snapshot
    return NewGroup(
        uuid=end.snapshot,
        vm=wanted.vm,
        host=job.host,
        name=wanted.name,
        transaction=end.transaction,
        volumes=view.volumes,
        host_files_state=origin.host_files.state,
        host_files=held,
        expected=origin.host_files.expected,
        missing=origin.host_files.missing,
        reason=origin.host_files.reason,
        description=origin.description,
        labels=origin.labels,
        excluded=view.excluded,
        domain_xml=view.domain_xml,
        firmware=origin.firmware,
        tpm_secret=view.tpm_secret,
        created_at=origin.created_at,
        stands_alone=True,
    )


def _record(job: Job, group: NewGroup, vm_name: str) -> None:
    """Write the group as ``creating``, of a VM that no host shows yet."""
    with write():
        vms.announce(group.vm, vm_name, job.host)
        ending.recorded(job.uuid, group)


def _undone(end: Ending, vm: UUID) -> None:
    """Record that nothing came of it. A VM that was only announced is forgotten when its host is looked at next."""
    with write():
        ending.undone(end)
        vms.retract(vm)
