"""Making a clone: what must be known before it is planned, and how its steps are done and undone."""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid5

from agent.errors import (
    DomainExists,
    DomainNameRefused,
    DomainNotFound,
    DomainRunning,
    DomainUnreadable,
    FrozenFileAltered,
    HostFileMissing,
    HostUnsuitable,
    StorageFailed,
)
from agent.host import files, host_files, images, qemu_img
from agent.host.clone_xml import Identity, cloned, mac_addresses
from agent.host.domain_xml import Domain, parse
from agent.host.tpm_archive import STATE_DIRECTORIES
from agent.limits import Limits
from agent.transactions.clone_plan import CloneFacts, clone_path, plan_clone
from agent.transactions.model import ConvertImage, DefineDomain, PlaceHostFile, Room
from agent.transactions.room import look_for_room
from agent.transactions.steps import Work, do, remove_image, sha256_of, undo
from agent.transactions.survey import Survey, require_free_names
from agent.wire.host_file import HostFiles, HostFileType
from agent.wire.transaction import CloneRequest, FrozenVolume
from agent.wire.vm import Disk, Image


@dataclass(frozen=True)
class CloneSurveyor:
    """One look around for one clone."""

    transaction: UUID
    request: CloneRequest
    work: Work
    limits: Limits

    async def survey(self) -> Survey:
        """Look at everything that the request needs, lock the frozen files, and plan.

        The source is not asked about: frozen files are read only, so it may run, or be gone. Raises the Refused
        errors of agent.errors, NoSpace; HypervisorUnavailable where libvirt does not answer.
        """
        request = self.request
        taken_macs = await look_at_domains(self.work, request.name, request.vm)
        source = parse(request.domain_xml, self.limits.nvram_dir, self.limits.swtpm_dir)
        depth = images.ANY_DEPTH if request.mode == "full" else self.limits.max_chain_depth
        chains = await asyncio.to_thread(frozen_chains, request.volumes, self.work, self.limits, depth)
        xml, dropped = cloned(request.domain_xml, self._identity(source, chains, taken_macs))
        domain = parse(xml, self.limits.nvram_dir, self.limits.swtpm_dir)
        new_bytes = {target: await self._new_bytes(chain) for target, chain in chains.items()}
        await asyncio.to_thread(require_free_paths, domain)
        room = await asyncio.to_thread(self._room, domain, chains)
        facts = CloneFacts(
            transaction=self.transaction,
            domain=await asyncio.to_thread(host_files.settled, domain),
            xml=xml,
            dropped=dropped,
            frozen=chains,
            new_bytes=new_bytes,
            models=await asyncio.to_thread(host_file_models, source, self.limits.swtpm_dir),
            room=room,
            reserve_bytes=self.limits.reserve_bytes,
        )
        plan = plan_clone(facts, request)
        await asyncio.to_thread(require_free_names, plan)
        disks = [disk_of(target, chain) for target, chain in chains.items()]
        expected = [step.type for step in plan.receive]
        return Survey(plan, domain, xml, disks, HostFiles(items=[], expected=expected), [])

    def _identity(self, source: Domain, chains: dict[str, list[Image]], taken_macs: set[str]) -> Identity:
        request = self.request
        beside = source.nvram.parent if source.nvram else self.limits.nvram_dir
        return Identity(
            uuid=request.vm,
            name=request.name,
            genid=uuid5(request.vm, "generation"),
            nvram=beside / f"{request.vm}_VARS.fd",
            disks={
                target: clone_path(request.name, chain[0].path, self.transaction, target)
                for target, chain in chains.items()
            },
            taken_macs=taken_macs,
        )

    async def _new_bytes(self, chain: list[Image]) -> int:
        if self.request.mode == "full":
            return (await qemu_img.measure(Path(chain[0].path), within=self.work.image_dirs)).required_bytes
        return images.overlay_bytes(chain[0].virtual_size_bytes)

    def _room(self, domain: Domain, chains: dict[str, list[Image]]) -> Room:
        """Look at each directory that the clone will have files in."""
        places = [Path(chain[0].path) for chain in chains.values()]
        places += [path for path in (domain.nvram, domain.tpm_directory) if path is not None]
        return look_for_room({path.parent for path in places})


async def look_at_domains(work: Work, name: str, vm: UUID) -> set[str]:
    """Refuse a name or UUID that is taken; return the network addresses that are."""
    taken: set[str] = set()
    for other in await work.hypervisor.domains():
        if other.name == name or other.uuid == vm:
            raise DomainExists(name=other.name, vm=other.uuid)
        try:
            taken |= mac_addresses(await work.hypervisor.inactive_xml(other.uuid))
        except (DomainNotFound, DomainUnreadable):
            continue  # undefined since it was listed, or nothing that a network could know
    return taken


async def require_secret(work: Work, domain: Domain) -> None:
    """Refuse a domain whose TPM state is encrypted with what this host's libvirt does not have (HostUnsuitable)."""
    if domain.tpm_secret is not None and not await work.hypervisor.has_secret(domain.tpm_secret):
        reason = "its TPM state is encrypted with it, and could not be read"
        raise HostUnsuitable(name=domain.name, what=f"the libvirt secret {domain.tpm_secret}", reason=reason)


