"""Making a domain of an archive: what must be known before it is planned, and how its steps are done and undone."""

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid5

from agent.errors import DirectoryRefused, HostFileUnsupported, ImageRefused, StorageFailed
from agent.host import files, host_files, qcow2, qemu_img
from agent.host.clone_xml import Identity, cloned, restored
from agent.host.domain_xml import Domain, parse
from agent.limits import Limits
from agent.transactions.archive_steps import PlaceImage, ReceiveImage
from agent.transactions.clone import disk_of, host_file_models, look_at_domains, require_free_paths, require_secret
from agent.transactions.import_plan import ImportFacts, overlay_paths, plan_import
from agent.transactions.model import Plan, Room
from agent.transactions.room import look_for_room
from agent.transactions.steps import Work, do, remove_image, undo
from agent.transactions.survey import Survey, require_free_names
from agent.wire.host_file import HostFiles
from agent.wire.transaction import ImportRequest
from agent.wire.vm import Disk, Image


@dataclass(frozen=True)
class ImportSurveyor:
    """One look around for one import."""

    transaction: UUID
    request: ImportRequest
    work: Work
    limits: Limits

    async def survey(self) -> Survey:
        """Look at everything that the request needs, and plan.

        Raises the Refused errors of agent.errors, NoSpace; HypervisorUnavailable where libvirt does not answer.
        """
        request = self.request
        taken_macs = await look_at_domains(self.work, request.name, request.vm)
        directory = await asyncio.to_thread(self._directory)
        xml, dropped = self._xml(directory, taken_macs)
        domain = parse(xml, self.limits.nvram_dir, self.limits.swtpm_dir)
        if domain.nvram_refusal is not None:
            raise HostFileUnsupported(name=request.name, type="nvram", reason=domain.nvram_refusal)
        await require_secret(self.work, domain)
        await asyncio.to_thread(require_free_paths, domain)
        facts = ImportFacts(
            transaction=self.transaction,
            directory=directory,
            domain=await asyncio.to_thread(host_files.settled, domain),
            xml=xml,
            dropped=dropped,
            models=await asyncio.to_thread(host_file_models, domain, self.limits.swtpm_dir),
            room=await asyncio.to_thread(_room, domain, directory),
            reserve_bytes=self.limits.reserve_bytes,
        )
        plan = plan_import(facts, request)
        await asyncio.to_thread(require_free_names, plan)
        return Survey(plan, domain, xml, _disks(plan), HostFiles(items=[], expected=domain.host_file_types), [])

    def _directory(self) -> Path:
        """Return where the images go, without links. Raises DirectoryRefused."""
        allowed = self.limits.allowed_image_dirs
        wanted = Path(self.request.directory) if self.request.directory else allowed[0]
        found = Path(os.path.realpath(wanted))
        listed = ", ".join(map(str, allowed))
        if not wanted.is_absolute() or not any(found.is_relative_to(one) for one in allowed):
            raise DirectoryRefused(path=str(wanted), reason="it lies outside those that are allowed", allowed=listed)
        if not found.is_dir():
            raise DirectoryRefused(path=str(wanted), reason="it does not exist", allowed=listed)
        return found

    def _xml(self, directory: Path, taken_macs: set[str]) -> tuple[str, list[str]]:
        """Return the domain's XML, and the disks that it lacks. The archive never says where NVRAM is written."""
        request = self.request
        source = parse(request.domain_xml, self.limits.nvram_dir, self.limits.swtpm_dir)
        keeps = not request.renew and source.nvram is not None and source.nvram.parent == self.limits.nvram_dir
        own = Identity(
            uuid=request.vm,
            name=request.name,
            genid=uuid5(request.vm, "generation"),
            nvram=source.nvram if keeps and source.nvram else self.limits.nvram_dir / f"{request.vm}_VARS.fd",
            disks=overlay_paths(request, directory, self.transaction),
            taken_macs=taken_macs,
        )
        return cloned(request.domain_xml, own) if request.renew else restored(request.domain_xml, own)


