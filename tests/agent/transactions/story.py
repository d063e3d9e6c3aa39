"""Transactions told from the outside, as the controller drives them; also what a killed agent's process runs."""

import asyncio
import contextlib
import hashlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID, uuid4

import msgspec

from agent.errors import HypervisorRefused, StorageFailed
from agent.transactions.manager import Manager
from agent.transactions.transfers import Transfers
from agent.web.errors import Error
from agent.wire.archive import SentImage
from agent.wire.host_file import FORMATS, HostFileType
from agent.wire.transaction import (
    CloneRequest,
    ComingImage,
    DeleteRequest,
    DepartRequest,
    DoomedVolume,
    ExportRequest,
    FrozenVolume,
    HostFileRef,
    ImportRequest,
    PlaceRequest,
    RestoreRequest,
    RevertRequest,
    SnapshotRequest,
    Transaction,
)
from tests.agent.transactions.rig import VM, Rig, nvram, permall


async def chunks(data: bytes) -> AsyncIterator[bytes]:
    yield data


def change_everything(rig: Rig, pattern: int = 0x42) -> None:
    """Change every part of the domain as its guest would: the disks, the NVRAM, the TPM state."""
    for target in rig.targets:
        rig.write_disk(target, pattern)
    rig.nvram.write_bytes(nvram(bytes([pattern])))
    (rig.tpm / "tpm2" / "tpm2-00.permall").write_bytes(permall(bytes([pattern])))


def snapshot_request(**changes: object) -> SnapshotRequest:
    """Ask for a snapshot of the rig's domain."""
    values: dict[str, object] = {"vm": VM, "snapshot": uuid4(), **changes}
    return SnapshotRequest(**values)  # type: ignore[arg-type]  # a factory with overrides


async def snapshot(manager: Manager, **changes: object) -> tuple[Transaction, dict[HostFileType, bytes]]:
    """Take a snapshot whole; return it with the host files that were fetched before the commit."""
    id_ = uuid4()
    prepared = await manager.put(id_, snapshot_request(**changes))
    fetched = {item.type: manager.captured(id_, item.type).read_bytes() for item in prepared.host_files}
    return await manager.commit(id_), fetched


def revert_request(taken: Transaction, host_files: dict[HostFileType, bytes], **changes: object) -> RevertRequest:
    """Ask for everything that a snapshot holds, as the controller would."""
    values: dict[str, object] = {
        "vm": VM,
        "snapshot": taken.snapshot,
        "volumes": [FrozenVolume(target=v.target, path=v.path, fingerprint=v.fingerprint) for v in taken.volumes],
        "host_files": [ref_of(type_, data) for type_, data in host_files.items()],
        "undo": uuid4(),
        **changes,
    }
    return RevertRequest(**values)  # type: ignore[arg-type]  # a factory with overrides


async def revert(manager: Manager, request: RevertRequest, host_files: dict[HostFileType, bytes]) -> Transaction:
    """Go back whole."""
    id_ = uuid4()
    await manager.put(id_, request)
    for ref in request.host_files:
        await manager.upload(id_, ref.type, chunks(host_files[ref.type]))
    return await manager.commit(id_)


async def restore(manager: Manager, host_files: dict[HostFileType, bytes]) -> Transaction:
    """Put host files in place whole."""
    id_ = uuid4()
    await manager.put(id_, restore_request(host_files))
    for type_, data in host_files.items():
        await manager.upload(id_, type_, chunks(data))
    return await manager.commit(id_)


def restore_request(host_files: dict[HostFileType, bytes]) -> RestoreRequest:
    """Ask for host files to be put in place."""
    return RestoreRequest(vm=VM, host_files=[ref_of(type_, data) for type_, data in host_files.items()])


def ref_of(type_: HostFileType, data: bytes) -> HostFileRef:
    """Announce a host file."""
    sha256 = hashlib.sha256(data).hexdigest()
    return HostFileRef(type=type_, format=FORMATS[type_], size_bytes=len(data), sha256=sha256)


