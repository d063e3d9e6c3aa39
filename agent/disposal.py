"""Removing the disks of a domain that is gone: all that were named or none, and nothing that somebody else needs."""

import asyncio
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from agent.errors import ImageRefused
from agent.host import dependents, files, neighbours
from agent.host.image_locks import ImageLock, require_unopened
from agent.host.inventory import Inventory
from agent.host.neighbours import Neighbour
from agent.limits import Limits
from agent.web.errors import Error
from agent.wire.upkeep import UnwantedImage


class Disposal:
    """Removes image files that the controller says belonged to one domain."""

    def __init__(self, inventory: Inventory, limits: Limits) -> None:
        self._inventory = inventory
        self._limits = limits

    async def remove(self, images: Sequence[UnwantedImage]) -> list[str]:
        """Remove the files; return those that were there. What is gone already is passed over.

        Each is checked and locked before any is removed: ImageRefused, ImageInUse and StorageFailed from that leave
        all of them. A removal that fails half-way (StorageFailed) has taken whole chains from the top, and can
        be repeated. Raises HypervisorUnavailable: without libvirt nobody knows whose a file is.
        """
        users = await self._inventory.neighbours()
        return await asyncio.to_thread(self._remove, images, users)

    def _remove(self, images: Sequence[UnwantedImage], users: Sequence[Neighbour]) -> list[str]:
        present = {Path(one.path): one.target for one in images if os.path.lexists(one.path)}
        with ExitStack() as locks:
            for path, target in present.items():
                self._require_unwanted(target, path, present, users)
                locks.enter_context(ImageLock.take_alone(target, path))
            for path in sorted(present, key=lambda one: len(dependents.chain_of(one)), reverse=True):
                files.remove_tree(path)
        return [str(path) for path in present]

    async def foresee(self, images: Sequence[UnwantedImage]) -> tuple[list[str], list[Error]]:
        """Return what ``remove`` would remove, and all that it would object to. Nothing is locked."""
        users = await self._inventory.neighbours()
        return await asyncio.to_thread(self._foresee, images, users)

    def _foresee(self, images: Sequence[UnwantedImage], users: Sequence[Neighbour]) -> tuple[list[str], list[Error]]:
        present = {Path(one.path): one.target for one in images if os.path.lexists(one.path)}
        objections: list[Error] = []
        for path, target in present.items():
            try:
                self._require_unwanted(target, path, present, users)
                require_unopened(target, path)
            except Error as err:
                objections.append(err)
        return [str(path) for path in present], objections

    def _require_unwanted(self, target: str, path: Path, going: Mapping[Path, str], users: Sequence[Neighbour]) -> None:
        """Refuse what is no image of ours to remove. A name that leads elsewhere is not followed."""
        reason = None
        if Path(os.path.realpath(path)) != path or not files.is_regular(path):
            reason = "it is not a plain file under its own name"
        elif not any(path.is_relative_to(directory) for directory in self._limits.allowed_image_dirs):
            reason = "it lies outside the allowed image directories"
        elif names := neighbours.with_chain(users, path):
            reason = f"{', '.join(names)} uses it"
        elif standing := [str(one) for one in dependents.standing_on(path) if one not in going]:
            reason = f"{standing[0]} stands on it"
        if reason is not None:
            raise ImageRefused(target=target, path=str(path), reason=reason)
