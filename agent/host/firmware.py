"""Which firmware a domain boots: its loader and the template of its variable store, told by their hashes."""

import hashlib
from pathlib import Path
from typing import Literal

import msgspec

from agent.errors import StorageFailed
from agent.host import files
from agent.host.domain_xml import Domain
from agent.wire.transaction import FirmwareFile

#: Well above OVMF's 4 MiB builds; what is larger is no firmware.
FIRMWARE_LIMIT_BYTES = 64 << 20


class Remembered(msgspec.Struct, frozen=True):
    """What a running domain's definition named; libvirt 9.0 leaves it out of the inactive one (firmware='efi')."""

    loader: str | None = None
    template: str | None = None


class FirmwareMemory:
    """One file a domain under ``directory``. Methods block for milliseconds and may raise StorageFailed."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._hashes: dict[tuple[str, int, int], str] = {}
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def remember(self, domain: Domain) -> None:
        """Keep what a running domain names."""
        named = Remembered(_text(domain.loader), _text(domain.template))
        if named != Remembered() and named != self._read(domain):
            files.write_atomic(self._directory / f"{domain.uuid}.json", msgspec.json.encode(named), mode=0o600)

    def files_of(self, domain: Domain) -> list[FirmwareFile]:
        """Describe the loader and the template that are known and there; an unknown one is left out."""
        kept = self._read(domain)
        named: dict[Literal["loader", "template"], str | None] = {
            "loader": _text(domain.loader) or kept.loader,
            "template": _text(domain.template) or kept.template,
        }
        described = [self._describe(role, Path(path)) for role, path in named.items() if path]
        return [one for one in described if one is not None]

    def _read(self, domain: Domain) -> Remembered:
        try:
            data = (self._directory / f"{domain.uuid}.json").read_bytes()
            return msgspec.json.decode(data, type=Remembered)
        except FileNotFoundError:
            return Remembered()
        except (OSError, msgspec.DecodeError) as err:
            raise StorageFailed(action="reading", path=str(self._directory), reason=str(err)) from err

    def _describe(self, role: Literal["loader", "template"], path: Path) -> FirmwareFile | None:
        if not path.is_file():
            return None
        facts = path.stat()
        key = (str(path), facts.st_size, facts.st_mtime_ns)
        if key not in self._hashes:
            data = files.read_limited(path.resolve(), FIRMWARE_LIMIT_BYTES, "firmware")
            self._hashes[key] = hashlib.sha256(data).hexdigest()
        return FirmwareFile(role=role, path=str(path), size_bytes=facts.st_size, sha256=self._hashes[key])


def _text(path: Path | None) -> str | None:
    return str(path) if path else None
