"""What this host has: its domains with their disks and host files, put together from libvirt and the files."""

import asyncio
import logging
from collections.abc import Collection
from pathlib import Path
from uuid import UUID
from weakref import WeakValueDictionary

import msgspec

from agent.errors import DomainNotFound, HypervisorTimeout
from agent.host import files, host_files, images, neighbours
from agent.host.domain_xml import DiskSource, Domain, parse
from agent.host.firmware import Firmware
from agent.host.hypervisor import DomainState
from agent.host.neighbours import Neighbour
from agent.host.ports import Definitions, KeptLists, StartMarks
from agent.limits import Limits
from agent.web.errors import Error
from agent.web.log import kv
from agent.wire.host_file import HostFile, HostFiles, HostFileType
from agent.wire.transaction import FirmwareFile
from agent.wire.vm import Disk, Guard, HostVm, VmState

#: For each domain of a listing, after libvirt did not answer for the host as a whole: asked at once, so this is
#: what such a listing takes on top of the deadline.
_BRIEF_S = 2.0

log = logging.getLogger(__name__)


class Inventory:
    """The domains of this host. Every method may raise HypervisorUnavailable, those about one DomainNotFound."""

    def __init__(self, hypervisor: Definitions, guards: StartMarks, expected: KeptLists, limits: Limits) -> None:
        self._hypervisor = hypervisor
        self._guards = guards
        self._expected = expected
        self._limits = limits
        self._firmware = Firmware(limits.state_dir)
        self._last: dict[UUID, HostVm] = {}
        self._noting: WeakValueDictionary[UUID, asyncio.Lock] = WeakValueDictionary()

    async def vms(self) -> list[HostVm]:
        """Return every domain, by name. One that cannot be read is listed with its ``problem``.

        libvirt lists nothing while it holds one domain's lock for long, as during a hook that sleeps. Then the
        domains last seen are asked for one by one; one that does not answer is shown as it was, state unknown.
        """
        try:
            states = await self._hypervisor.domains()
        except HypervisorTimeout as err:
            return await self._vms_one_by_one(err)
        found = [vm for vm in await asyncio.gather(*map(self._listed, states)) if vm is not None]
        self._last = {vm.uuid: vm for vm in found}
        return found

    async def vm(self, uuid: UUID) -> HostVm:
        """Return one domain. Raises DomainUnreadable where its definition cannot be worked with."""
        return await self._describe(await self._hypervisor.domain(uuid))

    async def domain(self, uuid: UUID) -> Domain:
        """Return what the definition for the next start says. Raises DomainUnreadable."""
        return self._parse(await self._hypervisor.inactive_xml(uuid))

    async def host_files(self, uuid: UUID) -> HostFiles:
        """Return the host files that are sound, and those that should be there and cannot be used, with the reason."""
        return await asyncio.to_thread(host_files.look, await self.domain(uuid), self._limits.host_file_limit_bytes)

    async def read_host_file(self, uuid: UUID, type_: HostFileType) -> tuple[HostFile, bytes]:
        """Return one host file, checked, with its bytes as they travel. Raises as agent.host.host_files.read."""
        return await asyncio.to_thread(
            host_files.read, await self.domain(uuid), type_, self._limits.host_file_limit_bytes
        )

    async def firmware_files(self, uuid: UUID) -> list[FirmwareFile]:
        """Return the fingerprints of loader and template; empty where no definition has named them yet."""
        await self._remember_firmware(await self._hypervisor.domain(uuid))
        return await asyncio.to_thread(self._firmware.fingerprints, uuid, await self.domain(uuid))

    async def neighbours(self, *, complete: bool = False) -> list[Neighbour]:
        """Return the files that every domain's definition names. Who cannot be asked counts as last seen.

        The files are not looked at, for a host may have hundreds of domains. ``complete``: whoever was never seen
        and cannot be asked may stand on anything, and what asking raised is raised.
        """
        try:
            found = await asyncio.gather(*(self._neighbour(one, complete) for one in await self._hypervisor.domains()))
        except HypervisorTimeout:
            if complete and not self._last:
                raise
            return [Neighbour.last_seen(vm) for vm in self._last.values()]
        return [one for one in found if one is not None]

    async def _neighbour(self, state: DomainState, complete: bool) -> Neighbour | None:
        try:
            return Neighbour.of(await self.domain(state.uuid))
        except DomainNotFound:
            return None  # undefined since it was listed
        except Error:
            last = self._last.get(state.uuid)
            if last is None and complete:
                raise
            return Neighbour.last_seen(last) if last else None

    async def note_host_files(self, uuid: UUID, forget: Collection[HostFileType] = ()) -> None:
        """Keep which host files must exist at the domain's next start, for the hook (guarantee 3).

        One that was once seen sound has to be there from then on, at the place that the definition names now; until
        the definition has it no more, or it is in ``forget`` (it was taken away on purpose). What is kept of a
        domain that was undefined stays: defined again without its files, it shall not start blank.
        The NVRAM of a domain that was renamed follows it first. Raises DomainNotFound, DomainUnreadable, StorageFailed.
        """
        async with self._noting.setdefault(uuid, asyncio.Lock()):
            state = await self._hypervisor.domain(uuid)
            await self._remember_firmware(state)
            domain = await self.domain(uuid)
            if not state.active:
                await self._follow_rename(domain)
            await asyncio.to_thread(self._note, domain, frozenset(forget))

    async def _follow_rename(self, domain: Domain) -> None:
        """Move the NVRAM that ``virsh domrename`` left at libvirt's path for the old name to that for the new one.

        Not while work holds the domain, nor where another domain names that path by now: the hook then refuses the
        start and says what to do. A start that comes in between finds the file at one name or is refused.
        """
        old = await asyncio.to_thread(self._left_behind, domain)
        if old is None or domain.nvram is None:
            return
        if neighbours.with_nvram([one for one in await self.neighbours() if one.uuid != domain.uuid], old):
            return
        await asyncio.to_thread(_move_nvram, old, domain.nvram)
        log.info(kv("nvram-follows-rename", vm=domain.uuid, name=domain.name, path=domain.nvram, was=old))

    def _left_behind(self, domain: Domain) -> Path | None:
        """Return where the NVRAM still is under the domain's old name, if it may be moved now."""
        kept = self._expected.read(domain.uuid)
        if kept is None or kept.nvram_default_dir is None or domain.nvram is None or not domain.nvram_default:
            return None
        old = kept.nvram_default_dir / f"{kept.name}_VARS.fd"
        usable = old != domain.nvram and old.is_file() and not old.is_symlink()
        free = not domain.nvram.exists() or domain.nvram.samefile(old) if usable else False
        return old if free and self._guards.get(domain.uuid) is None else None

    def _note(self, domain: Domain, forget: frozenset[HostFileType]) -> None:
        kept = self._expected.read(domain.uuid)
        known: set[HostFileType] = {
            item.type for item in host_files.look(domain, self._limits.host_file_limit_bytes).items
        }
        name = domain.name
        if kept is not None:
            if kept.nvram_default_dir is not None and "nvram" not in known and domain.nvram_default:
                name = kept.name  # renamed, and its NVRAM is still at the old name: the hook tells where
            known |= {"nvram"} if kept.nvram or kept.nvram_default_dir else set()
            known |= {"tpm"} if kept.tpm_dir else set()
        known -= forget
        nvram, tpm = domain.nvram if "nvram" in known else None, domain.tpm_directory if "tpm" in known else None
        by_name = nvram is not None and domain.nvram_default and nvram.suffix == ".fd"
        self._expected.write(
            domain.uuid, name, None if by_name else nvram, nvram.parent if nvram and by_name else None, tpm
        )

    def _parse(self, xml: str) -> Domain:
        return parse(xml, self._limits.nvram_dir, self._limits.swtpm_dir)

    async def _remember_firmware(self, state: DomainState) -> None:
        if state.active:
            live = self._parse(await self._hypervisor.live_xml(state.uuid))
            await asyncio.to_thread(self._firmware.remember, state.uuid, live)

    async def _vms_one_by_one(self, reason: HypervisorTimeout) -> list[HostVm]:
        answers = await asyncio.gather(*map(self._vm_briefly, self._last))
        if not any(answered for answered, _ in answers):
            raise reason
        return [vm for _, vm in answers if vm is not None]

    async def _vm_briefly(self, uuid: UUID) -> tuple[bool, HostVm | None]:
        try:
            async with asyncio.timeout(_BRIEF_S):
                return True, await self.vm(uuid)
        except DomainNotFound:
            return True, None
        except (TimeoutError, Error) as err:
            problem = str(err) or "libvirt does not answer for this domain"
            return False, msgspec.structs.replace(self._last[uuid], state="unknown", problem=problem)

    async def _listed(self, state: DomainState) -> HostVm | None:
        try:
            return await self._describe(state)
        except DomainNotFound:
            return None  # undefined since it was listed
        except Error as err:
            log.warning(kv("domain-unreadable", vm=state.uuid, name=state.name, reason=err))
            return self._unreadable(state, str(err))

    def _unreadable(self, state: DomainState, problem: str) -> HostVm:
        last = self._last.get(state.uuid)
        if last is not None:
            return msgspec.structs.replace(last, name=state.name, state=state.state, problem=problem)
        return HostVm(
            uuid=state.uuid,
            name=state.name,
            state=state.state,
            persistent=state.persistent,
            managed_save=state.managed_save,
            firmware="bios",
            tpm=None,
            nvram=None,
            disks=[],
            problem=problem,
        )

    async def _describe(self, state: DomainState) -> HostVm:
        xml = await self._hypervisor.inactive_xml(state.uuid)
        domain = self._parse(xml)
        guard, starting, disks = await asyncio.to_thread(self._look, domain)
        power: VmState = "starting" if starting and not state.active else state.state
        return HostVm(
            uuid=state.uuid,
            name=state.name,
            state=power,
            persistent=state.persistent,
            managed_save=state.managed_save,
            firmware=domain.firmware,
            tpm=domain.tpm,
            nvram=str(domain.nvram) if domain.nvram else None,
            disks=disks,
            guard=guard,
            domain_xml=xml,
        )

    def is_starting(self, vm: UUID) -> bool:
        """Say whether a start of a domain is under way. Blocks. Raises StorageFailed."""
        return self._guards.is_starting(vm)

    def _look(self, domain: Domain) -> tuple[Guard | None, bool, list[Disk]]:
        guard, starting = self._guards.get(domain.uuid), self._guards.is_starting(domain.uuid)
        return guard, starting, [self._read_disk(disk) for disk in domain.disks]

    def _read_disk(self, source: DiskSource) -> Disk:
        """Read a disk's chain; what forbids that is its ``problem``, for a list must not fail because of one file."""
        facts = Disk(
            target=source.target,
            path=str(source.path) if source.path else None,
            format=source.format,
            excluded_because=source.excluded_because,
        )
        if source.path is None or source.excluded_because is not None:
            return facts
        try:
            chain = images.read_chain(
                source.target, source.path, source.format or "raw", self._limits.allowed_image_dirs, images.ANY_DEPTH
            )
        except Error as err:
            return msgspec.structs.replace(facts, problem=str(err))
        return msgspec.structs.replace(
            facts, virtual_size_bytes=chain[0].virtual_size_bytes, chain_depth=len(chain), chain=chain
        )


def _move_nvram(old: Path, new: Path) -> None:
    files.rename_new(files.settled(old), files.settled(new))