def delete_request(taken: Transaction, children: dict[str, list[str]]) -> DeleteRequest:
    """Ask to merge a snapshot's frozen files away; ``children`` by target."""
    assert taken.snapshot is not None
    volumes = [DoomedVolume(target=v.target, path=v.path, children=children.get(v.target, [])) for v in taken.volumes]
    return DeleteRequest(vm=taken.vm, snapshot=taken.snapshot, volumes=volumes)


async def delete(manager: Manager, request: DeleteRequest, id_: UUID | None = None) -> Transaction:
    """Delete, and wait until it has ended."""
    id_ = id_ or uuid4()
    await manager.put(id_, request)
    await manager.commit(id_)
    while manager.get(id_).ended_at is None:
        await asyncio.sleep(0)
    return manager.get(id_)


CLONE = UUID("a1d5a6cf-2f2c-4a53-9e4f-6d4b0f0e7c21")


def clone_request(taken: Transaction, host_files: dict[HostFileType, bytes], **changes: object) -> CloneRequest:
    """Ask for a linked clone with a copy of the TPM, as the controller would."""
    asked = revert_request(taken, host_files)
    values: dict[str, object] = {
        "vm": CLONE,
        "name": "copy of win11",
        "source": VM,
        "snapshot": taken.snapshot,
        "mode": "linked",
        "tpm": "copy",
        "domain_xml": taken.domain_xml,
        "volumes": asked.volumes,
        "host_files": asked.host_files,
        **changes,
    }
    return CloneRequest(**values)  # type: ignore[arg-type]  # a factory with overrides


async def clone(manager: Manager, request: CloneRequest, host_files: dict[HostFileType, bytes]) -> Transaction:
    """Make one clone whole."""
    id_ = uuid4()
    view = await manager.put(id_, request)
    for step in [name.removeprefix("receive ") for name in view.steps if name.startswith("receive ")]:
        type_: HostFileType = "nvram" if step == "nvram" else "tpm"
        await manager.upload(id_, type_, chunks(host_files[type_]))
    return await manager.commit(id_)


async def place(manager: Manager, request: PlaceRequest, host_files: dict[HostFileType, bytes]) -> Transaction:
    """Define a domain of another host, whole."""
    id_ = uuid4()
    view = await manager.put(id_, request)
    for type_ in {ref.type for ref in request.host_files} - set(view.kept):
        await manager.upload(id_, type_, chunks(host_files[type_]))
    return await manager.commit(id_)


async def depart(manager: Manager, **changes: object) -> Transaction:
    """Take the rig's domain away, whole."""
    id_ = uuid4()
    await manager.put(id_, DepartRequest(vm=VM, **changes))  # type: ignore[arg-type]  # overrides
    return await manager.commit(id_)


class Executioner:
    """A checkpoint that lists the points it hears of, and kills its own process at the chosen one.

    ``at`` is a position in the list, or a name. What is to happen at ``fails`` does not, with an input/output error.
    """

    def __init__(self, at: int | str | None = None) -> None:
        self.at = at
        self.fails: str | None = None
        self.points: list[str] = []

    def __call__(self, name: str) -> None:
        self.points.append(name)
        if self.at in (name, len(self.points) - 1):
            os.kill(os.getpid(), signal.SIGKILL)
        if name == self.fails:
            raise StorageFailed(action=name, path="/images", reason="the test says so")


def export_request(taken: Transaction, **changes: object) -> ExportRequest:
    """Ask for a snapshot's frozen files, flattened."""
    assert taken.snapshot is not None
    values: dict[str, object] = {
        "vm": VM,
        "name": "win11",
        "snapshot": taken.snapshot,
        "volumes": [FrozenVolume(target=v.target, path=v.path, fingerprint=v.fingerprint) for v in taken.volumes],
        **changes,
    }
    return ExportRequest(**values)  # type: ignore[arg-type]  # a factory with overrides


Images = dict[tuple[str, int], bytes]


async def export(manager: Manager, request: ExportRequest, id_: UUID | None = None) -> tuple[list[SentImage], Images]:
    """Export whole, as the controller does; return what was told of the images, and their bytes."""
    id_, transfers = id_ or uuid4(), Transfers(manager)
    await manager.put(id_, request)
    told = (await transfers.images(id_)).items
    found: Images = {}
    for image in told:
        _, pieces = await transfers.send(id_, image.target, image.position)
        found[image.target, image.position] = b"".join([piece async for piece in pieces])
    await manager.abort(id_)
    return told, found