def frozen_chains(volumes: list[FrozenVolume], work: Work, limits: Limits, depth: int) -> dict[str, list[Image]]:
    """Read and lock the frozen files with what is below: nobody may write to them while they are copied."""
    chains = {}
    for volume in volumes:
        if not Path(volume.path).exists():
            raise FrozenFileAltered(target=volume.target, path=volume.path, reason="it is gone")
        chain = images.read_chain(volume.target, Path(volume.path), "qcow2", limits.allowed_image_dirs, depth)
        chains[volume.target] = chain
        for image in chain:
            work.locks.take_image(volume.target, Path(image.path))
    return chains


def disk_of(target: str, chain: list[Image]) -> Disk:
    """Describe a new domain's disk by what its top file will stand on."""
    top = chain[0]
    return Disk(
        target=target,
        path=top.path,
        format=top.format,
        virtual_size_bytes=top.virtual_size_bytes,
        chain_depth=len(chain),
        chain=chain,
    )


def require_free_paths(domain: Domain) -> None:
    """Refuse a place where an earlier domain has left firmware state: a new one must not start with that.

    libvirt's directory of TPMs may be missing: it is made with the first one of a host.
    """
    for path in (domain.nvram, domain.tpm_directory):
        if path is not None and files.exists(files.settled(path)):
            reason = f"{path} exists already, left by an earlier domain; move it away or choose another name"
            raise DomainNameRefused(name=domain.name, reason=reason)
        if path is not None and not path.parent.is_dir() and path != domain.tpm_directory:
            raise StorageFailed(action="looking for", path=str(path.parent), reason="No such directory")


def host_file_models(source: Domain, swtpm_dir: Path) -> dict[HostFileType, Path]:
    """Find host files whose owner, mode and label are right: the source's own, for a TPM else any other one."""
    models: dict[HostFileType, Path] = {}
    if source.nvram is not None and _holds("nvram", source.nvram):
        models["nvram"] = source.nvram
    own = source.tpm_directory
    found = own if own is not None and _holds("tpm", own) else model_among("tpm", swtpm_dir)
    if found is not None:
        models["tpm"] = found
    return {type_: files.settled(path) for type_, path in models.items()}


def model_among(type_: HostFileType, directory: Path) -> Path | None:
    """Find a host file of any domain in libvirt's directory of them, whose owner, mode and label are right."""
    others = sorted(directory.iterdir()) if directory.is_dir() else []
    return next((path for path in others if not path.name.startswith(".") and _holds(type_, path)), None)


def _holds(type_: HostFileType, path: Path) -> bool:
    return path.is_file() if type_ == "nvram" else any((path / state).is_dir() for state in STATE_DIRECTORIES)


@do.register
async def _(step: ConvertImage, work: Work) -> None:
    path, source = Path(step.path), Path(step.source)

    def hear(percent: float) -> None:
        work.on_bytes(step.name, int(step.size_bytes * percent / 100))

    await asyncio.to_thread(work.locks.require_same, step.target, source)
    await qemu_img.convert(source, "qcow2", path, "qcow2", hear, within=work.image_dirs, like=source)
    await asyncio.to_thread(work.locks.take_image, step.target, path)
    work.on_bytes(step.name, step.size_bytes)


@undo.register
async def _(step: ConvertImage, work: Work) -> None:
    work.locks.release_image(Path(step.path))
    await asyncio.to_thread(remove_image, Path(step.path))


@do.register
async def _(step: PlaceHostFile, work: Work) -> None:
    await asyncio.to_thread(_place, step, work)


@undo.register
async def _(step: PlaceHostFile, work: Work) -> None:
    await asyncio.to_thread(_take_back, step, work)


def _place(step: PlaceHostFile, work: Work) -> None:
    path, staged = Path(step.path), Path(step.staged)
    if not files.exists(staged):
        if not _is_ours(step, work):
            reason = "what was staged for it is gone"
            raise HostFileMissing(name=work.name, type=step.type, path=step.path, reason=reason)
        return
    if files.exists(path):
        raise StorageFailed(action="placing", path=step.path, reason="something has taken its name meanwhile")
    if step.type == "tpm":
        work.locks.take_tpm(staged)
    files.rename(staged, path)


def _take_back(step: PlaceHostFile, work: Work) -> None:
    path, staged = Path(step.path), Path(step.staged)
    if not files.exists(staged) and _is_ours(step, work):
        files.rename(path, staged)


def _is_ours(step: PlaceHostFile, work: Work) -> bool:
    return sha256_of(step.type, Path(step.path), work.host_file_limit_bytes) == step.sha256


@do.register
async def _(step: DefineDomain, work: Work) -> None:
    if not await _is_defined(step, work):
        await work.hypervisor.define(step.xml)


@undo.register
async def _(step: DefineDomain, work: Work) -> None:
    try:
        defined = await _is_defined(step, work)
    except DomainExists:
        return  # somebody else's
    if not defined:
        return
    if (await work.hypervisor.domain(step.vm)).active:
        raise DomainRunning(name=step.title)
    await work.hypervisor.undefine(step.vm)


async def _is_defined(step: DefineDomain, work: Work) -> bool:
    """Tell whether the clone is there. Raises DomainExists for a domain of its UUID with other disks."""
    try:
        found = parse(await work.hypervisor.inactive_xml(step.vm), work.nvram_dir, work.swtpm_dir)
    except DomainNotFound:
        return False
    if not {str(disk.path) for disk in found.disks} >= set(step.files):
        raise DomainExists(name=found.name, vm=step.vm)
    return True
