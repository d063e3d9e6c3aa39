"""Host files: a domain's NVRAM and its TPM state."""

from datetime import UTC, datetime
from typing import Literal

from agent.wire.base import Answer

HostFileType = Literal["nvram", "tpm"]
HostFileFormat = Literal["raw", "tar"]
HOST_FILE_TYPES: tuple[HostFileType, ...] = ("nvram", "tpm")

#: How a type travels: NVRAM as its own bytes, TPM as a canonical tar of the swtpm state directory.
FORMATS: dict[HostFileType, HostFileFormat] = {"nvram": "raw", "tpm": "tar"}


class HostFile(Answer, kw_only=True, frozen=True):
    """One host file that is present and sound. ``sha256`` is of the bytes as they travel (see FORMATS)."""

    type: HostFileType
    path: str
    format: HostFileFormat
    size_bytes: int
    sha256: str
    mtime: datetime

    @classmethod
    def example(cls) -> "HostFile":
        """Return an example for documentation and tests."""
        return cls(
            type="nvram",
            path="/var/lib/libvirt/qemu/nvram/win11_VARS.fd",
            format="raw",
            size_bytes=540_672,
            sha256="5d2d9d9e6c2f4d0f9b3f0d8e3f6b4d7f0c1a2b3c4d5e6f708192a3b4c5d6e7f8",
            mtime=datetime(2026, 11, 2, 9, 30, tzinfo=UTC),
        )


class MissingHostFile(Answer, kw_only=True, frozen=True):
    """A host file that the domain should have and that cannot be used, and why."""

    type: HostFileType
    path: str
    code: str
    reason: str

    @classmethod
    def example(cls) -> "MissingHostFile":
        """Return an example for documentation and tests."""
        return cls(
            type="tpm",
            path="/var/lib/libvirt/swtpm/6e0f1c1e-6d9e-4b8e-9f57-1b9b4c3f8a11",
            code="host-file-missing",
            reason="the TPM state directory is empty",
        )


class HostFiles(Answer, kw_only=True, frozen=True):
    """What a domain has: ``items`` are sound, ``missing`` are expected but absent or damaged."""

    items: list[HostFile]
    expected: list[HostFileType]
    missing: list[MissingHostFile] = []
    next: None = None

    @classmethod
    def example(cls) -> "HostFiles":
        """Return an example for documentation and tests."""
        return cls(items=[HostFile.example()], expected=["nvram", "tpm"], missing=[MissingHostFile.example()])
