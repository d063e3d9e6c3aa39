"""What a transaction must know before it plans: asked of libvirt and read from files, under guard and locks.

Whatever forbids the work is raised here or by the planner, before anything was changed.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
from agent.host import files, host_files, images, neighbours
from agent.host.domain_xml import DiskSource, Domain, parse
from agent.host.hypervisor import DomainState
from agent.host.neighbours import Neighbour
from agent.limits import Limits
from agent.transactions.model import CommitChild, ConvertImage, CreateOverlay, Facts, Plan, RebaseChild, flat
from agent.transactions.plan import plan_depart, plan_restore, plan_revert, plan_snapshot
from agent.transactions.plan_delete import plan_delete
from agent.transactions.room import look_for_room
from agent.transactions.steps import Work
from agent.transactions.survey_delete import bring_back, dependents_of, is_gone, read_doomed, room_of
from agent.web.errors import Error
from agent.wire.host_file import HostFiles, HostFileType
from agent.wire.transaction import (
    DeleteRequest,
    DepartRequest,
    DomainRequest,
    FirmwareFile,
    FrozenVolume,
    RestoreRequest,
    RevertRequest,
    SnapshotRequest,
)
from agent.wire.vm import Disk, Image

_NOT_AT_REST = (DomainManagedSave, DomainPaused, DomainRunning, DomainTransient)


@dataclass(frozen=True)
class Survey:
    """What was found: the plan, and what the transaction tells of the domain as it is now, if it looks at one."""

    plan: Plan
    domain: Domain | None
    domain_xml: str
    disks: list[Disk]
    host_files: HostFiles
    firmware: list[FirmwareFile]


def staging_dir(limits: Limits, transaction: UUID) -> Path:
    """Return where a transaction keeps the host files that it captured."""
    return limits.state_dir / "transactions" / str(transaction)


@dataclass(frozen=True)
class Surveyor:
    """One look around for one transaction.

    What forbids the work is raised at once; a dry run gives a list of ``objections``, and gets to hear all that can
    be said: the plan is empty then, unless it is only the present state of the domain that forbids it.
    """

    transaction: UUID
    request: DomainRequest
    work: Work
    limits: Limits
    objections: list[Error] | None = None

    async def survey(self) -> Survey:
        """Look at everything that the request needs, take the locks, and plan.

        Raises the Refused errors of agent.errors; HypervisorUnavailable where libvirt does not answer.
        """
        with self._objecting():
            _require_at_rest(await self.work.hypervisor.domain(self.work.vm))
        # What departs goes to another host's libvirt as it is, console passwords included; a dry run shows none.
        departs = isinstance(self.request, DepartRequest) and self.objections is None
        xml = await self.work.hypervisor.inactive_xml(self.work.vm, secure=departs)
        domain = await asyncio.to_thread(host_files.settled, parse(xml, self.limits.nvram_dir, self.limits.swtpm_dir))
        if domain.tpm_directory is not None:
            with self._objecting():
                await asyncio.to_thread(self.work.locks.take_tpm, domain.tpm_directory)
        if isinstance(self.request, RevertRequest | DeleteRequest) and self.objections is None:
            for volume in self.request.volumes:
                await asyncio.to_thread(bring_back, Path(volume.path))
        disks = await asyncio.to_thread(self._read_disks, domain)
        users = await self._users(domain)
        with self._objecting():
            await asyncio.to_thread(self._require_own_files, domain, disks, users)
        found = await self._host_files()
        plan = Plan()
        with self._objecting():
            if self._can_plan():
                plan = await asyncio.to_thread(self._plan, domain, xml, disks, found, users)
                await asyncio.to_thread(require_free_names, plan)
        wants_firmware = isinstance(self.request, SnapshotRequest | DepartRequest) and self.objections is None
        firmware = await self.work.inventory.firmware_files(self.work.vm) if wants_firmware else []
        return Survey(plan, domain, xml, disks, found, firmware)

    @contextmanager
    def _objecting(self) -> Iterator[None]:
        """Collect what the body raises, where objections are collected."""
        try:
            yield
        except Error as err:
            if self.objections is None:
                raise
            self.objections.append(err)

    def _can_plan(self) -> bool:
        """Tell whether all that a plan is made of was read: an objection to the domain's state leaves that whole."""
        return all(isinstance(one, _NOT_AT_REST) for one in self.objections or [])

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
            case RestoreRequest() | DepartRequest():
                return targets

    def _read_disks(self, domain: Domain) -> list[Disk]:
        left_alone = self._left_alone(domain)
        return [self._read_disk(source, source.target in left_alone) for source in domain.disks]

    def _read_disk(self, source: DiskSource, left_alone: bool) -> Disk:
        chain: list[Image] = []
        if source.path is not None and source.excluded_because is None and not left_alone:
            with self._objecting():
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

    async def _users(self, domain: Domain) -> list[Neighbour]:
        """Return what all domains use; this one as it was read under the guard."""
        found = await self.work.inventory.neighbours(complete=self._may_remove_images())
        return [Neighbour.of(domain), *(one for one in found if one.uuid != domain.uuid)]

    def _may_remove_images(self) -> bool:
        """Tell whether files may go on which a domain could stand that nobody knows of."""
        return isinstance(self.request, DeleteRequest) or (
            isinstance(self.request, RevertRequest) and self.request.undo is None
        )

    def _require_own_files(self, domain: Domain, disks: list[Disk], users: list[Neighbour]) -> None:
        """Refuse what another domain would go on writing to: its NVRAM in use here, a disk that is to be frozen."""
        others = [one for one in users if one.uuid != domain.uuid]
        if self._wants_host_files() and domain.nvram is not None and (sharing := _sharing_nvram(others, domain.nvram)):
            raise HostFileShared(name=domain.name, type="nvram", path=str(domain.nvram), others=sharing)
        for disk in self._to_freeze(disks):
            if sharing := ", ".join(neighbours.with_disk(others, Path(disk.chain[0].path))):
                reason = f"it is a disk of {sharing} too, which would go on writing to what is frozen"
                raise ImageRefused(target=disk.target, path=disk.chain[0].path, reason=reason)

    def _to_freeze(self, disks: list[Disk]) -> list[Disk]:
        """Return the disks whose present top files are kept from now on."""
        match self.request:
            case SnapshotRequest():
                return [disk for disk in disks if disk.chain]
            case RevertRequest(undo=UUID(), volumes=volumes):
                targets = {volume.target for volume in volumes}
                return [disk for disk in disks if disk.chain and disk.target in targets]
            case _:
                return []

    def _wants_host_files(self) -> bool:
        request = self.request
        return not isinstance(request, DeleteRequest) and getattr(request, "host_files", None) != "none"

    async def _host_files(self) -> HostFiles:
        if self._wants_host_files():
            return await self.work.inventory.host_files(self.work.vm)
        return HostFiles(items=[], expected=[])

    def _plan(
        self, domain: Domain, domain_xml: str, disks: list[Disk], present: HostFiles, users: list[Neighbour]
    ) -> Plan:
        if isinstance(self.request, DeleteRequest):
            return self._plan_delete(self.request, users)
        frozen = self._frozen_chains(self.request.volumes) if isinstance(self.request, RevertRequest) else {}
        facts = self._facts(domain, disks, present, frozen)
        if isinstance(self.request, RevertRequest):
            facts = replace(facts, in_use=self._in_use(disks, frozen, users))
        match self.request:
            case SnapshotRequest():
                return plan_snapshot(facts, self.request)
            case RevertRequest():
                return plan_revert(facts, self.request)
            case RestoreRequest():
                return plan_restore(facts, self.request)
            case DepartRequest():
                return plan_depart(facts, self.request, domain_xml)

    def _facts(self, domain: Domain, disks: list[Disk], present: HostFiles, frozen: dict[str, list[Image]]) -> Facts:
        staging = staging_dir(self.limits, self.transaction)
        tops = [chain[0] for chain in (*(disk.chain for disk in disks), *frozen.values()) if chain]
        directories = {*(Path(top.path).parent for top in tops), staging.parent}
        return Facts(
            transaction=self.transaction,
            name=domain.name,
            disks=disks,
            staging=staging,
            host_file_paths=_host_file_paths(domain),
            present=present.items,
            missing=present.missing,
            frozen=frozen,
            room=look_for_room(directories),
            overlay_bytes={top.path: images.overlay_bytes(top.virtual_size_bytes) for top in tops},
            reserve_bytes=self.limits.reserve_bytes,
        )

    def _frozen_chains(self, volumes: list[FrozenVolume]) -> dict[str, list[Image]]:
        for volume in volumes:
            if is_gone(volume.path):
                raise FrozenFileAltered(target=volume.target, path=volume.path, reason="it is gone")
        return {volume.path: self._read_chain(volume.target, Path(volume.path), "qcow2") for volume in volumes}

    def _in_use(self, disks: list[Disk], frozen: dict[str, list[Image]], users: list[Neighbour]) -> frozenset[str]:
        """Name the present top files that somebody needs besides this domain, by their resolved paths."""
        others = [one for one in users if one.uuid != self.work.vm]
        found = {image.path for chain in frozen.values() for image in chain}
        for top in (disk.chain[0].path for disk in disks if disk.chain):
            stood_on = dependents_of(Path(top), users) or neighbours.with_disk(others, Path(top))
            if stood_on or self.work.locks.is_read(Path(top)):
                found.add(top)
        return frozenset(found)

    def _plan_delete(self, request: DeleteRequest, users: list[Neighbour]) -> Plan:
        """Plan it for all disks, and lock every file that it will write to or remove: none is begun unless all can."""
        doomed = read_doomed(self.transaction, request, users, self.limits)
        plan = plan_delete(doomed, room_of(doomed))
        for volume in (one for one in doomed if one.frozen is not None):
            self.work.locks.take_to_write(volume.target, Path(volume.path))
        for step in flat(plan.switch):
            if isinstance(step, RebaseChild | CommitChild):
                self.work.locks.take_to_write(step.target, Path(step.child))
        return plan


def _sharing_nvram(others: list[Neighbour], path: Path) -> str:
    return ", ".join(neighbours.with_nvram(others, path))


def require_free_names(plan: Plan) -> None:
    """Hold that what will be made is not there yet, so that undoing the plan can only remove what it made."""
    for step in flat([*plan.stage, plan.receive]):
        path = Path(step.path if isinstance(step, CreateOverlay | ConvertImage) else getattr(step, "staged", ""))
        if files.exists(path):
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
