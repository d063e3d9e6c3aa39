"""What this host has: its domains with their disks, and the host files of each."""

import asyncio
import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

from agent.errors import DomainNotFound, DomainUnreadable, HostFileNotFound
from agent.host import domain_xml, images, nvram, tpm
from agent.host.domain_xml import DiskSource, Domain
from agent.host.firmware import FirmwareMemory
from agent.host.hypervisor import DomainState, Hypervisor
from agent.limits import Limits
from agent.transactions.expected import Expected
from agent.transactions.guard import Guards
from agent.web.errors import Error
from agent.wire.host_file import FORMATS, HostFile, HostFiles, HostFileType, MissingHostFile
from agent.wire.transaction import FirmwareFile
from agent.wire.vm import Disk, HostVm


class Inventory:
    """Everything is read at the moment of asking. Methods may raise HypervisorUnavailable and DomainNotFound."""

    def __init__(self, hypervisor: Hypervisor, guards: Guards, expected: Expected, limits: Limits) -> None:
        self._hypervisor = hypervisor
        self._guards = guards
        self._expected = expected
        self._limits = limits
        self._firmware = FirmwareMemory(limits.state_dir / "firmware")

    async def vms(self) -> list[HostVm]:
        """Return every domain. One that goes away meanwhile is left out; one that is unreadable says so."""
        found = []
        for state in await self._hypervisor.domains():
            try:
                found.append(await self._describe(state))
            except DomainNotFound:
                continue
        return sorted(found, key=lambda vm: vm.name)

    async def vm(self, uuid: UUID) -> HostVm:
        """Return one domain."""
        return await self._describe(await self._hypervisor.domain(uuid))

    async def domain(self, uuid: UUID) -> Domain:
        """Return what the definition says that the next start uses."""
        return self._parse(await self._hypervisor.inactive_xml(uuid))

    async def host_files(self, uuid: UUID) -> HostFiles:
        """Return the host files that a domain should have: sound ones, and by name what is wrong with the others."""
        return await asyncio.to_thread(self._host_files, await self.domain(uuid))

    async def read_host_file(self, uuid: UUID, type_: HostFileType) -> tuple[HostFile, bytes]:
        """Return a host file and its bytes as they travel.

        Raises HostFileNotFound where the domain has none of this type; HostFileMissing, HostFileDamaged and
        HostFileTooLarge as agent.host.nvram and agent.host.tpm do.
        """
        domain = await self.domain(uuid)
        return await asyncio.to_thread(self._read, domain, type_)

    async def shared_nvram(self, path: Path) -> list[str]:
        """Name the domains of this host that use one NVRAM file."""
        names = []
        for state in await self._hypervisor.domains():
            try:
                domain = await self.domain(state.uuid)
            except (DomainNotFound, DomainUnreadable):
                continue
            if domain.nvram == path:
                names.append(domain.name)
        return names

    async def note_host_files(self, uuid: UUID, forget: Sequence[HostFileType] = ()) -> None:
        """Remember that what is there and sound now must be there at the next start.

        What was expected before stays expected, also when it is gone now and after the domain was undefined;
        ``forget`` are types that were taken away on purpose.
        """
        domain = await self.domain(uuid)
        await asyncio.to_thread(self._note, domain, forget)

    async def note_firmware(self, uuid: UUID) -> None:
        """Remember which loader and template a running domain uses."""
        domain = self._parse(await self._hypervisor.live_xml(uuid))
        await asyncio.to_thread(self._firmware.remember, domain)

    async def firmware_files(self, uuid: UUID) -> list[FirmwareFile]:
        """Describe the firmware of a domain as far as it is known: all of it once it has run under this agent."""
        return await asyncio.to_thread(self._firmware.files_of, await self.domain(uuid))

    def _parse(self, xml: str) -> Domain:
        return domain_xml.parse(xml, self._limits.nvram_dir, self._limits.swtpm_dir)

    async def _describe(self, state: DomainState) -> HostVm:
        xml = await self._hypervisor.inactive_xml(state.uuid)
        domain = self._parse(xml)
        starting = state.state == "shut-off" and await asyncio.to_thread(self._guards.is_starting, state.uuid)
        return HostVm(
            uuid=state.uuid,
            name=state.name,
            state="starting" if starting else state.state,
            persistent=state.persistent,
            managed_save=state.managed_save,
            firmware=domain.firmware,
            tpm=domain.tpm,
            nvram=str(domain.nvram) if domain.nvram else None,
            disks=await asyncio.to_thread(lambda: [self._disk(source) for source in domain.disks]),
            guard=await asyncio.to_thread(self._guards.get, state.uuid),
            domain_xml=xml,
        )

    def _disk(self, source: DiskSource) -> Disk:
        disk = Disk(
            target=source.target,
            path=str(source.path) if source.path else None,
            format=source.format,
            excluded_because=source.excluded_because,
        )
        if source.path is None or source.excluded_because is not None:
            return disk
        try:
            chain = images.read_chain(
                source.target, source.path, source.format or "raw", self._limits.allowed_image_dirs, images.ANY_DEPTH
            )
        except Error as err:
            return Disk(**{name: getattr(disk, name) for name in ("target", "path", "format")}, problem=str(err))
        return Disk(
            target=disk.target,
            path=disk.path,
            format=disk.format,
            virtual_size_bytes=chain[0].virtual_size_bytes,
            chain_depth=len(chain),
            chain=chain,
        )

    def _host_files(self, domain: Domain) -> HostFiles:
        items: list[HostFile] = []
        missing: list[MissingHostFile] = []
        for type_ in domain.host_file_types:
            try:
                items.append(self._read(domain, type_)[0])
            except Error as err:
                missing.append(_missing(domain, type_, err))
        return HostFiles(items=items, expected=domain.host_file_types, missing=missing)

    def _read(self, domain: Domain, type_: HostFileType) -> tuple[HostFile, bytes]:
        path = domain.nvram if type_ == "nvram" else domain.tpm_directory
        if path is None:
            raise HostFileNotFound(name=domain.name, type=type_)
        read = nvram.read if type_ == "nvram" else tpm.pack
        data = read(path, domain.name, self._limits.host_file_limit_bytes)
        described = HostFile(
            type=type_,
            path=str(path),
            format=FORMATS[type_],
            size_bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            mtime=_mtime(path),
        )
        return described, data

    def _note(self, domain: Domain, forget: Sequence[HostFileType]) -> None:
        sound = {item.type for item in self._host_files(domain).items}
        known = self._expected.read(domain.uuid)
        nvram_path = known.nvram if known else None
        nvram_dir = known.nvram_default_dir if known else None
        tpm_dir = known.tpm_dir if known else None
        if "nvram" in sound:
            nvram_path = None if domain.nvram_default else domain.nvram
            nvram_dir = self._limits.nvram_dir if domain.nvram_default else None
        if "tpm" in sound:
            tpm_dir = domain.tpm_directory
        if "nvram" in forget:
            nvram_path = nvram_dir = None
        if "tpm" in forget:
            tpm_dir = None
        if known or sound:
            self._expected.write(domain.uuid, domain.name, nvram_path, nvram_dir, tpm_dir)


def _missing(domain: Domain, type_: HostFileType, err: Error) -> MissingHostFile:
    path = domain.nvram if type_ == "nvram" else domain.tpm_directory
    refusal = domain.nvram_refusal if type_ == "nvram" else domain.tpm_refusal
    code = "host-file-missing" if isinstance(err, HostFileNotFound) else err.code
    reason = refusal or str(err.facts.get("reason") or err)
    return MissingHostFile(type=type_, path=str(path or ""), code=code, reason=reason)


def _mtime(path: Path) -> datetime:
    """Give the time of the newest change: of a directory, of the newest file below it."""
    below = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else []
    newest = max((file.lstat().st_mtime for file in below), default=path.lstat().st_mtime)
    return datetime.fromtimestamp(newest, UTC)
