"""The files that the domains of a host use, by their definitions: whose they are before they are frozen or removed.

libvirt lets two domains name one file. What both boot from, one of them can freeze and the other go on writing to;
what one merges away, the other may stand on, wherever on the host its own overlay lies.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from uuid import UUID

from agent.host import dependents
from agent.host.domain_xml import Domain
from agent.wire.vm import HostVm


@dataclass(frozen=True)
class Neighbour:
    """One domain: its NVRAM file and its disks' files, each with whether it is declared as qcow2."""

    uuid: UUID
    name: str
    nvram: Path | None
    disks: tuple[tuple[Path, bool], ...]

    @classmethod
    def of(cls, domain: Domain) -> "Neighbour":
        """Take it from a definition."""
        disks = tuple((disk.path, disk.format == "qcow2") for disk in domain.disks if disk.path is not None)
        return cls(domain.uuid, domain.name, domain.nvram, disks)

    @classmethod
    def last_seen(cls, vm: HostVm) -> "Neighbour":
        """Take it from what was last shown of a domain that cannot be asked now."""
        disks = tuple((Path(disk.path), disk.format == "qcow2") for disk in vm.disks if disk.path is not None)
        return cls(vm.uuid, vm.name, Path(vm.nvram) if vm.nvram else None, disks)


def with_nvram(neighbours: Iterable[Neighbour], path: Path) -> list[str]:
    """Name the domains that use this NVRAM file, links followed. Blocks."""
    wanted = os.path.realpath(path)
    return [one.name for one in neighbours if one.nvram is not None and os.path.realpath(one.nvram) == wanted]


def with_disk(neighbours: Iterable[Neighbour], path: Path) -> list[str]:
    """Name the domains that have this file as a disk of their own, links followed. Blocks."""
    wanted = os.path.realpath(path)
    return [one.name for one in neighbours if any(os.path.realpath(disk) == wanted for disk, _ in one.disks)]


def with_chain(neighbours: Iterable[Neighbour], path: Path) -> list[str]:
    """Name the domains that have this file anywhere in the chain of a disk, links followed. Blocks."""
    wanted = Path(os.path.realpath(path))
    return [one.name for one in neighbours if any(wanted in chain for chain in _chains(one))]


def standing_on(neighbours: Iterable[Neighbour], path: Path) -> list[Path]:
    """Find the images that stand directly on this file in the chains of the domains' qcow2 disks. Blocks.

    Only headers are read, and what cannot be read ends a chain.
    """
    wanted = Path(os.path.realpath(path))
    chains = (chain for one in neighbours for chain in _chains(one))
    return sorted({above for chain in chains for above, below in pairwise(chain) if below == wanted})


def _chains(neighbour: Neighbour) -> Iterator[list[Path]]:
    """Follow each disk down. A raw disk is not looked into: its guest could have written any header there."""
    for disk, is_qcow2 in neighbour.disks:
        yield dependents.chain_of(disk) if is_qcow2 else [Path(os.path.realpath(disk))]
