"""What a guest would read from its disks, while it is off.

Everything goes through qemu-img and qemu-io, so whole chains are seen as the guest sees them. Paths are as seen by
``run``: a host's own ``run`` where backing files are named by paths inside it.
"""

import hashlib
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from tests.lab.errors import LabError

Runner: TypeAlias = Callable[[list[str | Path]], subprocess.CompletedProcess[str]]

#: qemu-img and qemu-io work in sectors.
SECTOR = 512
#: What is compared, and written back where it differs, after mtools changed a copy.
BLOCK = 4096


def run_here(argv: list[str | Path]) -> subprocess.CompletedProcess[str]:
    """Run a command outside any private host; raises LabError with its output."""
    done = subprocess.run([str(word) for word in argv], capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0:
        raise LabError(f"{argv}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def create(path: Path, size_mib: int, run: Runner = run_here, *, fat: bool = False) -> None:
    """Make a qcow2 image; with ``fat``, one FAT file system on the whole of it, without a partition table."""
    if not fat:
        run(["qemu-img", "create", "-q", "-f", "qcow2", path, f"{size_mib}M"])
        return
    with tempfile.TemporaryDirectory(prefix="cf-disk-") as scratch:
        raw = Path(scratch, "raw")
        with raw.open("wb") as file:
            file.truncate(size_mib << 20)
        run(["mformat", "-i", raw, "-v", "LAB", "::"])
        run(["qemu-img", "convert", "-q", "-f", "raw", "-O", "qcow2", raw, path])


def read(path: Path, offset: int, length: int, run: Runner = run_here) -> bytes:
    """Return ``length`` bytes of the guest's view at ``offset``."""
    start = offset // SECTOR * SECTOR
    size = -(-(offset + length - start) // SECTOR) * SECTOR
    part = f"driver=raw,offset={start},size={size},file.driver=qcow2,file.file.driver=file,file.file.filename={path}"
    with tempfile.TemporaryDirectory(prefix="cf-disk-") as scratch:
        out = Path(scratch, "raw")
        run(["qemu-img", "convert", "-q", "-O", "raw", "--image-opts", part, out])
        return out.read_bytes()[offset - start : offset - start + length]


def write(path: Path, offset: int, data: bytes, run: Runner = run_here) -> None:
    """Change the guest's view at ``offset``."""
    with tempfile.TemporaryDirectory(prefix="cf-disk-") as scratch:
        source = Path(scratch, "data")
        source.write_bytes(data)
        run(["qemu-io", "-f", "qcow2", "-c", f"write -q -s {source} {offset} {len(data)}", path])


def sha256_raw(path: Path, run: Runner = run_here) -> str:
    """Return the SHA-256 of all that the guest can read, whatever the chain below ``path`` looks like."""
    with (
        tempfile.TemporaryDirectory(prefix="cf-disk-") as scratch,
        _raw_copy(path, Path(scratch), run).open("rb") as raw,
    ):
        return hashlib.file_digest(raw, "sha256").hexdigest()


def get_file(path: Path, name: str, run: Runner = run_here) -> bytes | None:
    """Return a file of the FAT file system, or None if there is none of that name."""
    with tempfile.TemporaryDirectory(prefix="cf-disk-") as scratch:
        raw, out = _raw_copy(path, Path(scratch), run), Path(scratch, "out")
        if name.lower() not in run(["mdir", "-b", "-i", raw, "::"]).stdout.lower().replace("::/", "").split("\n"):
            return None
        run(["mcopy", "-n", "-i", raw, f"::{name}", out])
        return out.read_bytes()


def put_file(path: Path, name: str, data: bytes, run: Runner = run_here) -> None:
    """Write a file of the FAT file system, replacing one of that name."""
    with tempfile.TemporaryDirectory(prefix="cf-disk-") as scratch:
        raw, source = _raw_copy(path, Path(scratch), run), Path(scratch, "source")
        source.write_bytes(data)
        before = raw.read_bytes()
        run(["mcopy", "-o", "-i", raw, source, f"::{name}"])
        after = raw.read_bytes()
        changed = [at for at in range(0, len(after), BLOCK) if before[at : at + BLOCK] != after[at : at + BLOCK]]
        writes = [word for at in changed for word in ("-c", f"write -q -s {_piece(scratch, after, at)} {at} {BLOCK}")]
        if writes:
            run(["qemu-io", "-f", "qcow2", *writes, path])


def _piece(scratch: str, data: bytes, at: int) -> Path:
    piece = Path(scratch, f"piece-{at}")
    piece.write_bytes(data[at : at + BLOCK])
    return piece


def _raw_copy(path: Path, scratch: Path, run: Runner) -> Path:
    raw = scratch / "copy"
    run(["qemu-img", "convert", "-q", "-f", "qcow2", "-O", "raw", path, raw])
    return raw


class Disk:
    """One disk of a guest that is off."""

    def __init__(self, path: Path, run: Runner = run_here) -> None:
        self.path, self._run = path, run

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes of the guest's view."""
        return read(self.path, offset, length, self._run)

    def write(self, offset: int, data: bytes) -> None:
        """Change bytes of the guest's view."""
        write(self.path, offset, data, self._run)

    def sha256(self) -> str:
        """Return the hash of the guest's view."""
        return sha256_raw(self.path, self._run)

    def get_file(self, name: str) -> bytes | None:
        """Return a file of its FAT file system."""
        return get_file(self.path, name, self._run)

    def put_file(self, name: str, data: bytes) -> None:
        """Write a file of its FAT file system."""
        put_file(self.path, name, data, self._run)