def _room(domain: Domain, directory: Path) -> Room:
    return look_for_room({directory, *(path.parent for path in (domain.nvram, domain.tpm_directory) if path)})


def _disks(plan: Plan) -> list[Disk]:
    """Describe the disks as they will be: each a frozen file, with its chain."""
    chains: dict[str, list[Image]] = {}
    for step in sorted(plan.receive_images, key=lambda one: one.position):
        image = Image(
            path=step.path,
            format="qcow2",
            virtual_size_bytes=step.virtual_size_bytes,
            allocated_bytes=step.size_bytes,
            backing=step.backing,
            backing_format="qcow2" if step.backing else None,
            fingerprint="",
        )
        chains.setdefault(step.target, []).append(image)
    return [disk_of(target, chain) for target, chain in chains.items()]


async def check_image(step: ReceiveImage, work: Work) -> None:
    """Hold that what arrived is an image whose tables agree with each other, before it is anybody's disk.

    Its header alone does not tell: QEMU would write over data where two clusters are said to be in one place. Raises
    ImageRefused, QemuImgFailed where it cannot be checked.
    """
    staged = Path(step.staged)
    await asyncio.to_thread(_judge, step, staged)
    found = await qemu_img.check(staged, alone=True, within=work.image_dirs)
    if found.errors:
        raise _refused(step, f"qemu-img check finds {found.errors} errors in it")


@do.register
async def _(step: ReceiveImage, work: Work) -> None:
    """Judge what was written, and stand it on its backing file by that file's name for good."""
    staged = Path(step.staged)
    await asyncio.to_thread(_judge, step, staged)
    # Where libvirt labels images itself, it does so at each start.
    await asyncio.to_thread(files.give_like_directory, staged, Path(step.like))
    if step.backing is not None:
        await qemu_img.rebase_unsafe(staged, Path(step.backing), within=work.image_dirs)
    await asyncio.to_thread(work.locks.take_image, step.target, staged)


@undo.register
async def _(step: ReceiveImage, work: Work) -> None:
    work.locks.release_image(Path(step.staged))
    await asyncio.to_thread(remove_image, Path(step.staged))


@do.register
async def _(step: PlaceImage, work: Work) -> None:
    del work
    await asyncio.to_thread(_place, Path(step.staged), Path(step.path))


@undo.register
async def _(step: PlaceImage, work: Work) -> None:
    del work
    await asyncio.to_thread(_take_back, Path(step.staged), Path(step.path))


def _judge(step: ReceiveImage, staged: Path) -> None:
    """Raise ImageRefused for an image that is not what an export of ours gives."""
    try:
        with files.storage("reading", staged):
            header = qcow2.read_header(staged)
    except qcow2.Qcow2Error as err:
        raise _refused(step, err.reason) from err
    if header.backing != step.named or (step.named is not None and header.backing_format != "qcow2"):
        found = f"{header.backing!r} ({header.backing_format})"
        raise _refused(step, f"its header names the backing file {found} where {step.named!r} belongs")
    if header.external_data or header.data_file is not None:
        raise _refused(step, "it keeps its data in an external data file")
    if header.corrupt or header.dirty or header.encryption or header.internal_snapshots:
        raise _refused(step, "it is marked corrupt or dirty, is encrypted, or holds internal snapshots")
    if header.virtual_size_bytes != step.virtual_size_bytes:
        reason = f"it shows a disk of {header.virtual_size_bytes} bytes where {step.virtual_size_bytes} belong"
        raise _refused(step, reason)


def _refused(step: ReceiveImage, reason: str) -> ImageRefused:
    return ImageRefused(target=step.target, path=f"image {step.position} of the archive", reason=reason)


def _place(staged: Path, path: Path) -> None:
    if not files.exists(staged):
        return  # done before
    if files.exists(path):
        raise StorageFailed(action="placing", path=str(path), reason="something has taken its name meanwhile")
    files.rename(staged, path)


def _take_back(staged: Path, path: Path) -> None:
    if files.exists(path) and not files.exists(staged):
        files.rename(path, staged)
