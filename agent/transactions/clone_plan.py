"""From a snapshot's facts and a request to the plan of a clone. Nothing here touches anything."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

from agent.errors import FrozenFileAltered, HostFileMissing, HostFileUnsupported
from agent.host.domain_xml import Domain
from agent.transactions.model import (
    AnyStep,
    ConvertImage,
    CreateOverlay,
    DefineDomain,
    PlaceHostFile,
    Plan,
    ReceiveHostFile,
    Room,
)
from agent.transactions.plan import overlay_path
from agent.transactions.room import require_room
from agent.wire.host_file import HostFileType
from agent.wire.transaction import CloneRequest, FrozenVolume, HostFileRef
from agent.wire.vm import Image


@dataclass(frozen=True)
class CloneFacts:
    """What the planner is told. ``domain`` and ``xml`` are the clone's own, ``dropped`` the disks that it lacks.

    ``frozen`` is the chain of each frozen file by target; ``new_bytes`` what the clone's file on it will take;
    ``models`` are present host files whose owner and label the clone's get. ``room`` is of each directory
    that files are made in.
    """

    transaction: UUID
    domain: Domain
    xml: str
    dropped: list[str]
    frozen: Mapping[str, list[Image]]
    new_bytes: Mapping[str, int]
    room: Room
    models: Mapping[HostFileType, Path] = field(default_factory=dict)
    reserve_bytes: int = 0


def clone_path(name: str, frozen: str, transaction: UUID, target: str) -> Path:
    """Name a clone's file for the clone, beside the frozen file that it is made of."""
    return Path(overlay_path(str(Path(frozen).parent / f"{name}.qcow2"), transaction, target))


def plan_clone(facts: CloneFacts, request: CloneRequest) -> Plan:
    """Plan a clone: its disks and host files staged, these put in place, and then the domain defined.

    Raises FrozenFileAltered, HostFileMissing (the snapshot lacks what the clone would start blank without),
    HostFileUnsupported, NoSpace.
    """
    images = [_image(facts, request, volume) for volume in request.volumes]
    receive = [
        receive_file(facts.transaction, ref, _path(facts.domain, ref.type), facts.models.get(ref.type))
        for ref in _wanted_files(facts, request)
    ]
    _check_space(facts, request, receive)
    place: list[AnyStep] = [
        PlaceHostFile(type=step.type, path=step.path, staged=step.staged, sha256=step.sha256) for step in receive
    ]
    define = DefineDomain(vm=request.vm, title=request.name, xml=facts.xml, files=[str(disk.path) for disk in images])
    return Plan(
        stage=[list(images)] if images else [],
        receive=receive,
        switch=[*([step] for step in place), [define]],
        excluded=facts.dropped,
    )


def _image(facts: CloneFacts, request: CloneRequest, volume: FrozenVolume) -> CreateOverlay | ConvertImage:
    top = facts.frozen[volume.target][0]
    if volume.fingerprint and volume.fingerprint != top.fingerprint:
        reason = f"it was written to after it was frozen (size:mtime is {top.fingerprint}, was {volume.fingerprint})"
        raise FrozenFileAltered(target=volume.target, path=volume.path, reason=reason)
    path = str(clone_path(request.name, top.path, facts.transaction, volume.target))
    if request.mode == "full":
        return ConvertImage(target=volume.target, path=path, source=top.path, size_bytes=facts.new_bytes[volume.target])
    return CreateOverlay(
        target=volume.target,
        path=path,
        backing=top.path,
        backing_format=top.format,
        size_bytes=top.virtual_size_bytes,
        like=top.path,
    )


def _wanted_files(facts: CloneFacts, request: CloneRequest) -> list[HostFileRef]:
    """Choose the host files that the clone gets; refuse one that would start blank without being asked to."""
    domain, held = facts.domain, {ref.type: ref for ref in request.host_files}
    wanted: list[HostFileType] = []
    if domain.nvram_refusal is not None:
        raise HostFileUnsupported(name=request.name, type="nvram", reason=domain.nvram_refusal)
    if domain.nvram is not None:
        wanted.append("nvram")
    if request.tpm == "copy" and domain.tpm_directory is not None:
        wanted.append("tpm")
    for type_ in wanted:
        if type_ not in held:
            way_out = "; ask for a new TPM instead (reset)" if type_ == "tpm" else ""
            reason = f"the snapshot does not hold it{way_out}"
            raise HostFileMissing(name=request.name, type=type_, path=str(_path(domain, type_)), reason=reason)
    return [held[type_] for type_ in wanted]


def _path(domain: Domain, type_: HostFileType) -> Path:
    path = domain.nvram if type_ == "nvram" else domain.tpm_directory
    assert path is not None  # noqa: S101 - only types with a path are wanted
    return path


def receive_file(transaction: UUID, ref: HostFileRef, path: Path, model: Path | None) -> ReceiveHostFile:
    """Plan to take in a host file of a domain that is not there yet, owned like ``model``."""
    return ReceiveHostFile(
        type=ref.type,
        format=ref.format,
        path=str(path),
        staged=str(path.parent / f".coldframe-{transaction}-{ref.type}"),
        size_bytes=ref.size_bytes,
        sha256=ref.sha256,
        like=str(model) if model else "",
    )


def _check_space(facts: CloneFacts, request: CloneRequest, receive: list[ReceiveHostFile]) -> None:
    wanted = [(Path(facts.frozen[one.target][0].path).parent, facts.new_bytes[one.target]) for one in request.volumes]
    wanted += [(Path(step.path).parent, step.size_bytes) for step in receive]
    require_room(wanted, facts.room, facts.reserve_bytes)
