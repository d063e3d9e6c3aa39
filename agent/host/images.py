"""Chains of disk images, walked by their own headers. QEMU is never asked: it would open what a header names."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from agent.errors import ChainTooDeep, ImageRefused, InternalSnapshot, StorageFailed
from agent.host import files, paths, qcow2
from agent.wire.vm import Image

ANY_DEPTH = 1_000  # for callers that add no overlay; what is deeper is not a chain but an attack
_PROTOCOL = re.compile(r"[^/]*:")  # path_has_protocol in QEMU's block.c: a colon before the first slash
_CLUSTER_BYTES = 65_536  # of the overlays we make, QEMU's default


def read_chain(target: str, path: Path, declared_format: str, allowed_dirs: list[Path], max_depth: int) -> list[Image]:
    """Return the files of a disk's chain from the top to the root, each judged safe to build on.

    ``path`` and ``declared_format`` come from the domain XML, ``allowed_dirs`` were settled when they were configured.
    Every ``Image.path`` is resolved (no links), as is ``backing``. ``max_depth`` is how many files a chain may have
    before one more overlay is refused; pass ``ANY_DEPTH`` when none will be added.
    Raises ``ImageRefused``, ``InternalSnapshot``, ``ChainTooDeep``; ``StorageFailed`` where reading fails.
    """
    if declared_format != "qcow2":
        raise ImageRefused(target=target, path=str(path), reason=f"its declared format is {declared_format}, not qcow2")
    walk = _Walk(target, allowed_dirs)
    chain: list[Image] = []
    below: _Named | None = _Named(path, walk.resolve(path, path), declared_format)
    while below:
        image, below = walk.visit(below)
        chain.append(image)
        if len(chain) >= max_depth:
            raise ChainTooDeep(target=target, depth=len(chain), limit=max_depth)
    return chain


def fingerprint(path: Path) -> str:
    """Return ``<size>:<mtime in ns>`` of a file; it changes when anything writes to it."""
    try:
        return _fingerprint(paths.stat(path))
    except OSError as err:
        raise StorageFailed(action="reading", path=str(path), reason=err.strerror or str(err)) from err


def overlay_bytes(virtual_size: int) -> int:
    """Return what an empty overlay takes on disk: header, refcount table and block, and its L1 table."""
    l1_bytes = -(-virtual_size // (_CLUSTER_BYTES * _CLUSTER_BYTES // 8)) * 8
    return 3 * _CLUSTER_BYTES + -(-l1_bytes // _CLUSTER_BYTES) * _CLUSTER_BYTES


def _is_text(path: Path) -> bool:
    """Tell whether the API, the journal and libvirt can name a file."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _fingerprint(facts: os.stat_result) -> str:
    return f"{facts.st_size}:{facts.st_mtime_ns}"


@dataclass(frozen=True)
class _Named:
    """A file to visit: as QEMU will name it, as it resolves, and its recorded format."""

    name: Path
    path: Path
    format: str


class _Walk:
    """One walk down one chain."""

    def __init__(self, target: str, allowed: list[Path]) -> None:
        self._target = target
        self._allowed = allowed
        self._seen: set[tuple[int, int]] = set()

    def visit(self, named: _Named) -> tuple[Image, _Named | None]:
        """Return the image and what it stands on.

        All facts come from one open descriptor, so a file swapped in meanwhile cannot mix its facts with these.
        """
        path = named.path
        descriptor = self._open(path)
        try:
            facts = os.fstat(descriptor)
            if (facts.st_dev, facts.st_ino) in self._seen:
                raise self._refuse(path, "the chain comes back to it")
            self._seen.add((facts.st_dev, facts.st_ino))
            header = self._header(descriptor, path) if named.format == "qcow2" else None
        except OSError as err:
            raise StorageFailed(action="reading", path=str(path), reason=err.strerror or str(err)) from err
        finally:
            os.close(descriptor)
        below = self._below(named, header) if header else None
        image = Image(
            path=str(path),
            format=named.format,
            virtual_size_bytes=header.virtual_size_bytes if header else facts.st_size,
            allocated_bytes=facts.st_blocks * 512,
            backing=str(below.path) if below else None,
            backing_format=below.format if below else None,
            fingerprint=_fingerprint(facts),
        )
        return image, below

    def resolve(self, path: Path, named_by: Path) -> Path:
        """Follow links and refuse what is absent or leads out of the allowed directories."""
        try:
            resolved = path.resolve(strict=True)
        except FileNotFoundError as err:
            reason = "it does not exist" if path == named_by else f"the backing file {path} does not exist"
            raise self._refuse(named_by, reason) from err
        except (OSError, RuntimeError, ValueError) as err:  # RuntimeError: a loop of links
            raise self._refuse(named_by, f"{path} cannot be resolved: {err}") from err
        if not _is_text(resolved):
            raise self._refuse(named_by, "it leads to a file whose name is not UTF-8")
        if not any(resolved.is_relative_to(directory) for directory in self._allowed):
            through = "" if resolved == path else f", which is {resolved},"
            raise self._refuse(named_by, f"{path}{through} lies outside the allowed image directories")
        return resolved

    def _open(self, path: Path) -> int:
        try:
            return files.open_regular(path)
        except OSError as err:
            raise self._refuse(path, f"it cannot be opened: {err.strerror}") from err

    def _header(self, descriptor: int, path: Path) -> qcow2.Header:
        try:
            header = qcow2.read_header_from(descriptor)
        except qcow2.Qcow2Error as err:
            raise self._refuse(path, err.reason) from err
        if header.corrupt:
            raise self._refuse(path, "it is marked corrupt; repair it with qemu-img check -r all")
        if header.external_data or header.data_file is not None:
            raise self._refuse(path, "it keeps its data in an external data file")
        if header.encryption:
            raise self._refuse(path, "it is encrypted, and an overlay would need its secret")
        if header.internal_snapshots:
            raise InternalSnapshot(target=self._target, path=str(path), count=header.internal_snapshots)
        return header

    def _below(self, named: _Named, header: qcow2.Header) -> _Named | None:
        path = named.path
        if header.backing is None:
            return None
        if _PROTOCOL.match(header.backing):
            raise self._refuse(path, f"its backing file {header.backing!r} is named through a protocol")
        if header.backing_format is None:
            way_out = f"qemu-img rebase -u -F FORMAT -b {header.backing} {path}"
            raise self._refuse(path, f"it does not record the format of its backing file; if you know it: {way_out}")
        if header.backing_format not in {"qcow2", "raw"}:
            raise self._refuse(path, f"its backing file has the format {header.backing_format!r}")
        name = named.name.parent / header.backing  # QEMU resolves beside the name, which may be a link
        below = self.resolve(name, path)
        if self.resolve(path.parent / header.backing, path) != below:
            raise self._refuse(path, f"its backing file {header.backing!r} is another one beside {named.name}")
        return _Named(name, below, header.backing_format)

    def _refuse(self, path: Path, reason: str) -> ImageRefused:
        return ImageRefused(target=self._target, path=str(path), reason=reason)
