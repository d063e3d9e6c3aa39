"""What a guest would read from an image, hashed; and which files an image stands on.

Headers are read here and not by the product's own code, which is what is on trial.
"""

import asyncio
import hashlib
import os
import struct
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

AT_ONCE = 4
_BACKING = struct.Struct(">8xQI")  # docs/interop/qcow2.txt: backing_file_offset and backing_file_size
State = tuple[tuple[str, int, int, int, int], ...]


def chain(path: Path) -> list[Path]:
    """List an image and all that it stands on, top first."""
    found: list[Path] = []
    below: Path | None = path
    while below is not None:
        found.append(below)
        below = _backing(below)
    return found


def _backing(path: Path) -> Path | None:
    with path.open("rb") as file:
        head = file.read(4096)
    if head[:4] != b"QFI\xfb":
        return None
    at, length = _BACKING.unpack_from(head)
    return path.parent / os.fsdecode(head[at : at + length]) if at else None


class Reader:
    """Hashes images by ``qemu-img convert`` to raw.

    What was hashed once is not converted again while no file of its chain has changed: inode, size, and the times of
    the last write and of the last change of any kind are all the same then.
    """

    def __init__(self) -> None:
        self.conversions = 0
        self._known: dict[State, str] = {}
        self._slots = asyncio.Semaphore(AT_ONCE)

    async def hashes(self, paths: Iterable[Path]) -> dict[Path, str]:
        """Hash the bytes that a guest reads from each image."""
        wanted = sorted(set(paths))
        return dict(zip(wanted, await asyncio.gather(*map(self._hash, wanted)), strict=True))

    async def _hash(self, path: Path) -> str:
        state = tuple(map(_state, chain(path)))
        if state not in self._known:
            async with self._slots:
                self._known[state] = await self._convert(path)
        return self._known[state]

    async def _convert(self, path: Path) -> str:
        self.conversions += 1
        with TemporaryDirectory(prefix="coldframe-raw-") as directory:
            raw = Path(directory, "raw")
            argv = ("qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(path), str(raw))
            process = await asyncio.create_subprocess_exec(*argv)
            assert await process.wait() == 0, f"{path} cannot be read"
            return hashlib.sha256(raw.read_bytes()).hexdigest()


def _state(path: Path) -> tuple[str, int, int, int, int]:
    facts = path.stat()
    return str(path), facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns
