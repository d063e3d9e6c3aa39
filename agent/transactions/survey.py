"""What a transaction must know before it plans: asked of libvirt and read from files, under guard and locks.

Whatever forbids the work is raised here or by the planner, before anything was changed.
"""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from agent.errors import (
    DomainManagedSave,
    DomainPaused,
    DomainRunning,
    DomainTransient,
    FrozenFileAltered,
    HostFileShared,
    ImageRefused,
)
from agent.host import dependents, files, images
from agent.host.domain_xml import DiskSource, Domain, parse
from agent.host.hypervisor import DomainState
from agent.limits import Limits
from agent.transactions.journal import DomainRequest
from agent.transactions.model import ConvertImage, CreateOverlay, Doomed, Facts, HostFileRequest, Plan, flat
from agent.transactions.plan import plan_delete, plan_host_file, plan_revert, plan_snapshot
from agent.transactions.steps import Work
from agent.wire.host_file import HostFiles, HostFileType
from agent.wire.transaction import (
    DeleteRequest,
    DoomedVolume,
    FirmwareFile,
    FrozenVolume,
    RevertRequest,
    SnapshotRequest,
)
from agent.wire.vm import Disk, Image


@dataclass(frozen=True)
class Survey:
    """What was found: the plan, and what the transaction tells of the domain as it is now."""

    plan: Plan
    domain: Domain
    domain_xml: str
    disks: list[Disk]
    host_files: HostFiles
    firmware: list[FirmwareFile]


def staging_dir(limits: Limits, transaction: UUID) -> Path:
    """Return where a transaction keeps the host files that it captured."""
    return limits.state_dir / "transactions" / str(transaction)


