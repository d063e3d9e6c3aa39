"""What was left behind on this host, judged by what the agent knows: its domains and its transactions."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from agent.host import dependents, files, image_check, leftovers
from agent.host.inventory import Inventory
from agent.host.leftovers import Findings, Found, Place
from agent.limits import Limits
from agent.transactions.guard import Guards
from agent.transactions.manager import Manager
from agent.wire.base import utc_now
from agent.wire.transaction import ENDED
from agent.wire.upkeep import CheckImages, ImageState, Leftover, Leftovers
from agent.wire.vm import HostVm

#: What carries no transaction that we remember is removable after so long: no write of a host file takes an hour.
_FORGOTTEN_AFTER = timedelta(days=1)
_IMAGE_LEVELS, _TPM_LEVELS, _NVRAM_LEVELS = 6, 3, 0


class Upkeep:
    """Looks at files; removes nothing but what transactions that have ended left staged."""

    def __init__(self, inventory: Inventory, manager: Manager, guards: Guards, limits: Limits) -> None:
        self._inventory = inventory
        self._manager = manager
        self._guards = guards
        self._limits = limits

    async def check(self, wanted: CheckImages) -> list[ImageState]:
        """Return how each image is, one after the other: guests need the disk too. Raises ToolTimeout, ToolFailed."""
        loop = asyncio.get_running_loop()
        until = loop.time() + wanted.timeout_s
        allowed = self._limits.allowed_image_dirs
        states = []
        for path in wanted.paths:
            left_s = max(0.001, until - loop.time())
            states.append(await image_check.look(Path(path), allowed, left_s, deep=wanted.deep))
        return states

    async def leftovers(self) -> Leftovers:
        """Return every file that is named as ours, with who uses it. Raises HypervisorUnavailable."""
        vms = await self._inventory.vms()
        findings = await asyncio.to_thread(leftovers.search, self._places(vms))
        chains: dict[str, list[str]] = {}
        for vm in vms:
            for disk in vm.disks:
                for path in {image.path for image in disk.chain} | ({disk.path} if disk.path else set()):
                    chains.setdefault(path, []).append(vm.name)
        unreadable = [vm.name for vm in vms if vm.problem or any(disk.problem for disk in vm.disks)]
        over = await asyncio.to_thread(self._over, findings.found)
        items = [_item(one, findings, chains, over) for one in sorted(findings.found, key=lambda one: one.path)]
        return Leftovers(items=items, complete=findings.complete, unreadable=unreadable)

    async def removable(self, paths: Sequence[str]) -> list[str]:
        """Return those of the paths that are staged and removable, as they are now."""
        removable = {one.path for one in (await self.leftovers()).items if one.removable}
        return [path for path in dict.fromkeys(paths) if path in removable]

    async def remove(self, paths: Sequence[str]) -> list[str]:
        """Remove those of the paths that are staged and removable, as they are now; return them."""
        removed = await self.removable(paths)
        for path in removed:
            await asyncio.to_thread(files.remove_tree, Path(path))
        return removed

    def _places(self, vms: Sequence[HostVm]) -> list[Place]:
        limits = self._limits
        nvram = {Path(vm.nvram).parent for vm in vms if vm.nvram} | {limits.nvram_dir}
        return [
            *(Place(directory, _IMAGE_LEVELS) for directory in limits.allowed_image_dirs),
            Place(limits.swtpm_dir, _TPM_LEVELS),
            *(Place(directory, _NVRAM_LEVELS) for directory in sorted(nvram)),
        ]

    def _over(self, found: Sequence[Found]) -> set[Path]:
        """Return what was staged by work that has ended: by its transaction, or by its age.

        A transaction whose guard still stands is recorded as ended and may be cleaning up. What a deletion that failed
        has set aside and could not put back is a snapshot's.
        """
        states = {known.id: known.state for known in self._manager.all()}
        failed = {known.id for known in self._manager.all() if known.kind == "delete" and known.error is not None}
        guarded = {guard.transaction for guard in self._guards.all().values()}
        now = utc_now()
        over = set()
        for one in found:
            if one.transaction in states:
                is_over = states[one.transaction] in ENDED and one.transaction not in guarded | failed
            else:
                # What is an image may be a snapshot's frozen file, and those are old; nobody can tell any more.
                is_over = now - one.mtime > _FORGOTTEN_AFTER and not dependents.is_image(one.path)
            if is_over and not one.is_overlay:
                over.add(one.path)
        return over


def _item(one: Found, findings: Findings, chains: dict[str, list[str]], over: set[Path]) -> Leftover:
    return Leftover(
        path=str(one.path),
        kind="overlay" if one.is_overlay else "staged",
        transaction=one.transaction,
        size_bytes=one.size_bytes,
        mtime=one.mtime,
        domains=sorted(set(chains.get(str(one.path), []))),
        dependents=sorted(findings.standing_on.get(one.path, [])),
        removable=one.path in over,
    )
