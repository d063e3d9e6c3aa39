"""Moving a domain between hosts: what must be known before it is defined here, and how it is taken away from here.

A move is two transactions that the controller leads. ``depart`` on the host that has the domain holds it still and
gives its definition and host files; ``place`` on the other writes them and defines it; then ``depart`` is committed.
So there are two definitions for a moment and never none, and the first one is under a guard for as long.
"""

import asyncio
import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from agent.errors import (
    DomainExists,
    DomainNameRefused,
    DomainNotFound,
    FrozenFileAltered,
    HostFileMissing,
    HostFileShared,
    HostFileUnsupported,
    HostUnsuitable,
    ImageRefused,
    StorageFailed,
)
from agent.host import files, host_files, images, neighbours
from agent.host.domain_xml import Domain, emulator_of, parse
from agent.limits import Limits
from agent.transactions.clone import model_among, require_secret
from agent.transactions.clone_plan import receive_file
from agent.transactions.model import (
    DefineDomain,
    KeepDeparture,
    PlaceHostFile,
    Plan,
    ReceiveHostFile,
    RemoveFile,
    SwapHostFile,
    UndefineDomain,
)
from agent.transactions.plan import departed_dir, groups_of
from agent.transactions.steps import Work, do, sha256_of, undo
from agent.transactions.survey import Survey, require_free_names
from agent.wire.host_file import HostFiles, HostFileType
from agent.wire.transaction import HostFileRef, PlaceRequest
from agent.wire.vm import Disk, Image

