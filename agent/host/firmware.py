"""Which loader and NVRAM template a domain runs with, and their fingerprints. Blocking.

libvirt 9.0 chooses them at each start of a firmware='efi' domain and tells only while it runs. So they are
remembered in ``firmware/<uuid>.json`` below the state directory for the time when it is shut off.
"""

import hashlib
import logging
import os
from pathlib import Path
from typing import Literal
from uuid import UUID

import msgspec

from agent.errors import StorageFailed
from agent.host import files
from agent.host.domain_xml import Domain
from agent.host.marks import make_directories
from agent.wire.transaction import FirmwareFile

_MEMORY_LIMIT_BYTES = 1 << 16

log = logging.getLogger(__name__)


class _Remembered(msgspec.Struct):
    loader: str | None = None
    template: str | None = None


class Firmware:
    """What is remembered of all domains of this host."""

    def __init__(self, state_dir: Path) -> None:
        self._directory = state_dir / "firmware"
        self._hashes: dict[tuple[str, int, int], str] = {}
        make_directories(state_dir, "firmware")

    def remember(self, vm: UUID, live: Domain) -> None:
        """Keep what a running domain's XML names; writes only where it differs. Raises StorageFailed, NoSpace."""
        named = _named(live)
        if (named.loader or named.template) and named != self._recall(vm):
            files.write_atomic(self._path(vm), msgspec.json.encode(named))

    def fingerprints(self, vm: UUID, domain: Domain) -> list[FirmwareFile]:
        """Return the fingerprints of loader and template: as ``domain`` names them, else as remembered.

        Empty for a domain that names none and never ran before the agent's eyes. One that cannot be read is left
        out and logged: it says nothing about the disks and host files beside which it is recorded.
        """
        named, remembered = _named(domain), self._recall(vm)
        roles: list[tuple[Literal["loader", "template"], str | None]] = [
            ("loader", named.loader or remembered.loader),
            ("template", named.template or remembered.template),
        ]
        found = []
        for role, path in roles:
            try:
                found += [self._fingerprint(role, Path(path))] if path else []
            except OSError as err:
                log.warning("firmware-unreadable role=%s path=%s reason=%s", role, path, err.strerror)
        return found

    def _path(self, vm: UUID) -> Path:
        return self._directory / f"{vm}.json"

    def _recall(self, vm: UUID) -> _Remembered:
        try:
            return msgspec.json.decode(files.read_limited(self._path(vm), _MEMORY_LIMIT_BYTES), type=_Remembered)
        except (StorageFailed, msgspec.MsgspecError):
            return _Remembered()  # nothing remembered yet; a torn file is written anew at the next start

    def _fingerprint(self, role: Literal["loader", "template"], path: Path) -> FirmwareFile:
        """Hash a file, once for each (path, size, mtime). Distributions link some of them, so links are followed."""
        with os.fdopen(files.open_regular(path.resolve()), "rb") as file:
            facts = os.fstat(file.fileno())
            key = (str(path), facts.st_size, facts.st_mtime_ns)
            if key not in self._hashes:
                self._hashes[key] = hashlib.file_digest(file, "sha256").hexdigest()
        return FirmwareFile(role=role, path=str(path), size_bytes=facts.st_size, sha256=self._hashes[key])


def _named(domain: Domain) -> _Remembered:
    return _Remembered(
        loader=str(domain.loader) if domain.loader else None,
        template=str(domain.template) if domain.template else None,
    )