@dataclass(frozen=True)
class Surveyor:
    """One look around for one transaction."""

    transaction: UUID
    request: DomainRequest
    work: Work
    limits: Limits

    async def survey(self) -> Survey:
        """Look at everything that the request needs, take the locks, and plan.

        Raises the Refused errors of agent.errors; HypervisorUnavailable where libvirt does not answer.
        """
        _require_at_rest(await self.work.hypervisor.domain(self.work.vm))
        xml = await self.work.hypervisor.inactive_xml(self.work.vm)
        domain = parse(xml, self.limits.nvram_dir, self.limits.swtpm_dir)
        if domain.tpm_directory is not None:
            await asyncio.to_thread(self.work.locks.take_tpm, domain.tpm_directory)
        disks = await asyncio.to_thread(self._read_disks, domain)
        host_files = await self._host_files(domain)
        plan = await asyncio.to_thread(self._plan, domain, disks, host_files)
        await asyncio.to_thread(require_free_names, plan)
        wants_firmware = isinstance(self.request, SnapshotRequest)
        firmware = await self.work.inventory.firmware_files(self.work.vm) if wants_firmware else []
        return Survey(plan, domain, xml, disks, host_files, firmware)

    def _left_alone(self, domain: Domain) -> set[str]:
        """Name the disks whose files are not looked at."""
        targets = {disk.target for disk in domain.disks}
        match self.request:
            case SnapshotRequest(exclude=exclude):
                return set(exclude)
            case RevertRequest(alone=False, excluded=excluded):
                return set(excluded)
            case RevertRequest(volumes=volumes) | DeleteRequest(volumes=volumes):
                return targets - {volume.target for volume in volumes}
            case HostFileRequest():
                return targets

    def _read_disks(self, domain: Domain) -> list[Disk]:
        left_alone = self._left_alone(domain)
        return [self._read_disk(source, source.target in left_alone) for source in domain.disks]

    def _read_disk(self, source: DiskSource, left_alone: bool) -> Disk:
        chain: list[Image] = []
        if source.path is not None and source.excluded_because is None and not left_alone:
            chain = self._read_chain(source.target, source.path, source.format or "raw")
        return Disk(
            target=source.target,
            path=str(source.path) if source.path else None,
            format=source.format,
            virtual_size_bytes=chain[0].virtual_size_bytes if chain else None,
            chain_depth=len(chain),
            excluded_because=source.excluded_because,
            chain=chain,
        )

    def _read_chain(self, target: str, path: Path, image_format: str) -> list[Image]:
        """Read and lock a chain: nobody may write to any of its files while the work goes on.

        A deletion adds no overlay, and makes chains shorter, so it has no depth limit; it writes to files of the
        chain itself, so only the top is locked.
        """
        deletes = isinstance(self.request, DeleteRequest)
        depth = images.ANY_DEPTH if deletes else self.limits.max_chain_depth
        chain = images.read_chain(target, path, image_format, self.limits.allowed_image_dirs, depth)
        for image in chain[:1] if deletes else chain:
            self.work.locks.take_image(target, Path(image.path))
        return chain

    async def _host_files(self, domain: Domain) -> HostFiles:
        request, inventory = self.request, self.work.inventory
        if isinstance(request, DeleteRequest) or (
            isinstance(request, SnapshotRequest) and request.host_files == "none"
        ):
            return HostFiles(items=[], expected=[])
        if domain.nvram is not None:
            others = [name for name in await inventory.shared_nvram(domain.nvram) if name != domain.name]
            if others:
                raise HostFileShared(name=domain.name, type="nvram", path=str(domain.nvram), others=", ".join(others))
        return await inventory.host_files(self.work.vm)

    def _plan(self, domain: Domain, disks: list[Disk], host_files: HostFiles) -> Plan:
        if isinstance(self.request, DeleteRequest):
            return plan_delete(domain.name, [self._doomed(volume, disks) for volume in self.request.volumes])
        frozen = self._frozen_chains(self.request.volumes) if isinstance(self.request, RevertRequest) else {}
        facts = self._facts(domain, disks, host_files, frozen)
        match self.request:
            case SnapshotRequest():
                return plan_snapshot(facts, self.request)
            case RevertRequest():
                return plan_revert(facts, self.request)
            case HostFileRequest():
                return plan_host_file(facts, self.request)

    def _facts(self, domain: Domain, disks: list[Disk], host_files: HostFiles, frozen: dict[str, list[Image]]) -> Facts:
        staging = staging_dir(self.limits, self.transaction)
        tops = [chain[0] for chain in (*(disk.chain for disk in disks), *frozen.values()) if chain]
        directories = {*(Path(top.path).parent for top in tops), staging.parent}
        return Facts(
            transaction=self.transaction,
            name=domain.name,
            disks=disks,
            staging=staging,
            host_file_paths=_host_file_paths(domain),
            present=host_files.items,
            missing=host_files.missing,
            frozen=frozen,
            free_bytes={directory: files.free_bytes(directory) for directory in directories},
            device={directory: directory.stat().st_dev for directory in directories},
            overlay_bytes={top.path: images.overlay_bytes(top.virtual_size_bytes) for top in tops},
            reserve_bytes=self.limits.reserve_bytes,
        )

    def _frozen_chains(self, volumes: list[FrozenVolume]) -> dict[str, list[Image]]:
        for volume in volumes:
            if not Path(volume.path).exists():
                raise FrozenFileAltered(target=volume.target, path=volume.path, reason="it is gone")
        return {volume.path: self._read_chain(volume.target, Path(volume.path), "qcow2") for volume in volumes}

    def _doomed(self, volume: DoomedVolume, disks: list[Disk]) -> Doomed:
        chained = [image.path for disk in disks for image in disk.chain if image.backing == volume.path]
        beside = [str(path) for path in dependents.standing_on(Path(volume.path))]
        return Doomed(
            target=volume.target,
            path=volume.path,
            frozen=self._image(volume.target, volume.path),
            children={path: self._image(volume.target, path) for path in volume.children},
            dependents=sorted({*chained, *beside}),
            is_top=any(disk.chain and disk.chain[0].path == volume.path for disk in disks),
        )

    def _image(self, target: str, path: str) -> Image | None:
        """Read one image, checked with all that is below it; None where the file is gone."""
        if not Path(path).exists():
            return None
        return images.read_chain(target, Path(path), "qcow2", self.limits.allowed_image_dirs, images.ANY_DEPTH)[0]


def require_free_names(plan: Plan) -> None:
    """Hold that what will be made is not there yet, so that undoing the plan can only remove what it made."""
    for step in flat([*plan.stage, plan.receive]):
        path = Path(step.path if isinstance(step, CreateOverlay | ConvertImage) else getattr(step, "staged", ""))
        if path.is_symlink() or path.exists():
            raise ImageRefused(target=step.name, path=str(path), reason="the name is taken already")


def _require_at_rest(state: DomainState) -> None:
    if not state.persistent:
        raise DomainTransient(name=state.name)
    if state.active:
        raise (DomainPaused if state.paused else DomainRunning)(name=state.name)
    if state.managed_save:
        raise DomainManagedSave(name=state.name)


def _host_file_paths(domain: Domain) -> dict[HostFileType, Path]:
    paths: dict[HostFileType, Path | None] = {"nvram": domain.nvram, "tpm": domain.tpm_directory}
    return {type_: path for type_, path in paths.items() if path is not None}
