"""What a deletion must know of each frozen file: who stands on it, beside it and in any domain's chain."""

import logging
from dataclasses import dataclass, field
from pathlib import Path

from agent.errors import DomainNotFound, DomainUnreadable, HypervisorRefused, StorageFailed
from agent.host import dependents, files, images, qcow2
from agent.host.domain_xml import parse
from agent.limits import Limits
from agent.transactions.model import Doomed, Room
from agent.transactions.steps import Work
from agent.wire.transaction import DoomedVolume
from agent.wire.vm import Disk, Image

log = logging.getLogger(__name__)


@dataclass
class Elsewhere:
    """What the host's other domains use: every file of their chains, each with its backing, and who writes to which."""

    backings: dict[str, str | None] = field(default_factory=dict)
    writers: dict[str, str] = field(default_factory=dict)


async def look_elsewhere(work: Work) -> Elsewhere:
    """Read the definitions and the headers of all other domains. What cannot be read is left out and logged.

    Raises HypervisorUnavailable.
    """
    found = Elsewhere()
    for domain in await work.hypervisor.domains():
        if domain.uuid == work.vm:
            continue
        try:
            xml = await work.hypervisor.inactive_xml(domain.uuid)
            disks = parse(xml, work.nvram_dir, work.swtpm_dir).disks
        except (DomainNotFound, DomainUnreadable, HypervisorRefused) as err:
            log.warning("domain-not-looked-at name=%s reason=%s", domain.name, err)
            continue
        for path in (disk.path for disk in disks if disk.path is not None and disk.format == "qcow2"):
            _note(found, domain.name, path)
    return found


def _note(found: Elsewhere, name: str, top: Path) -> None:
    chain = [str(path) for path in dependents.chain_of(top)]
    found.writers[chain[0]] = name
    found.backings.update(zip(chain, [*chain[1:], None], strict=True))


def read_doomed(
    name: str, volumes: list[DoomedVolume], disks: list[Disk], elsewhere: Elsewhere, limits: Limits
) -> list[Doomed]:
    """Describe the frozen files of a request; ``name`` is the domain's, ``disks`` hold its chains.

    Raises ImageRefused, InternalSnapshot, StorageFailed where a file is not one to work with.
    """
    return [_Volume(volume, disks, elsewhere, limits).read(name) for volume in volumes]


def room_of(doomed: list[Doomed]) -> Room:
    """Measure the file systems of all files of a deletion."""
    present = [image for one in doomed for image in (one.frozen, *one.children.values()) if image is not None]
    directories = {Path(image.path).parent for image in present}
    return Room(
        free_bytes={directory: files.free_bytes(directory) for directory in directories},
        device={directory: directory.stat().st_dev for directory in directories},
    )


@dataclass(frozen=True)
class _Volume:
    """One frozen file looked at."""

    volume: DoomedVolume
    disks: list[Disk]
    elsewhere: Elsewhere
    limits: Limits

    def read(self, name: str) -> Doomed:
        path = self.volume.path
        writers = {disk.chain[0].path: name for disk in self.disks if disk.chain} | self.elsewhere.writers
        return Doomed(
            target=self.volume.target,
            path=path,
            frozen=self._image(path),
            children={child: self._image(child) for child in self.volume.children},
            dependents=self._dependents(),
            writer=writers.get(path),
            private=self._is_private(),
        )

    def _dependents(self) -> list[str]:
        path = self.volume.path
        own = {image.path for disk in self.disks for image in disk.chain if image.backing == path}
        others = {child for child, backing in self.elsewhere.backings.items() if backing == path}
        return sorted({*own, *others, *(str(beside) for beside in dependents.standing_on(Path(path)))})

    def _is_private(self) -> bool:
        paths = [path for path in (self.volume.path, *self.volume.children) if Path(path).exists()]
        return self.volume.path not in self.elsewhere.backings and all(_is_simple(Path(path)) for path in paths)

    def _image(self, path: str) -> Image | None:
        """Read one image, checked with all that is below it; None where the file is gone."""
        if not Path(path).exists():
            return None
        allowed = self.limits.allowed_image_dirs
        return images.read_chain(self.volume.target, Path(path), "qcow2", allowed, images.ANY_DEPTH)[0]


def _is_simple(path: Path) -> bool:
    """Tell whether an image has one name only, and no bitmaps: they would be lost, or count what we write."""
    try:
        return path.stat().st_nlink == 1 and not qcow2.read_header(path).bitmaps
    except OSError as err:
        raise StorageFailed(action="reading", path=str(path), reason=err.strerror or str(err)) from err
    except qcow2.Qcow2Error:
        return False
