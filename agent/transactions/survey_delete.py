"""What a deletion must know of each frozen file: who stands on it, beside it and in any domain's chain."""

import os
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from agent.errors import StorageFailed
from agent.host import dependents, files, images, neighbours, qcow2
from agent.host.neighbours import Neighbour
from agent.limits import Limits
from agent.transactions.model import Doomed, Room
from agent.transactions.room import look_for_room
from agent.wire.transaction import DeleteRequest, DoomedVolume
from agent.wire.vm import Image


def is_gone(path: str) -> bool:
    """Tell whether a file is not there. What cannot be told is said by whoever reads it."""
    try:
        return not files.exists(Path(path))
    except StorageFailed:
        return False  # a name that no file can have, or one behind a link


def bring_back(path: Path) -> None:
    """Give a frozen file its name back that a deletion has set aside and, when it failed, could not put back. Blocks.

    No other work of its VM is under way, so whatever stands under its hidden name was left there.
    """
    if is_gone(str(path)) and path.parent.is_dir():
        left = [one for one in files.staged_for(path) if dependents.is_image(one)]
        if len(left) == 1:
            files.rename(left[0], path)


def dependents_of(path: Path, users: list[Neighbour]) -> list[str]:
    """List the files that stand on this one: beside it on disk, and in any domain's chains. Blocks."""
    return sorted(map(str, {*dependents.standing_on(path), *neighbours.standing_on(users, path)}))


def read_doomed(transaction: UUID, request: DeleteRequest, users: list[Neighbour], limits: Limits) -> list[Doomed]:
    """Describe the frozen files of a request; ``users`` are all domains of the host, this one among them.

    Raises ImageRefused, InternalSnapshot, StorageFailed where a file is not one to work with.
    """
    others = [one for one in users if one.uuid != request.vm]
    return [_Volume(transaction, volume, users, others, limits).read() for volume in request.volumes]


def room_of(doomed: list[Doomed]) -> Room:
    """Measure the file systems of all files of a deletion."""
    present = [image for one in doomed for image in (one.frozen, *one.children.values()) if image is not None]
    return look_for_room({Path(image.path).parent for image in present})


@dataclass(frozen=True)
class _Volume:
    """One frozen file looked at; ``others`` are the domains besides the one whose snapshot it is."""

    transaction: UUID
    volume: DoomedVolume
    users: list[Neighbour]
    others: list[Neighbour]
    limits: Limits

    def read(self) -> Doomed:
        path = Path(self.volume.path)
        taken = {child: neighbours.with_disk(self.others, Path(child)) for child in self.volume.children}
        return Doomed(
            target=self.volume.target,
            path=self.volume.path,
            staged=str(files.staged_path(path, str(self.transaction))),
            frozen=self._image(self.volume.path),
            children={child: self._image(child) for child in self.volume.children},
            dependents=dependents_of(path, self.users),
            written_by=neighbours.with_disk(self.users, path),
            taken={child: names for child, names in taken.items() if names},
            private=self._is_private(),
        )

    def _is_private(self) -> bool:
        path = Path(self.volume.path)
        present = [Path(one) for one in (self.volume.path, *self.volume.children) if not is_gone(one)]
        headers = [_plain_header(one) for one in present]
        if neighbours.with_chain(self.others, path):
            return False
        # Each cluster of a child could take a whole larger one of the frozen file, for which there may be no room.
        bits = [one.cluster_bits for one in headers if one is not None]
        return len(bits) == len(present) and (not bits or bits[0] == min(bits))

    def _image(self, path: str) -> Image | None:
        """Read one image, checked with all that is below it; None where the file is gone."""
        if is_gone(path):
            return None
        allowed = self.limits.allowed_image_dirs
        return images.read_chain(self.volume.target, Path(path), "qcow2", allowed, images.ANY_DEPTH)[0]


def _plain_header(path: Path) -> qcow2.Header | None:
    """Read the header of an image with one name only and no bitmaps: they would be lost, or count what we write."""
    with files.storage("reading", path):
        descriptor = files.open_regular(path)
        try:
            header = qcow2.read_header_from(descriptor)
            return header if os.fstat(descriptor).st_nlink == 1 and not header.bitmaps else None
        except qcow2.Qcow2Error:
            return None
        finally:
            os.close(descriptor)
