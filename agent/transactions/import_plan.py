"""From what an archive holds to the plan of its import. Nothing here touches anything."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from agent.errors import HostFileNotFound
from agent.host import files, images
from agent.host.domain_xml import Domain
from agent.transactions.archive_steps import PlaceImage, ReceiveImage
from agent.transactions.clone_plan import receive_file
from agent.transactions.model import CreateOverlay, DefineDomain, PlaceHostFile, Plan, ReceiveHostFile, Room
from agent.transactions.plan import groups_of, overlay_path
from agent.transactions.room import require_room
from agent.wire.archive import image_name
from agent.wire.host_file import HostFileType
from agent.wire.transaction import ComingImage, HostFileRef, ImportRequest


@dataclass(frozen=True)
class ImportFacts:
    """What the planner is told. ``domain`` and ``xml`` are as they will be defined, ``dropped`` the disks it lacks.

    ``models`` are present host files whose owner and label the new ones get; ``room`` is that of every directory that
    files are made in.
    """

    transaction: UUID
    directory: Path
    domain: Domain
    xml: str
    dropped: list[str]
    models: Mapping[HostFileType, Path]
    room: Room
    reserve_bytes: int


def image_path(request: ImportRequest, directory: Path, transaction: UUID, image: ComingImage) -> str:
    """Name an image's place for good: one that nothing else has, known by the transaction's id as ours."""
    stem = str(directory / f"{request.name}.qcow2")
    return overlay_path(stem, transaction, f"{image.target}-{image.position}", directory)


def overlay_paths(request: ImportRequest, directory: Path, transaction: UUID) -> dict[str, Path]:
    """Name the top file of each disk, which the domain will write to."""
    stem = str(directory / f"{request.name}.qcow2")
    targets = [image.target for image in request.images if image.position == 0]
    return {target: Path(overlay_path(stem, transaction, target, directory)) for target in targets}


def plan_import(facts: ImportFacts, request: ImportRequest) -> Plan:
    """Plan an import: overlays made and everything else received, then all put in place and the domain defined.

    Raises HostFileNotFound (the archive holds a host file that the domain has no place for), NoSpace.
    """
    receive = [_host_file(facts, request, ref) for ref in request.host_files]
    incoming = [_image(facts, request, image) for image in request.images]
    overlays = [_overlay(facts, request, step) for step in incoming if step.position == 0]
    wanted = [(facts.directory, step.size_bytes) for step in incoming]
    wanted += [(facts.directory, images.overlay_bytes(step.size_bytes)) for step in overlays]
    wanted += [(Path(step.path).parent, step.size_bytes) for step in receive]
    require_room(wanted, facts.room, facts.reserve_bytes)
    placed = [
        PlaceImage(target=step.target, position=step.position, path=step.path, staged=step.staged) for step in incoming
    ]
    host_files = [
        PlaceHostFile(type=step.type, path=step.path, staged=step.staged, sha256=step.sha256) for step in receive
    ]
    define = DefineDomain(vm=request.vm, title=request.name, xml=facts.xml, files=[step.path for step in overlays])
    return Plan(
        stage=groups_of(overlays),
        receive=receive,
        receive_images=incoming,
        switch=groups_of(placed, *([step] for step in host_files), [define]),
        excluded=facts.dropped,
    )


def _image(facts: ImportFacts, request: ImportRequest, image: ComingImage) -> ReceiveImage:
    below = next(
        (one for one in request.images if (one.target, one.position) == (image.target, image.position + 1)), None
    )
    path = image_path(request, facts.directory, facts.transaction, image)
    return ReceiveImage(
        target=image.target,
        position=image.position,
        path=path,
        staged=str(files.staged_path(Path(path), str(facts.transaction))),
        backing=image_path(request, facts.directory, facts.transaction, below) if below else None,
        named=image_name(image.target, image.position + 1) if below else None,
        size_bytes=image.size_bytes,
        virtual_size_bytes=image.virtual_size_bytes,
        like=str(facts.directory),
    )


def _overlay(facts: ImportFacts, request: ImportRequest, frozen: ReceiveImage) -> CreateOverlay:
    return CreateOverlay(
        target=frozen.target,
        path=str(overlay_paths(request, facts.directory, facts.transaction)[frozen.target]),
        backing=frozen.path,
        backing_format="qcow2",
        size_bytes=frozen.virtual_size_bytes,
        like=str(facts.directory),
    )


def _host_file(facts: ImportFacts, request: ImportRequest, ref: HostFileRef) -> ReceiveHostFile:
    path = facts.domain.nvram if ref.type == "nvram" else facts.domain.tpm_directory
    if path is None:
        raise HostFileNotFound(name=request.name, type=ref.type)
    return receive_file(facts.transaction, ref, path, facts.models.get(ref.type))
