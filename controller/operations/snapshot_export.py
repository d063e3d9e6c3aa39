"""Export a snapshot: write its archive to the caller who waits for it.

It takes its turn on the VM like any other work, so nothing merges or moves the frozen files meanwhile, and the host
locks them. The host's transaction is never committed: it holds the files still, and what was flattened goes when it is
aborted.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import Any
from uuid import UUID

from agent.wire.archive import SentImage
from agent.wire.base import Request, utc_now
from agent.wire.host_file import HostFileType
from agent.wire.plan import Plan
from agent.wire.transaction import ExportRequest, FrozenVolume
from controller.archive.manifest import (
    DOMAIN_XML,
    FORMAT,
    HOST_FILE_NAMES,
    VERSION,
    Disk,
    DisksMode,
    Image,
    Machine,
    Manifest,
    Origin,
    image_name,
)
from controller.archive.pack import member, pack
from controller.archive.transfers import Sink
from controller.db import read
from controller.errors import OperationCancelled, TransferBroken
from controller.operations import leftovers, transaction
from controller.operations.job import Job
from controller.store import backup_files, snapshots
from controller.store.snapshots import Group

#: How often progress is written down: a database takes more, and nobody reads it faster.
_PROGRESS_BYTES = 64 << 20


class Wanted(Request, kw_only=True, frozen=True):
    """What the caller asked for."""

    snapshot: UUID
    disks: DisksMode = "flat"


async def run(job: Job) -> dict[str, Any]:
    """Write it; the result says how many bytes the caller was given."""
    wanted, id_ = job.wanted(Wanted), job.id_for("transaction")
    try:
        sink = await job.streams.sinks.take(job.uuid)
    except TransferBroken:
        await transaction.abort(job, id_)  # of a controller that died while it wrote
        raise
    await leftovers.settle(job)
    group, small = await job.db.run(_read, wanted.snapshot)
    await job.step("prepare")
    view = await transaction.prepare(job, id_, _request(job, wanted, group))
    try:
        async with transaction.leased(job, id_):
            images = (await transaction.reach(job, partial(job.client.images, id_))).items
            await job.step("send")
            sent = await _send(job, id_, _manifest(wanted, group, images, small), small, sink)
    finally:
        await transaction.abort(job, view.id)
    await sink.finish()  # last: a caller who has the whole file finds nothing of it left on the host
    return {"snapshot": str(wanted.snapshot), "disks": wanted.disks, "archive_bytes": sent}


async def plan(job: Job) -> Plan:
    """Plan it: the files that the host would make to give them, and take away again."""
    wanted = job.wanted(Wanted)
    group, _ = await job.db.run(_read, wanted.snapshot)
    return await transaction.plan(job, job.id_for("transaction"), _request(job, wanted, group))


def _read(snapshot: UUID) -> tuple[Group, dict[str, bytes]]:
    """Return the snapshot, and the members that the records hold. Raises SnapshotBusy, SnapshotPartlyDeleted."""
    with read():
        group = snapshots.whole(snapshot)
        held: dict[HostFileType, bytes] = {one.type: backup_files.data(one.uuid) for one in group.backups}
    return group, {DOMAIN_XML: group.domain_xml.encode()} | {HOST_FILE_NAMES[t]: data for t, data in held.items()}


def _request(job: Job, wanted: Wanted, group: Group) -> ExportRequest:
    return ExportRequest(
        vm=group.snapshot.vm,
        name=group.snapshot.vm_name,
        snapshot=wanted.snapshot,
        volumes=[FrozenVolume(target=one.target, path=one.path, fingerprint=one.fingerprint) for one in group.volumes],
        flat=wanted.disks == "flat",
        lease_s=job.patience.lease_s,
    )


def _manifest(wanted: Wanted, group: Group, images: list[SentImage], small: dict[str, bytes]) -> Manifest:
    one = group.snapshot
    return Manifest(
        format=FORMAT,
        version=VERSION,
        created_at=utc_now(),
        disks_mode=wanted.disks,
        vm=Machine(uuid=one.vm, name=one.vm_name),
        snapshot=Origin(
            uuid=one.uuid,
            name=one.name,
            description=one.description,
            labels=one.labels,
            created_at=one.created_at,
            host_files=one.host_files,
            excluded=one.excluded,
            firmware=group.firmware,
            tpm_secret=group.tpm_secret,
        ),
        domain_xml=member(DOMAIN_XML, small[DOMAIN_XML]),
        host_files={type_: member(name, small[name]) for type_, name in HOST_FILE_NAMES.items() if name in small},
        disks=[
            Disk(
                target=target,
                images=[
                    Image(
                        name=image_name(target, image.position),
                        size_bytes=image.size_bytes,
                        virtual_size_bytes=image.virtual_size_bytes,
                    )
                    for image in images
                    if image.target == target
                ],
            )
            for target in dict.fromkeys(image.target for image in images)
        ],
    )


async def _send(job: Job, id_: UUID, manifest: Manifest, small: dict[str, bytes], sink: Sink) -> int:
    """Write the archive to the caller, who still waits for its end; return its size."""
    places = {
        image.name: (disk.target, position) for disk in manifest.disks for position, image in enumerate(disk.images)
    }
    total = sum(image.size_bytes for image in manifest.images())
    done = told = sent = 0

    async def give(image: Image) -> AsyncGenerator[bytes, None]:
        nonlocal done, told
        async with aclosing(job.client.read_image(id_, *places[image.name])) as pieces:
            async for piece in pieces:
                done += len(piece)
                if done - told >= _PROGRESS_BYTES:
                    told = done
                    await job.progress(done, total)
                yield piece

    async with aclosing(pack(manifest, small, give, job.host)) as archive:
        async for piece in archive:
            if job.cancelled:
                raise OperationCancelled(operation=job.uuid)
            await sink.write(piece)
            sent += len(piece)
    await job.progress(total, total)
    return sent
