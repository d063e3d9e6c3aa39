"""Snapshots as the controller keeps them, and the requests about them."""

from datetime import UTC, datetime
from typing import Literal
from uuid import UUID

from agent.wire.base import Answer, Request
from agent.wire.host_file import HostFileType
from agent.wire.transaction import HostFilesPolicy

SnapshotState = Literal["creating", "ready", "reverting", "deleting", "failed"]
Completeness = Literal["complete", "partial", "none"]


class SnapshotHostFiles(Answer, kw_only=True, frozen=True):
    """Whether a snapshot holds the host files that its VM had. ``reason`` says why not, where it does not."""

    state: Completeness
    expected: list[HostFileType]
    missing: list[HostFileType] = []
    reason: str | None = None


class Volume(Answer, kw_only=True, frozen=True):
    """One disk's part of a snapshot: the frozen file. ``hidden`` once its snapshot is gone but a child needs it."""

    target: str
    host: str
    path: str
    backing: str | None
    virtual_size_bytes: int
    allocated_bytes: int
    hidden: bool = False


class Snapshot(Answer, kw_only=True, frozen=True):
    """All disks and host files of one VM at one moment."""

    uuid: UUID
    vm: UUID
    vm_name: str
    name: str
    description: str
    labels: dict[str, str]
    created_at: datetime
    parent: UUID | None
    current: bool
    state: SnapshotState
    automatic: bool
    protected: bool
    host_files: SnapshotHostFiles
    volumes: list[Volume]
    backup_files: list[UUID]
    excluded: list[str]

    @classmethod
    def example(cls) -> "Snapshot":
        """Return an example for documentation and tests."""
        return cls(
            uuid=UUID("b9a7cf5e-3c3e-4f5c-8a0d-0c7c8f6f2b11"),
            vm=UUID("6e0f1c1e-6d9e-4b8e-9f57-1b9b4c3f8a11"),
            vm_name="win11",
            name="before-update",
            description="",
            labels={},
            created_at=datetime(2026, 11, 2, 9, 30, tzinfo=UTC),
            parent=None,
            current=True,
            state="ready",
            automatic=False,
            protected=False,
            host_files=SnapshotHostFiles(state="complete", expected=["nvram", "tpm"]),
            volumes=[
                Volume(
                    target="vda",
                    host="kvm1",
                    path="/var/lib/libvirt/images/win11.qcow2",
                    backing=None,
                    virtual_size_bytes=68_719_476_736,
                    allocated_bytes=21_474_836_480,
                )
            ],
            backup_files=[
                UUID("2c0f6a4e-98a1-4f0e-bb0e-0e6c1c8b7a01"),
                UUID("2c0f6a4e-98a1-4f0e-bb0e-0e6c1c8b7a02"),
            ],
            excluded=[],
        )


class CreateSnapshot(Request, kw_only=True, frozen=True):
    """The body of ``POST /v1/vms/{vm}/snapshots``. ``name`` defaults to the time; ``uuid`` to a new one."""

    name: str | None = None
    description: str = ""
    labels: dict[str, str] = {}
    host_files: HostFilesPolicy = "required"
    exclude: list[str] = []
    uuid: UUID | None = None

    @classmethod
    def example(cls) -> "CreateSnapshot":
        """Return an example for documentation and tests."""
        return cls(name="before-update")


class RevertSnapshot(Request, kw_only=True, frozen=True):
    """The body of ``POST /v1/snapshots/{id}/revert``. ``volumes`` reverts these disks alone, without host files."""

    undo_point: bool = True
    volumes: list[str] | None = None

    @classmethod
    def example(cls) -> "RevertSnapshot":
        """Return an example for documentation and tests."""
        return cls()


class EditSnapshot(Request, kw_only=True, frozen=True):
    """The body of ``PATCH /v1/snapshots/{id}``: what is not named stays; ``labels`` replaces all labels.

    A protected snapshot can be reverted to, and is neither deleted nor ungrouped until the protection is off.
    """

    name: str | None = None
    description: str | None = None
    labels: dict[str, str] | None = None
    protected: bool | None = None

    @classmethod
    def example(cls) -> "EditSnapshot":
        """Return an example for documentation and tests."""
        return cls(protected=True)