#: Where swtpm and its helper are looked for; libvirt has them compiled in or finds them in its own PATH.
_TOOL_DIRS = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class PlaceSurveyor:
    """One look around on the host that a domain is to come to."""

    transaction: UUID
    request: PlaceRequest
    work: Work
    limits: Limits

    async def survey(self) -> Survey:
        """Look at everything that the domain will need here, lock its images, and plan.

        Raises DomainExists, HostUnsuitable, ImageRefused and its like, FrozenFileAltered, HostFileMissing,
        HostFileShared, HostFileUnsupported, DomainNameRefused; HypervisorUnavailable where libvirt does not answer.
        """
        request = self.request
        for other in await self.work.hypervisor.domains():
            if other.uuid == request.vm or other.name == request.name:
                raise DomainExists(name=other.name, vm=other.uuid)
        domain = parse(request.domain_xml, self.limits.nvram_dir, self.limits.swtpm_dir)
        if (domain.uuid, domain.name) != (request.vm, request.name):
            raise DomainNameRefused(name=request.name, reason="the definition is another domain's")
        users = await self.work.inventory.neighbours()
        if domain.nvram and (sharing := await asyncio.to_thread(neighbours.with_nvram, users, domain.nvram)):
            shared = {"type": "nvram", "path": str(domain.nvram), "others": ", ".join(sharing)}
            raise HostFileShared(name=domain.name, **shared)
        await require_secret(self.work, domain)
        plan, disks = await asyncio.to_thread(self._look, domain)
        await asyncio.to_thread(require_free_names, plan)
        expected = [ref.type for ref in request.host_files]
        # The definition goes back to whoever sent it: nothing of it is told again.
        return Survey(plan, domain, "", disks, HostFiles(items=[], expected=expected), [])

    def _look(self, domain: Domain) -> tuple[Plan, list[Disk]]:
        self._require_firmware(domain)
        chains = self._chains(domain)
        receive = self._receive(domain)
        left = [one for one in receive if os.path.lexists(one.path)]  # what this host gave away before
        place = [
            (SwapHostFile if one in left else PlaceHostFile)(
                type=one.type, path=one.path, staged=one.staged, sha256=one.sha256
            )
            for one in receive
        ]
        define = DefineDomain(
            vm=domain.uuid,
            title=domain.name,
            xml=self.request.domain_xml,
            files=[str(disk.path) for disk in domain.disks if disk.path is not None],
        )
        asked = {ref.type for ref in self.request.host_files}
        plan = Plan(
            receive=receive,
            switch=groups_of(*([step] for step in place), [define]),
            clean=groups_of([RemoveFile(what=f"old {one.type}", path=one.staged) for one in left]),
            kept=sorted(asked - {step.type for step in receive}),
        )
        return plan, [_disk(target, chain) for target, chain in chains.items()]

    def _require_firmware(self, domain: Domain) -> None:
        """Refuse where the definition names what is not here, or the firmware it ran with is another build."""
        needed = {"the emulator": emulator_of(self.request.domain_xml), "the firmware": domain.loader}
        needed |= {f"the {one.role}": Path(one.path) for one in self.request.firmware}
        for what, path in needed.items():
            if path is not None and not path.exists():
                raise HostUnsuitable(name=domain.name, what=f"{what} {path}", reason="it is not there")
        for one in self.request.firmware:
            if (found := Path(one.path).stat().st_size) != one.size_bytes:
                reason = f"it has {found} bytes and not {one.size_bytes}: the NVRAM does not fit to it"
                raise HostUnsuitable(name=domain.name, what=f"the {one.role} {one.path}", reason=reason)
        if domain.tpm_directory is not None and shutil.which("swtpm", path=_TOOL_DIRS) is None:
            raise HostUnsuitable(name=domain.name, what="swtpm", reason="it is not installed")

    def _chains(self, domain: Domain) -> dict[str, list[Image]]:
        """Read and lock every image; what snapshots do not cover must at least be there."""
        known = {volume.target: volume for volume in self.request.volumes}
        chains = {}
        for disk in domain.disks:
            if disk.path is None:
                continue
            if disk.excluded_because is not None:
                if not disk.path.exists():
                    raise ImageRefused(target=disk.target, path=str(disk.path), reason="it is not on this host")
                continue
            depth = self.limits.max_chain_depth + 1  # nothing is added, and a VM at the limit may move
            allowed = self.limits.allowed_image_dirs
            chain = images.read_chain(disk.target, disk.path, disk.format or "raw", allowed, depth)
            for image in chain:
                self.work.locks.take_image(disk.target, Path(image.path))
            seen = known.get(disk.target)
            if seen is not None and seen.fingerprint not in {"", chain[0].fingerprint}:
                reason = f"it is another file here, or was written to since (size:mtime is {chain[0].fingerprint}"
                raise FrozenFileAltered(
                    target=disk.target, path=str(disk.path), reason=f"{reason}, was {seen.fingerprint})"
                )
            chains[disk.target] = chain
        return chains

    def _receive(self, domain: Domain) -> list[ReceiveHostFile]:
        """Say what is uploaded. A file that is here already, with the same bytes (shared storage), stays as it is."""
        refusals: dict[HostFileType, str | None] = {"nvram": domain.nvram_refusal, "tpm": domain.tpm_refusal}
        for type_, reason in refusals.items():
            if reason is not None:
                raise HostFileUnsupported(name=domain.name, type=type_, reason=reason)
        settled = host_files.settled(domain)
        paths: dict[HostFileType, Path | None] = {"nvram": settled.nvram, "tpm": settled.tpm_directory}
        refs = {ref.type: ref for ref in self.request.host_files}
        receive = []
        for type_, path in paths.items():
            if path is None:
                continue
            if type_ not in refs and type_ not in self.request.blank:
                reason = "the request does not bring it, and it would be made blank"
                raise HostFileMissing(name=domain.name, type=type_, path=str(path), reason=reason)
            if type_ in refs and not self._is_here(domain, refs[type_], path):
                receive.append(self._receive_one(refs[type_], path))
        return receive

    def _is_here(self, domain: Domain, ref: HostFileRef, path: Path) -> bool:
        if not files.exists(path):
            if not path.parent.is_dir() and ref.type == "nvram":
                raise HostUnsuitable(name=domain.name, what=f"the directory {path.parent}", reason="it is not there")
            return False
        found = sha256_of(ref.type, path, self.limits.host_file_limit_bytes)
        if found == ref.sha256:
            return True
        if found is not None and found == self._given_away(ref.type):
            return False
        reason = f"{path} exists already, with other contents, left by an earlier domain; move it away"
        raise DomainNameRefused(name=domain.name, reason=reason)

    def _given_away(self, type_: HostFileType) -> str | None:
        """Hash what is kept of the domain's last departure: a file with these bytes was left then, and may go."""
        try:
            return hashlib.sha256(
                (departed_dir(self.limits.state_dir, self.request.vm) / type_).read_bytes()
            ).hexdigest()
        except OSError:
            return None

    def _receive_one(self, ref: HostFileRef, path: Path) -> ReceiveHostFile:
        where = self.limits.nvram_dir if ref.type == "nvram" else self.limits.swtpm_dir
        model = model_among(ref.type, where)
        return receive_file(self.transaction, ref, path, files.settled(model) if model else None)


def _disk(target: str, chain: list[Image]) -> Disk:
    return Disk(target=target, path=chain[0].path, format=chain[0].format, chain_depth=len(chain), chain=chain)


@do.register
async def _(step: UndefineDomain, work: Work) -> None:
    await work.hypervisor.undefine(step.vm)


@undo.register
async def _(step: UndefineDomain, work: Work) -> None:
    try:
        await work.hypervisor.domain(step.vm)
    except DomainNotFound:
        await work.hypervisor.define(step.xml)


@do.register
async def _(step: KeepDeparture, work: Work) -> None:
    del work
    await asyncio.to_thread(_keep, step)


@undo.register
async def _(step: KeepDeparture, work: Work) -> None:
    """What was kept of a domain harms nobody."""


def _keep(step: KeepDeparture) -> None:
    """Move what was captured, with the definition, to where a person finds it; an older departure's makes room."""
    staging, kept = Path(step.staging), Path(step.kept)
    if kept.exists() and not staging.exists():
        return  # done, before a crash
    try:
        staging.mkdir(mode=0o700, parents=True, exist_ok=True)
        kept.parent.mkdir(mode=0o700, exist_ok=True)
    except OSError as err:
        raise StorageFailed(action="making", path=str(staging), reason=err.strerror or str(err)) from err
    files.write_atomic(staging / "domain.xml", step.xml.encode(), mode=0o600)
    files.remove_tree(kept)
    files.rename(staging, kept)