def import_request(
    xml: str, told: list[SentImage], host_files: dict[HostFileType, bytes], **changes: object
) -> ImportRequest:
    """Ask for the domain of an archive to be put back."""
    values: dict[str, object] = {
        "vm": VM,
        "name": "win11",
        "snapshot": uuid4(),
        "domain_xml": xml,
        "images": [msgspec.convert(msgspec.to_builtins(one), ComingImage) for one in told],
        "host_files": [
            HostFileRef(type=t, format=FORMATS[t], size_bytes=len(d), sha256=hashlib.sha256(d).hexdigest())
            for t, d in host_files.items()
        ],
        **changes,
    }
    return ImportRequest(**values)  # type: ignore[arg-type]  # a factory with overrides


async def import_(
    manager: Manager, request: ImportRequest, images: Images, host_files: dict[HostFileType, bytes]
) -> Transaction:
    """Import whole."""
    id_, transfers = uuid4(), Transfers(manager)
    await manager.put(id_, request)
    for (target, position), data in images.items():
        await transfers.receive(id_, target, position, chunks(data))
    for type_, data in host_files.items():
        await manager.upload(id_, type_, chunks(data))
    return await manager.commit(id_)


async def run(manager: Manager, kind: str, request: bytes, host_files: dict[HostFileType, bytes]) -> None:
    """Run one transaction of a kind from beginning to end."""
    if kind == "snapshot":
        await snapshot(manager)
    elif kind in {"revert", "bare-revert"}:
        await revert(manager, msgspec.json.decode(request, type=RevertRequest), host_files)
    elif kind == "export":
        await export(manager, msgspec.json.decode(request, type=ExportRequest))
    elif kind == "import":
        asked, images = msgspec.json.decode(request, type=tuple[ImportRequest, dict[str, bytes]])
        parts = {name.rpartition(".")[::2]: data for name, data in images.items()}
        await import_(manager, asked, {(target, int(at)): data for (target, at), data in parts.items()}, host_files)
    elif kind == "restore":
        await restore(manager, host_files)
    elif kind == "place":
        await place(manager, msgspec.json.decode(request, type=PlaceRequest), host_files)
    elif kind == "depart":
        await depart(manager)
    elif kind in {"clone", "full-clone"}:
        await clone(manager, msgspec.json.decode(request, type=CloneRequest), host_files)
    else:
        await delete(manager, msgspec.json.decode(request, type=DeleteRequest))


def victim(root: Path, kind: str, at: int, request: bytes, host_files: dict[HostFileType, bytes]) -> None:
    """Run one transaction in this process and die at point ``at``."""
    asyncio.run(run(Rig(root).manager(Executioner(at)), kind, request, host_files))


#: The last step of a kind of transaction, which libvirt refuses; all others end with a definition.
REFUSED = {"depart": "undefine, and say so"}
#: The step of a deletion that fails once frozen files were set aside.
BROKEN = {"delete-mixed": "before commit vdb"}


def failing_victim(root: Path, kind: str, at: int, request: bytes, host_files: dict[HostFileType, bytes]) -> None:
    """Run one transaction whose last step fails, and die at point ``at`` of taking it back."""
    asyncio.run(fail(Rig(root), Executioner(at), kind, request, host_files))


async def fail(
    rig: Rig, checkpoint: Executioner, kind: str, request: bytes, host_files: dict[HostFileType, bytes]
) -> None:
    """Run one transaction whose last step fails."""
    checkpoint.fails = BROKEN.get(kind)
    if kind not in BROKEN:
        rig.hypervisor.failing.add(REFUSED.get(kind, "define"))
    rig.hypervisor.error = lambda: HypervisorRefused(call="define", reason="the test says so")
    with contextlib.suppress(Error):
        await run(rig.manager(checkpoint), kind, request, host_files)


def recovering_victim(root: Path, at: str) -> None:
    """Recover in this process and die at the point named ``at``."""
    asyncio.run(Rig(root).manager(Executioner(at)).recover())
