"""What a deletion moves, against always rebasing and always committing, on a large base and on a large child.

Coldframe's figure is what its agent reports for one deletion by real qemu-img. The baselines run qemu-img on copies of
the same two files: ``rebase`` is measured by how much the child grows, ``commit`` by what the child holds.
"""

import asyncio
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.agent.transactions import story
from tests.agent.transactions.rig import Rig

#: What each holds, as parts of the disk.
SHAPES = {"large base, small child": (32, 1), "small base, large child": (1, 32)}
PARTS = 64
#: A deletion may move so much more than the smaller of the two files holds: headers, tables, partly filled clusters.
MOST = 1.1


@dataclass(frozen=True)
class Merge:
    """One shape of chain: bytes moved by each way of deleting the node in the middle.

    ``smaller`` is what the smaller of the two files takes on disk before.
    """

    name: str
    coldframe: int
    always_rebase: int
    always_commit: int
    smaller: int

    @property
    def ratio(self) -> float:
        """How much more is moved than must be."""
        return self.coldframe / self.smaller


def measure(root: Path, disk_mib: int = 512) -> list[Merge]:
    """Measure every shape below ``root``. Raises RuntimeError where a deletion moves more than it may."""
    found = [asyncio.run(_measure(root / str(number), name, disk_mib)) for number, name in enumerate(SHAPES)]
    for one in found:
        if one.ratio > MOST:
            raise RuntimeError(f"{one.name}: {one.coldframe} bytes were moved, {one.smaller} would do")
    return found


async def _measure(root: Path, name: str, disk_mib: int) -> Merge:
    base_mib, child_mib = (part * disk_mib // PARTS for part in SHAPES[name])
    rig = Rig(root, disks=1).build()
    top = rig.top("vda")
    top.unlink()
    await asyncio.to_thread(_run, "qemu-img", "create", "-q", "-f", "qcow2", str(top), f"{disk_mib}M")
    manager = rig.manager()
    await story.snapshot(manager, host_files="none")
    await asyncio.to_thread(_fill, rig, base_mib, 0)
    middle, _ = await story.snapshot(manager, host_files="none")
    await asyncio.to_thread(_fill, rig, child_mib, base_mib)
    frozen, child = Path(middle.volumes[0].path), rig.top("vda")
    rebase, commit = await asyncio.to_thread(_baselines, root, frozen, child)
    smaller = min(_allocated(frozen), _allocated(child))
    done = await story.delete(manager, story.delete_request(middle, {"vda": [str(child)]}))
    if done.error is not None:
        raise RuntimeError(done.error.detail)
    return Merge(name, done.outcomes[0].moved_bytes, rebase, commit, smaller)


def _fill(rig: Rig, mebibytes: int, at: int) -> None:
    rig.write_disk("vda", 0x5A, at=f"{at}M", length=f"{mebibytes}M")


def _baselines(root: Path, frozen: Path, child: Path) -> tuple[int, int]:
    """Rebase one pair of copies and commit another; return what each has moved."""
    moved = []
    for way in ("rebase", "commit"):
        lower, upper = root / f"{way}-lower.qcow2", root / f"{way}-upper.qcow2"
        shutil.copy(frozen, lower)
        shutil.copy(child, upper)
        _run("qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", str(lower), str(upper))
        held = _allocated(upper)
        if way == "rebase":
            below = str(root / "images" / "vda.qcow2")
            _run("qemu-img", "rebase", "-f", "qcow2", "-F", "qcow2", "-b", below, str(upper))
            moved.append(_allocated(upper) - held)
        else:
            _run("qemu-img", "commit", "-q", "-f", "qcow2", "-d", "-b", str(lower), str(upper))
            moved.append(held)
    return moved[0], moved[1]


def _allocated(path: Path) -> int:
    return path.stat().st_blocks * 512


def _run(*argv: str) -> None:
    subprocess.run(argv, check=True)
