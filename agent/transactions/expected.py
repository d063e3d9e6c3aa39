"""What the hook must find before it lets a domain start: the host files that this domain is known to have.

libvirt recreates a missing NVRAM file or TPM directory without a word, so the list is kept where the hook can
read it without the agent.
"""

from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from agent.host.marks import make_directories, read_mark, remove_mark, write_mark


@dataclass(frozen=True)
class ExpectedFiles:
    """The host files that must exist at a start of one domain.

    ``nvram`` is the path that the domain XML names. Where it names none, ``nvram_default_dir`` is the directory in
    which libvirt looks for ``<name>_VARS.fd``. ``tpm_dir`` holds ``tpm2/`` or ``tpm1.2/``. None: not expected.
    """

    name: str
    nvram: Path | None = None
    nvram_default_dir: Path | None = None
    tpm_dir: Path | None = None


class Expected:
    """The lists of one host's domains. Methods block for milliseconds and may raise StorageFailed."""

    def __init__(self, state_dir: Path) -> None:
        self._directory = state_dir / "expected"
        make_directories(state_dir, "expected")

    def write(
        self, vm: UUID, name: str, nvram: Path | None, nvram_default_dir: Path | None, tpm_dir: Path | None
    ) -> None:
        """Keep what ``vm`` must have; writes only where it differs from what is kept."""
        files = ExpectedFiles(name, nvram, nvram_default_dir, tpm_dir)
        if self.read(vm) == files:
            return
        keys = {"nvram": nvram, "nvram_default": nvram_default_dir, "tpm": tpm_dir}
        paths = {key: str(path) for key, path in keys.items() if path is not None}
        write_mark(self._directory / str(vm), {**paths, "name": name})

    def read(self, vm: UUID) -> ExpectedFiles | None:
        """Return what ``vm`` must have, or None where nothing is known of it."""
        values = read_mark(self._directory / str(vm))
        if values is None:
            return None
        return ExpectedFiles(
            name=values.get("name", ""),
            nvram=_path(values, "nvram"),
            nvram_default_dir=_path(values, "nvram_default"),
            tpm_dir=_path(values, "tpm"),
        )

    def forget(self, vm: UUID) -> None:
        """Expect nothing of ``vm`` any more: its definition is gone."""
        remove_mark(self._directory / str(vm))


def _path(values: dict[str, str], key: str) -> Path | None:
    return Path(values[key]) if values.get(key) else None
