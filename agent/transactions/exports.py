"""Holding a snapshot's frozen files still while an archive is made of them."""

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from agent.errors import FrozenFileAltered, ImageRefused
from agent.host import files, images, qemu_img
from agent.limits import Limits
from agent.transactions.archive_steps import SendImage
from agent.transactions.clone import frozen_chains
from agent.transactions.model import ConvertImage, Plan, RemoveFile
from agent.transactions.room import look_for_room, require_room
from agent.transactions.steps import Work
from agent.transactions.survey import Survey, require_free_names
from agent.wire.archive import image_name
from agent.wire.host_file import HostFiles
from agent.wire.transaction import ExportRequest
from agent.wire.vm import Image


@dataclass(frozen=True)
class ExportSurveyor:
    """One look around for one export."""

    transaction: UUID
    request: ExportRequest
    work: Work
    limits: Limits

    async def survey(self) -> Survey:
        """Look at the frozen files, lock them, and plan.

        The lock keeps every writer out for as long as the export lasts. A domain that runs on an overlay has them open
        for reading alone, which the lock allows, so the domain is not asked about; and since nobody can write,
        qemu-img reads them with its own locks in force (no ``--force-share``).

        Raises FrozenFileAltered, ImageRefused, ImageInUse, NoSpace.
        """
        depth = images.ANY_DEPTH
        chains = await asyncio.to_thread(frozen_chains, self.request.volumes, self.work, self.limits, depth)
        for volume in self.request.volumes:
            found = chains[volume.target][0].fingerprint
            if volume.fingerprint and volume.fingerprint != found:
                reason = f"it was written to after it was frozen (size:mtime is {found}, was {volume.fingerprint})"
                raise FrozenFileAltered(target=volume.target, path=volume.path, reason=reason)
        if self.request.flat:
            sizes = {
                target: (await qemu_img.measure(Path(chain[0].path), within=self.work.image_dirs)).required_bytes
                for target, chain in chains.items()
            }
            plan = await asyncio.to_thread(self._flat, chains, sizes)
        else:
            plan = Plan(send=[image for target, chain in chains.items() for image in _as_they_are(target, chain)])
        await asyncio.to_thread(require_free_names, plan)
        return Survey(plan, None, "", [], HostFiles(items=[], expected=[]), [])

    def _flat(self, chains: Mapping[str, list[Image]], sizes: Mapping[str, int]) -> Plan:
        """Plan one new file for each disk, beside its frozen file under a hidden name. Raises NoSpace."""
        places = {target: Path(chain[0].path) for target, chain in chains.items()}
        directories = {path.parent for path in places.values()}
        room = look_for_room(directories)
        wanted = [(places[target].parent, size) for target, size in sizes.items()]
        require_room(wanted, room, self.limits.reserve_bytes)
        staged = {target: str(files.staged_path(path, str(self.transaction))) for target, path in places.items()}
        return Plan(
            stage=[
                [
                    ConvertImage(target=target, path=staged[target], source=str(path), size_bytes=sizes[target])
                    for target, path in places.items()
                ]
            ],
            send=[
                SendImage(
                    target=target,
                    position=0,
                    path=staged[target],
                    named=None,
                    virtual_size_bytes=chain[0].virtual_size_bytes,
                )
                for target, chain in chains.items()
            ],
            clean=[[RemoveFile(what=f"flat {target}", path=path) for target, path in staged.items()]],
        )


def _as_they_are(target: str, chain: list[Image]) -> Iterator[SendImage]:
    """Give the files of a chain, each naming the one below as it is called in the archive."""
    for position, image in enumerate(chain):
        if image.format != "qcow2":
            reason = f"the disk stands on it, and it has the format {image.format}; export the disk flat"
            raise ImageRefused(target=target, path=image.path, reason=reason)
        below = image_name(target, position + 1) if image.backing is not None else None
        yield SendImage(
            target=target,
            position=position,
            path=image.path,
            named=below,
            virtual_size_bytes=image.virtual_size_bytes,
        )
