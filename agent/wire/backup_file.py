"""Backup files: frozen copies of host files, each owned by a resource."""

from datetime import UTC, datetime
from typing import Literal
from uuid import UUID

from agent.wire.base import Answer, Request
from agent.wire.host_file import HostFileFormat, HostFileType

OwnerKind = Literal["snapshot", "vm", "external"]


class BackupFile(Answer, kw_only=True, frozen=True):
    """One frozen copy of one host file."""

    uuid: UUID
    owner_kind: OwnerKind
    owner_uuid: UUID
    type: HostFileType
    size_bytes: int
    sha256: str
    format: HostFileFormat
    created_at: datetime

    @classmethod
    def example(cls) -> "BackupFile":
        """Return an example for documentation and tests."""
        return cls(
            uuid=UUID("2c0f6a4e-98a1-4f0e-bb0e-0e6c1c8b7a01"),
            owner_kind="snapshot",
            owner_uuid=UUID("b9a7cf5e-3c3e-4f5c-8a0d-0c7c8f6f2b11"),
            type="nvram",
            size_bytes=540_672,
            sha256="5d2d9d9e6c2f4d0f9b3f0d8e3f6b4d7f0c1a2b3c4d5e6f708192a3b4c5d6e7f8",
            format="raw",
            created_at=datetime(2026, 11, 2, 9, 30, tzinfo=UTC),
        )


class RestoreHostFiles(Request, kw_only=True, frozen=True):
    """The body of ``POST /v1/vms/{vm}/restore-host-files``.

    Without ``types`` those that the host lacks are put back. The bytes are the newest copy of the VM's own, those of a
    ``snapshot`` (of any VM: name ``types`` then where they are not lost), or one ``backup_file``.
    """

    types: list[HostFileType] | None = None
    snapshot: UUID | None = None
    backup_file: UUID | None = None

    @classmethod
    def example(cls) -> "RestoreHostFiles":
        """Return an example for documentation and tests."""
        return cls(types=["nvram"])


class BackupHostFiles(Request, kw_only=True, frozen=True):
    """The body of ``POST /v1/vms/{vm}/backup-host-files``: one VM to several owners."""

    owners: list[UUID]

    @classmethod
    def example(cls) -> "BackupHostFiles":
        """Return an example for documentation and tests."""
        return cls(owners=[UUID("d4c7a7d0-2d0e-4a3a-8d66-36d4a5a2a001")])
